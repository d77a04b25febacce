"""Training on a CUDA card: right, exact where that was asked for, and without waiting."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import PRESETS, get_preset
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.device import describe_device
from megatron_model.events.schema import Evaluated, Event, MetricsReported, Notice, StepCompleted
from megatron_model.model.factory import build_model
from megatron_model.model.modern import ModernTransformer, WholeTexts, distance_bias
from megatron_model.planning.preflight import preflight
from megatron_model.training.graph_step import GraphStep
from megatron_model.training.learner import build_learner, set_determinism
from megatron_model.training.trainer import Trainer
from tests.model.helpers import TEXT, make_trainer, tiny_config

CARD = torch.device("cuda")
VOCABULARY = 65


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Leave nothing of one test's to the next."""
    gc.collect()
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    set_determinism(False)
    torch.cuda.set_per_process_memory_fraction(1.0)


def config_of(architecture: str, **changes: object) -> RunConfig:
    """Return a small run on the card, of 40 steps."""
    muon = architecture == "modern"
    return tiny_config(
        {
            "model.architecture": architecture,
            "model.embed_dim": 64,
            "model.heads": 2,
            "model.ff_dim": 128,
            "model.block_size": 64,
            "training.batch_size": 8,
            "training.optimizer": "muon" if muon else "adamw",
            "training.steps": 40,
            "training.log_every": 5,
            "training.evaluate_every": 20,
            "training.checkpoint_every": 10**6,
            "training.sample_length": 0,
            "training.device": "cuda",
            "training.precision": "bfloat16",
            **{f"training.{k}" if "." not in k else k: v for k, v in changes.items()},
        }
    )


def losses(events: list[Event]) -> list[float]:
    found = []
    for event in events:
        if isinstance(event, MetricsReported):
            found += [event.train_loss, event.gradient_norm]
        elif isinstance(event, Evaluated):
            found.append(event.val_loss)
    return found


def train_losses(events: list[Event]) -> list[float]:
    return [event.train_loss for event in events if isinstance(event, MetricsReported)]


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


def run(config: RunConfig, steps: int | None = None) -> tuple[Trainer, list[Event]]:
    """Train, to the end or so many steps far."""
    trainer = make_trainer(config, TEXT * 4)
    events: list[Event] = []
    for event in trainer.run():
        events.append(event)
        if isinstance(event, StepCompleted) and event.step == steps:
            break
    return trainer, events


ARCHITECTURES = ["modern", "classic"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-3), ("bfloat16", 2e-2)])
def test_losses_are_those_of_the_cpu(architecture: str, precision: str, tolerance: float) -> None:
    # Orthogonalised in float32: rounded otherwise, the two would soon be two runs.
    config = config_of(
        architecture,
        precision=precision,
        steps=20,
        evaluate_every=20,
        muon_precision="float32",
    )
    there = run(config)[1]
    here = run(with_settings(config, {"training.device": "cpu"}))[1]
    assert losses(there) == pytest.approx(losses(here), rel=tolerance)
    assert not notices(there)


@pytest.mark.parametrize("length", [64, 130, 192, 256, 1024])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_without_a_mask_is_attention_with_one(length: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = ModernTransformer(VOCABULARY, length, 128, 2, 1, 128).to(CARD)
    shape = (3, 2, length, 64)
    query, key, value = (F.rms_norm(torch.randn(shape, device=CARD), (64,)) for _ in range(3))
    query, key, value = (query / 8).to(dtype), key.to(dtype), value.to(dtype)
    bias = distance_bias(2, length, device=CARD)
    scores = query.double() @ key.double().mT + bias.double()
    exact = (scores.softmax(-1) @ value.double()).transpose(1, 2).flatten(2)
    folded = model._whole_texts(length, dtype)
    masked = WholeTexts(bias)
    errors = [
        float((way.attend(query, key, value) - exact).abs().max()) for way in (folded, masked)
    ]
    assert errors[0] <= 1.5 * errors[1] + 1e-4
    inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    folded.attend(*inputs).float().square().sum().backward()  # type: ignore[no-untyped-call]
    assert all(tensor.grad is not None and tensor.grad.isfinite().all() for tensor in inputs)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_recorded_steps_are_those_computed_one_by_one(architecture: str) -> None:
    set_determinism(True)
    config = config_of(architecture, deterministic="on", **{"model.dropout": 0.1})
    trainer, recorded = run(config)
    assert isinstance(trainer.learner._step, GraphStep)
    plain = make_trainer(config, TEXT * 4)
    plain.learner._records = False
    assert losses(recorded) == losses(list(plain.run()))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compiled_steps_are_near_and_compiled_once(architecture: str) -> None:
    config = config_of(architecture)
    torch._dynamo.utils.counters.clear()
    trainer, compiled = run(with_settings(config, {"training.compile": "on"}))
    assert trainer.compiled
    assert not notices(compiled)
    assert train_losses(compiled)[:4] == pytest.approx(train_losses(run(config)[1])[:4], rel=2e-2)
    counters: Any = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] == 1, "one layer stands for all"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("compile_", ["off", "on"])
def test_a_resumed_run_is_exact_where_that_was_asked_for(architecture: str, compile_: str) -> None:
    config = config_of(architecture, deterministic="on", compile=compile_, **{"model.dropout": 0.1})
    whole = run(config)[1]
    assert losses(whole) == losses(run(config)[1]), "two equal runs"
    first, begun = run(config, 20)
    state = first.state()
    weights = {name: value.cpu() for name, value in first.learner.weights().items()}
    second = make_trainer(config, TEXT * 4)
    second.load(weights, state)
    assert losses(begun) + losses(list(second.run())) == losses(whole)


