"""What a run will cost, held against what it really takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_model.config.fields import RunConfig, get_setting, with_settings
from megatron_model.config.presets import PRESETS, get_preset
from megatron_model.device import DeviceInfo, describe_device
from megatron_model.model.factory import build_model
from megatron_model.planning.preflight import Preflight, preflight
from megatron_model.training.loss import sequence_loss
from tests.model.helpers import ARCHITECTURES, TEXT, make_trainer, tiny_config


def device(free: int, *, kind: str = "cpu", rate: float | None = None) -> DeviceInfo:
    return DeviceInfo(
        kind=kind,  # type: ignore[arg-type]
        name="a device",
        label="RAM",
        memory_total=2 * free,
        memory_free=free,
        matrix_rate=rate,
    )


def saved_for_backward(config: RunConfig, vocabulary: int) -> int:
    """Return the bytes that the backward pass of a step really needs, weights left out."""
    model = build_model(config.model, vocabulary)
    known = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    known |= {buffer.untyped_storage().data_ptr() for buffer in model.buffers()}
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            held[storage.data_ptr()] = storage.nbytes()
        return tensor

    tokens = torch.randint(vocabulary, (config.training.batch_size, config.model.block_size + 1))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = sequence_loss(model(tokens[:, :-1]), tokens[:, 1:])
    total = sum(held.values())
    loss.backward()  # type: ignore[no-untyped-call]
    return total


SIZES = [
    {"layers": 2, "embed_dim": 64, "heads": 4, "ff_dim": 256, "block_size": 64},
    {"layers": 4, "embed_dim": 128, "heads": 4, "ff_dim": 512, "block_size": 128},
    {"layers": 6, "embed_dim": 96, "heads": 2, "ff_dim": 192, "block_size": 96},
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "-".join(map(str, size.values())))
def test_the_memory_of_a_step_is_foretold(architecture: str, size: dict[str, int]) -> None:
    shape = {f"model.{name}": value for name, value in size.items()}
    config = tiny_config({**shape, "model.architecture": architecture, "training.batch_size": 3})
    foretold = preflight(config, vocabulary_size=65, device=device(10**12)).activations_bytes
    assert foretold == pytest.approx(saved_for_backward(config, 65), rel=0.35)


@pytest.mark.parametrize(
    ("architecture", "optimizer"), [("classic", "adamw"), ("modern", "adamw"), ("modern", "muon")]
)
def test_the_memory_of_the_training_state_is_foretold(architecture: str, optimizer: str) -> None:
    config = tiny_config(
        {
            "model.architecture": architecture,
            "training.optimizer": optimizer,
            "training.steps": 1,
            "model.embed_dim": 64,
            "model.ff_dim": 256,
        }
    )
    trainer = make_trainer(config)
    for _ in trainer.run():
        pass
    foretold = preflight(config, vocabulary_size=len(set(TEXT)))
    weights = sum(4 * parameter.numel() for parameter in trainer.model.parameters())
    state = trainer.state().tensors.items()
    held = sum(tensor.nbytes for name, tensor in state if name.startswith("optimizer/"))
    assert foretold.weights_bytes == foretold.gradients_bytes == weights
    assert foretold.optimizer_bytes == pytest.approx(held, rel=0.05)


def test_everything_adds_up() -> None:
    cost = preflight(tiny_config(), vocabulary_size=30)
    parts = (
        cost.weights_bytes + cost.gradients_bytes + cost.optimizer_bytes + cost.activations_bytes
    )
    assert cost.total_bytes == parts
    assert cost.weights_bytes == 4 * cost.parameters
    assert cost.characters_per_step == 4 * 16
    assert cost.total_characters == 4 * 16 * 18


def test_what_is_not_known_is_left_open() -> None:
    cost = preflight(tiny_config())
    assert (cost.fits, cost.memory_free, cost.memory_total) == (None, None, None)
    assert (cost.epochs, cost.seconds) == (None, None)
    assert (cost.problems, cost.warnings) == ([], [])


# Does it fit


def test_a_run_fits_where_there_is_room() -> None:
    cost = preflight(tiny_config(), device=device(10**9))
    assert (cost.fits, cost.problems) == (True, [])
    assert (cost.memory_free, cost.memory_total) == (10**9, 2 * 10**9)


def test_a_run_without_room_is_a_problem_that_says_what_to_do() -> None:
    cost = preflight(tiny_config(), device=device(10_000))
    assert cost.fits is False
    assert len(cost.problems) == 1
    assert "GiB" in cost.problems[0]
    assert "model.embed_dim" in cost.problems[0]


def test_a_batch_without_room_is_gone_through_in_parts() -> None:
    config = tiny_config({"training.batch_size": 64, "model.block_size": 64})
    whole = preflight(config, device=device(10**12))
    assert whole.micro_batch == 64
    assert whole.warnings == []
    each = whole.activations_bytes / 64
    tight = preflight(config, device=device(int(2 * whole.weights_bytes * 4 + 20 * each)))
    assert 1 <= tight.micro_batch < 64
    assert tight.fits is True
    assert tight.total_bytes <= tight.memory_free  # type: ignore[operator]
    assert "does not fit at once" in tight.warnings[0]


@pytest.mark.parametrize("key", ["batch_size", "steps"])
def test_more_work_costs_more(key: str) -> None:
    config = tiny_config()
    more = with_settings(config, {f"training.{key}": 2 * get_setting(config, f"training.{key}")})
    about = device(10**12, rate=1e9)
    first, second = (preflight(c, characters=5000, device=about) for c in (config, more))
    assert second.seconds == pytest.approx(2 * first.seconds)  # type: ignore[operator]
    assert second.epochs == pytest.approx(2 * first.epochs)  # type: ignore[operator]
    assert second.total_bytes >= first.total_bytes


# The corpus


def of_text(characters: int, **changes: object) -> Preflight:
    dotted = {f"training.{name}": value for name, value in changes.items()}
    return preflight(tiny_config(dotted), characters=characters, device=device(10**12))


@pytest.mark.parametrize(("characters", "problems"), [(100, 1), (169, 1), (170, 0), (5000, 0)])
def test_a_text_too_short_for_a_block_is_a_problem(characters: int, problems: int) -> None:
    cost = of_text(characters)
    assert len(cost.problems) == problems
    if problems:
        assert "model.block_size 16" in cost.problems[0]


def test_epochs_are_counted_over_the_training_split() -> None:
    assert of_text(1280).epochs == pytest.approx(18 * 64 / (1280 * 0.9))


def test_a_text_read_too_often_is_a_warning() -> None:
    assert of_text(2000, steps=100).warnings == []
    cost = of_text(2000, steps=5000)
    assert len(cost.warnings) == 1
    assert "memorize" in cost.warnings[0]
    assert cost.problems == []


def test_a_time_budget_is_the_time() -> None:
    cost = of_text(2000, max_seconds=90.0)
    assert (cost.seconds, cost.total_characters, cost.epochs) == (90.0, None, None)


# Every preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_cost(name: str) -> None:
    cost = preflight(get_preset(name).config, characters=10**6, vocabulary_size=70)
    assert cost.parameters > 10_000
    assert cost.problems == []


def test_the_presets_for_every_machine_fit_this_one() -> None:
    for name in ("smoke", "cpu"):
        assert preflight(get_preset(name).config, device=describe_device("cpu")).fits is True


def test_half_the_arithmetic_takes_less_memory() -> None:
    config = get_preset("seed").config
    half = with_settings(config, {"training.precision": "bfloat16"})
    full = with_settings(config, {"training.precision": "float32"})
    gpu = device(10**14, kind="cuda")
    assert (
        preflight(half, device=gpu).activations_bytes
        < 0.6 * preflight(full, device=gpu).activations_bytes
    )
