"""Steps that are recorded once and repeated: held to the plain ones, with a recorder for the CPU.

What is recorded on a card is tried in ``tests/gpu``; here its place is taken by one that does the
work anew each time, on the tensors that were there when it was recorded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.device import DeviceInfo
from megatron_model.events.schema import Evaluated, Event, MetricsReported, Notice, StepCompleted
from megatron_model.model.factory import build_model, empty_model
from megatron_model.model.modern import (
    FoldedTexts,
    _OneHotEmbedding,
    distance_bias,
    folded_distance,
)
from megatron_model.planning.compile_choice import choose_beforehand
from megatron_model.training.computation import LocalComputations, compile_layers
from megatron_model.training.learner import Learner, build_learner
from megatron_model.training.loss import characters_at_once, evaluate_loss
from megatron_model.training.nonfinite import is_out_of_memory
from megatron_model.training.trainer import Trainer
from megatron_model.util.recording import WARM_UPS, Recording
from tests.model.helpers import ARCHITECTURES, make_trainer, tiny_config, tiny_model

MUON = {"model.architecture": "modern", "training.optimizer": "muon"}
KINDS: list[dict[str, object]] = [
    MUON,
    {**MUON, "model.dropout": 0.3, "training.gradient_clip": 0.5},
    {"model.architecture": "classic", "training.optimizer": "adamw"},
    {"model.architecture": "modern", "training.optimizer": "adamw", "training.token_dropout": 0.2},
]


class Recorder:
    """Records as a card would, and counts."""

    def __init__(self, *failures: Exception) -> None:
        self.times = 0
        self._failures = list(failures)

    def __call__(self, work: Callable[[], None]) -> Recording:
        """Do the work a few times, which may fail, and return something that repeats it."""
        self.times += 1
        if self._failures:
            raise self._failures.pop(0)
        state = torch.get_rng_state()
        for _ in range(WARM_UPS):
            work()
        torch.set_rng_state(state)
        return _Repeated(work)


class _Repeated:
    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work

    def replay(self) -> None:
        """Do it again."""
        self._work()


def recording(config: RunConfig, recorder: Recorder) -> Trainer:
    """Return a trainer whose steps are recorded."""
    trainer = make_trainer(config)
    parts = trainer.learner._parts
    state: Any = parts.state
    computations = LocalComputations(state.model, state.optimizer, config, recorder)
    trainer.learner = Learner(dataclasses.replace(parts, computations=computations, records=True))
    return trainer


def curve(events: list[Event]) -> list[float]:
    found = []
    for event in events:
        if isinstance(event, MetricsReported):
            found += [event.train_loss, event.gradient_norm, event.learning_rate]
        elif isinstance(event, Evaluated):
            found.append(event.val_loss)
    return found


def said(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_recorded_steps_are_the_plain_ones(changes: dict[str, object]) -> None:
    config = tiny_config(changes)
    recorder = Recorder()
    found = list(recording(config, recorder).run())
    assert curve(found) == curve(list(make_trainer(config).run()))
    assert recorder.times == 1
    assert not said(found)


@pytest.mark.parametrize("changes", KINDS, ids=str)
def test_nothing_changes_while_steps_are_recorded(changes: dict[str, object]) -> None:
    trainer = recording(tiny_config(changes), Recorder())
    before = {name: value.clone() for name, value in trainer.learner.weights().items()}
    steps = trainer.run()
    while getattr(next(steps), "phase", "") != "training":
        pass
    assert all(
        torch.equal(value, before[name]) for name, value in trainer.learner.weights().items()
    )
    moments = [v for k, v in trainer.learner.optimizer_state().items() if "step/" not in k]
    assert all(not value.any() for value in moments)


def test_another_state_is_recorded_anew() -> None:
    config = tiny_config(MUON)
    recorder = Recorder()
    trainer = recording(config, recorder)
    steps = trainer.run()
    whole: list[Event] = []
    saved = None
    for event in steps:
        whole.append(event)
        if isinstance(event, StepCompleted) and event.step == 6:
            weights = {k: v.clone() for k, v in trainer.learner.weights().items()}
            state = trainer.state()
            tensors = {k: v.clone() for k, v in state.tensors.items()}
            saved = weights, dataclasses.replace(state, tensors=tensors)
    assert saved is not None
    trainer.load(*saved)
    again = curve(list(trainer.run()))
    assert again == curve(whole)[-len(again) :]
    assert recorder.times == 2


def test_what_cannot_be_recorded_is_computed_step_by_step() -> None:
    config = tiny_config(MUON)
    refusal = RuntimeError("operation not permitted when stream is capturing")
    trainer = recording(config, Recorder(refusal))
    found = list(trainer.run())
    assert curve(found) == curve(list(make_trainer(config).run()))
    (text,) = said(found)
    assert text == (
        "steps cannot be recorded here (operation not permitted when stream is capturing); "
        "training is slower"
    )


def test_a_compiler_that_fails_leaves_steps_recorded() -> None:
    config = tiny_config(MUON)
    recorder = Recorder(RuntimeError("no compiler"))
    trainer = recording(config, recorder)
    trainer.learner.compiled = True
    trainer.learner.device = torch.device("meta")  # not a CPU, as far as the choice goes
    trainer.learner._compute_by_torch()
    trainer.learner.device = torch.device("cpu")
    with pytest.raises(RuntimeError, match="no compiler"):
        recorder(lambda: None)
    trainer.learner._fall_back(RuntimeError("no compiler"))
    assert not trainer.compiled
    assert trainer.learner.take_notices() == [
        "compiling did not work here (no compiler); training goes on without"
    ]
    assert curve(list(trainer.run())) == curve(list(make_trainer(config).run()))


@pytest.mark.parametrize(
    "text",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_no_room_to_record_halves_the_batch(text: str) -> None:
    assert is_out_of_memory(RuntimeError(text))
    recorder = Recorder(RuntimeError(text))
    trainer = recording(tiny_config(MUON), recorder)
    found = list(trainer.run())
    assert trainer.learner.micro_batch == 2
    assert recorder.times == 2
    assert said(found) == [
        "out of memory: the batch of 4 is computed 2 sequences at a time from now on"
    ]


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access"))


@pytest.mark.parametrize("length", [1, 7, 130, 300])
@pytest.mark.parametrize("heads", [1, 2, 6])
def test_folded_distances_are_the_mask(length: int, heads: int) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, length, 16) for _ in range(3))
    query, key = query / 16, key / 4
    bias = distance_bias(heads, length)
    scores = query.double() @ key.double().mT + bias.double()
    exact = (scores.softmax(-1) @ value.double()).transpose(1, 2).flatten(2)
    folded = FoldedTexts(*folded_distance(heads, length, torch.float32))
    torch.testing.assert_close(folded.attend(query, key, value).double(), exact, atol=3e-5, rtol=0)


def test_folded_distances_lose_nothing_in_bfloat16() -> None:
    costs, places = folded_distance(6, 1 << 10, torch.bfloat16)
    told = costs.double() @ places.double().T
    slopes = -distance_bias(6, 1 << 10)[:, -1].double()  # from the last position
    assert (told[:, -1:] - told - slopes).abs().max() < 0.02


def test_the_gradient_of_an_embedding_is_a_product() -> None:
    torch.manual_seed(0)
    table = torch.randn(9, 5, requires_grad=True)
    tokens = torch.randint(0, 9, (4, 30))
    weight = torch.randn(4, 30, 5)
    found: Any = _OneHotEmbedding
    (product,) = torch.autograd.grad((found.apply(tokens, table) * weight).sum(), table)
    (plain,) = torch.autograd.grad((table[tokens] * weight).sum(), table)
    torch.testing.assert_close(product, plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_one_layer_is_compiled_for_all(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = []
    compile_ = torch.compile

    def counting(graph: Any, inputs: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        forward: Callable[..., Any] = graph.forward
        return forward

    monkeypatch.setattr(
        torch, "compile", lambda f, **options: compile_(f, backend=counting, **options)
    )
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build_model(tiny_model(architecture, layers=4), 30).train()
    tokens = torch.randint(0, 30, (3, 16))
    plain = model(tokens)
    compile_layers(model, True)
    for _ in range(3):
        torch.testing.assert_close(model(tokens), plain)
    assert len(graphs) == 1
    model.eval()
    model(tokens[:1, :5])
    assert len(graphs) == 1, "outside training nothing is compiled"
    compile_layers(model, False)
    model.train()
    assert torch.equal(model(tokens), plain)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_to_be_loaded_draws_nothing(architecture: str) -> None:
    config = tiny_model(architecture)
    whole = build_model(config, 30).eval()
    before = torch.get_rng_state()
    empty = empty_model(config, 30).eval()
    assert torch.equal(torch.get_rng_state(), before)
    empty.load_state_dict(whole.state_dict())
    tokens = torch.randint(0, 30, (2, 16))
    assert torch.equal(empty(tokens), whole(tokens))


class NoDouble(TorchDispatchMode):
    """A device without float64, as Apple's are."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refuse what makes a tensor of float64."""
        found = func(*args, **(kwargs or {}))
        assert not (isinstance(found, Tensor) and found.dtype == torch.float64)
        return found