def test_nothing_waits_for_the_card_between_reports() -> None:
    trainer, _ = run(config_of("modern"), 5)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            trainer._update()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rates_change_under_replay() -> None:
    trainer, _ = run(config_of("modern", schedule="constant"), 5)
    learner = trainer.learner
    batch = learner.batch(5, 1.0)
    before = learner.model.state_dict()["head"].clone()
    learner.step(5, 0.0, *batch)
    assert torch.equal(learner.model.state_dict()["head"], before), "a rate of nothing"
    learner.step(6, 1.0, *batch)
    assert not torch.equal(learner.model.state_dict()["head"], before)


def test_dropout_differs_by_step_and_repeats_by_seed() -> None:
    trainer, _ = run(config_of("modern", **{"model.dropout": 0.5}), 5)
    learner = trainer.learner

    def loss(number: int) -> float:
        batch = learner.batch(number, 0.0)
        fixed = learner._parts.batches.get(1)
        assert batch[0].shape == fixed[0].shape
        return float(learner.step(number, 0.0, *fixed)[0])

    assert loss(7) == loss(7)
    assert loss(7) != loss(8)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_bad_step_changes_nothing(architecture: str) -> None:
    trainer, _ = run(config_of(architecture), 5)
    learner = trainer.learner
    weights = {k: v.clone() for k, v in learner.weights().items()}
    state = {k: v.clone() for k, v in learner.optimizer_state().items()}
    name, parameter = next(iter(learner.model.named_parameters()))
    with torch.no_grad():
        parameter[0, 0] = float("nan")
    inputs, targets = learner.batch(5, 1.0)
    loss, norm = learner.step(5, 1.0, torch.zeros_like(inputs), targets)
    assert not (loss + norm).isfinite()
    with torch.no_grad():
        parameter[0, 0] = weights[name][0, 0]
    assert all(torch.equal(value, weights[k]) for k, value in learner.weights().items())
    assert all(torch.equal(value, state[k]) for k, value in learner.optimizer_state().items())


def test_out_of_memory_halves_the_batch_and_gives_memory_back() -> None:
    config = with_settings(
        get_preset("small").config,
        {
            "training.device": "cuda",
            "training.compile": "off",
            "training.steps": 4,
            "training.sample_length": 0,
            "training.log_every": 1,
            "training.evaluate_every": 10**6,
            "model.dropout": 0.0,
        },
    )
    whole = losses(run(config)[1])
    gc.collect()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    room = torch.cuda.memory_reserved() + (9 << 28)  # of more than 3 GiB that it would take
    torch.cuda.set_per_process_memory_fraction(
        room / torch.cuda.get_device_properties(0).total_memory
    )
    trainer = make_trainer(config, TEXT * 4)
    trainer.learner.micro_batch = 64  # as if the estimate had not seen it coming
    events = list(trainer.run())
    assert any("out of memory" in text for text in notices(events)), notices(events)
    assert trainer.learner.micro_batch < 64
    assert losses(events) == pytest.approx(whole, rel=2e-2)
    del trainer
    gc.collect()
    assert torch.cuda.memory_allocated() < before + (64 << 20)


def test_without_a_compiler_training_goes_on(tmp_path: Path) -> None:
    code = (
        "from tests.gpu.test_training import *\n"
        "trainer, events = run(config_of('modern', compile='on', steps=6))\n"
        "print(trainer.compiled, notices(events))"
    )
    environment = {
        **os.environ,
        "CC": "/bin/false",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TRITON_CACHE_DIR": str(tmp_path / "triton"),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("False ["), done.stdout
    assert "compiling did not work here" in done.stdout


@pytest.mark.parametrize("name", [name for name in PRESETS if name not in ("smoke", "cpu")])
@pytest.mark.parametrize("compile_", ["off", "on"])
def test_the_estimate_of_memory_holds(name: str, compile_: str) -> None:
    config = with_settings(
        PRESETS[name].config,
        {"training.device": "cuda", "training.compile": compile_, "training.sample_length": 0},
    )
    generator = np.random.default_rng(0)
    tokens = generator.integers(0, VOCABULARY, 2_000_000).astype(np.uint8)
    about = describe_device("cuda")
    before = torch.cuda.memory_allocated()  # what a test before this one left behind
    learner = build_learner(config, VOCABULARY, tokens, tokens[:100_000])
    trainer = Trainer(
        config,
        CharTokenizer("".join(map(chr, range(48, 48 + VOCABULARY)))),
        tokens,
        tokens[:100_000],
        learner=learner,
    )
    steps = iter(trainer.run())
    while not isinstance(next(steps), StepCompleted):
        pass
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    expected = preflight(
        config, characters=2_100_000, vocabulary_size=VOCABULARY, device=about
    ).total_bytes
    taken = f"{peak / 2**30:.2f} GiB taken, {before / 2**30:.2f} before"
    sizes = f"{expected / 2**30:.2f} GiB expected, {taken}"
    assert expected == pytest.approx(peak, rel=0.2), sizes


def test_an_embedding_learns_the_same_in_any_order() -> None:
    torch.manual_seed(0)
    model = build_model(config_of("modern").model, VOCABULARY).to(CARD)
    tokens = torch.randint(0, VOCABULARY, (64, 64), device=CARD)

    def gradient() -> Tensor:
        model.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        found = model.token_embedding.grad
        assert found is not None
        return found.clone()

    assert torch.equal(gradient(), gradient())


def test_writing_while_training_is_done_on_the_cpu() -> None:
    trainer, _ = run(config_of("modern"), 5)
    model = trainer.learner.inference_model()
    assert next(model.parameters()).device.type == "cpu"
    for name, value in trainer.learner.weights().items():
        assert torch.equal(model.state_dict()[name], value.cpu())
