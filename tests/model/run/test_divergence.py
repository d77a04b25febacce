"""Numbers that go wrong: no bad step reaches the weights, and a run finds back by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import (
    Event,
    MetricsReported,
    Notice,
    RunFailed,
    RunFinished,
    RunStarted,
)
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_model.run.runner import run_training
from megatron_model.training import computation
from megatron_model.training.nonfinite import BAD_STEPS
from megatron_model.training.step import Step, eager_step
from tests.model.helpers import history, make_trainer, tiny_config

Bad = Callable[[int], bool]


def spoil(monkeypatch: pytest.MonkeyPatch, bad: Bad, kind: str = "gradient") -> list[int]:
    """Make the loss or the gradient of some updates infinite; return the updates as they come."""
    updates: list[int] = []

    def spoilt_step(model: torch.nn.Module, *args: Any, **options: Any) -> Step:
        step = eager_step(model, *args, **options)
        weight = next(iter(model.parameters()))

        def run(number: int, scale: float, inputs: Tensor, targets: Tensor) -> Any:
            updates.append(number)
            if not bad(number):
                return step(number, scale, inputs, targets)
            if kind == "gradient":
                hook = weight.register_hook(lambda gradient: gradient * math.inf)
                result = step(number, scale, inputs, targets)
                hook.remove()
                return result
            kept = weight.detach().clone()
            with torch.no_grad():
                weight.fill_(math.nan)  # the loss is none, and so is every gradient
            result = step(number, scale, inputs, targets)
            assert bool(weight.isnan().all())
            with torch.no_grad():
                weight.copy_(kept)
            return result

        return run

    monkeypatch.setattr(computation, "eager_step", spoilt_step)
    return updates


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("kind", ["gradient", "loss"])
def test_a_bad_step_changes_nothing_and_is_counted(
    monkeypatch: pytest.MonkeyPatch, optimizer: str, kind: str
) -> None:
    spoil(monkeypatch, lambda number: number == 3, kind)
    config = tiny_config({"training.optimizer": optimizer, "training.steps": 6})
    trainer = make_trainer(config)
    before: dict[str, Tensor] = {}
    seen: list[Event] = []
    for event in trainer.run():
        seen.append(event)
        if type(event).__name__ == "StepCompleted":
            state = {**trainer.state().tensors, **trainer.model.state_dict()}
            state.pop("loss_sum")
            if event.step == 4:
                assert all(torch.equal(state[name], before[name]) for name in before)
            before = {name: value.clone() for name, value in state.items()}
    notes = [event.text for event in seen if isinstance(event, Notice)]
    assert len(notes) == 1
    assert notes[0].startswith("1 of the last 2 steps had a loss or gradient of NaN or infinity")
    reports = {event.step: event.train_loss for event in seen if isinstance(event, MetricsReported)}
    assert set(reports) == {2, 4, 6}
    assert all(math.isfinite(loss) and 0 < loss < 10 for loss in reports.values())


@pytest.fixture
def folder(runs_dir: Path, config: RunConfig) -> RunFolder:
    return RunFolder.create(runs_dir, "diverging", config)


def train_with(folder: RunFolder, **changes: object) -> list[Event]:
    dotted = {f"training.{name}": value for name, value in changes.items()}
    return list(run_training(folder, Control(), config=with_settings(folder.read_config(), dotted)))


def test_a_run_that_diverges_goes_back_with_half_the_rate(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    bad = set(range(8, 8 + BAD_STEPS))
    # Once only: the second time these numbers come the lower rate has helped.
    updates = spoil(monkeypatch, lambda number: number in bad and not bad.discard(number))
    seen = train_with(folder)
    assert isinstance(seen[-1], RunFinished)
    # Checkpoints were written at 5 and 6; none is written in the middle of the bad steps.
    started = [event.step for event in seen if isinstance(event, RunStarted)]
    assert started == [0, 6]
    assert updates.count(6) == 2
    rates = {e.step: e.learning_rate for e in seen if isinstance(e, MetricsReported)}
    usual = train_with(RunFolder.create(folder.path.parent, "usual", folder.read_config()))
    expected = {e.step: e.learning_rate for e in usual if isinstance(e, MetricsReported)}
    assert rates[18] == pytest.approx(expected[18] / 2)
    assert any("0.5 times the learning rate" in e.text for e in seen if isinstance(e, Notice))
    assert folder.state().status == "finished"


def test_the_lower_rate_outlives_the_process(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    with monkeypatch.context() as patch:
        bad = set(range(8, 8 + BAD_STEPS))
        spoil(patch, lambda number: number in bad and not bad.discard(number))
        train_with(folder)
    more = train_with(folder, steps=20, schedule="constant", warmup_steps=0)
    rates = [event.learning_rate for event in more if isinstance(event, MetricsReported)]
    assert rates[-1] == pytest.approx(folder.read_config().training.learning_rate / 2)


def test_a_run_that_never_finds_back_ends_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    spoil(monkeypatch, lambda number: number >= 7)
    seen = train_with(folder)
    failed = seen[-1]
    assert isinstance(failed, RunFailed)
    assert "in a row" in failed.error
    assert [event.step for event in seen if isinstance(event, RunStarted)][0] == 0
    assert sum(isinstance(event, RunStarted) for event in seen) == 5
    assert all(math.isfinite(loss) for loss in history(seen).values())


def test_a_run_stops_when_that_is_wished(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    spoil(monkeypatch, lambda number: number >= 7)
    seen = train_with(folder, when_diverged="stop")
    assert isinstance(seen[-1], RunFailed)
    assert sum(isinstance(event, RunStarted) for event in seen) == 1


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes"),
    ],
    ids=["gpu", "cpu"],
)
def test_out_of_memory_halves_the_micro_batch_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder, error: Exception
) -> None:
    def tight(*args: Any, micro_batch: int, **options: Any) -> Step:
        step = eager_step(*args, micro_batch=micro_batch, **options)

        def run(*arguments: Any) -> Any:
            if micro_batch > 1:
                raise error
            return step(*arguments)

        return run

    usual = history(train_with(RunFolder.create(folder.path.parent, "usual", folder.read_config())))
    monkeypatch.setattr(computation, "eager_step", tight)
    seen = train_with(folder)
    notes = [event.text for event in seen if isinstance(event, Notice)]
    assert [note.split("computed ")[1].split()[0] for note in notes] == ["2", "1"]
    assert isinstance(seen[-1], RunFinished)
    losses = history(seen)
    assert losses.keys() == usual.keys()
    for key, loss in losses.items():
        assert loss == pytest.approx(usual[key], rel=1e-3), key


def test_memory_that_is_not_enough_for_one_sequence_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, folder: RunFolder
) -> None:
    def never(*args: Any, **options: Any) -> Step:
        def run(*arguments: Any) -> Any:
            raise torch.OutOfMemoryError("CUDA out of memory")

        return run

    monkeypatch.setattr(computation, "eager_step", never)
    failed = train_with(folder)[-1]
    assert isinstance(failed, RunFailed)
    assert "out of memory" in failed.error