def test_validation_needs_no_float64() -> None:
    trainer = make_trainer(tiny_config(MUON))
    with NoDouble():
        loss = evaluate_loss(
            trainer.model,
            trainer._validation,
            block_size=16,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
    assert math.isfinite(loss)


@pytest.mark.parametrize(
    ("device", "in_step", "expected"),
    [("cpu", 10**6, 4096), ("cuda", 100, 4096), ("cuda", 16384, 16384), ("mps", 10**6, 65536)],
)
def test_an_accelerator_evaluates_as_much_at_once_as_it_trains_on(
    device: str, in_step: int, expected: int
) -> None:
    assert characters_at_once(torch.device(device), in_step) == expected


CARD = DeviceInfo("cuda", "a card", "GPU 0", 80 << 30, 80 << 30, True, 7e14)


@pytest.mark.parametrize(
    ("changes", "compiles"),
    [
        ({"training.max_seconds": 11.0}, False),
        ({"training.max_seconds": 12.0}, True),
        ({"training.max_seconds": 10.5, "training.compile": "on"}, True),
        ({"training.max_seconds": 9.0, "training.compile": "on"}, False),
        ({"training.steps": 10**6, "training.compile": "off"}, False),
        ({"training.steps": 10}, False),
        ({"training.steps": 10**6}, True),
    ],
)
def test_an_accelerator_compiles_where_time_enough_is_left(
    changes: dict[str, object], compiles: bool
) -> None:
    config = with_settings(RunConfig(), changes)
    assert choose_beforehand(config, 60, CARD).compiles == compiles


def test_what_is_measured_is_the_way_of_the_planned_run(monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config({**MUON, "training.compile": "auto"})
    monkeypatch.setattr("megatron_model.training.learner.is_ready", lambda: False)
    trainer = make_trainer(config)
    splits = trainer._validation, trainer._validation
    planned = with_settings(config, {"training.max_seconds": 1.0})
    vocabulary = trainer.tokenizer.vocab_size
    assert build_learner(config, vocabulary, *splits).compiled
    assert not build_learner(config, vocabulary, *splits, planned=planned).compiled
