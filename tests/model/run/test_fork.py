"""Forks: a new run from another one's checkpoint; and changes of a run while it trains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.live import changeable, changed
from megatron_model.events.schema import (
    CheckpointSaved,
    Event,
    MetricsReported,
    Notice,
    RunFinished,
    RunStarted,
    SettingChanged,
    StepCompleted,
)
from megatron_model.run import fork
from megatron_model.run.checkpoint import load_weights
from megatron_model.run.control import Change, Control
from megatron_model.run.folder import RunFolder
from megatron_model.run.runner import run_training
from megatron_model.training.trainer import Trainer
from megatron_model.util.errors import RequestError
from tests.model.helpers import history, tiny_config, train, train_and


def fork_of(parent: RunFolder, step: int, **changes: object) -> RunFolder:
    checkpoint = fork.nearest_checkpoint(parent, step)
    assert checkpoint is not None
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return fork.fork_run(parent, checkpoint, "child", with_settings(parent.read_config(), dotted))


def test_a_fork_goes_on_exactly_where_its_parent_was(run_copy: RunFolder) -> None:
    before = history(run_copy.read_events()[0])
    child = fork_of(run_copy, 14)
    assert child.read_parent() == (run_copy.name, 15)
    assert [c.step for c in child.checkpoints()] == [15]
    seen = train(child)
    started = next(event for event in seen if isinstance(event, RunStarted))
    assert (started.step, started.parent, started.parent_step) == (15, run_copy.name, 15)
    assert history(seen)["train", 18] == before["train", 18]
    assert history(seen)["validation", 18] == before["validation", 18]
    theirs, ours = (load_weights(f.checkpoint_path(18)) for f in (run_copy, child))
    assert all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_fork_with_another_learning_rate_goes_another_way(run_copy: RunFolder) -> None:
    before = history(run_copy.read_events()[0])
    child = fork_of(run_copy, 15, training__learning_rate=0.05, training__steps=24)
    seen = history(train(child))
    assert seen["train", 18] != before["train", 18]
    assert ("train", 24) in seen
    assert child.read_config().training.steps == 24
    assert child.read_parent() == (run_copy.name, 15), (
        "a resume keeps what run.toml says of the parent"
    )


def test_the_parent_stays_as_it_is(run_copy: RunFolder) -> None:
    files = {p: p.stat().st_mtime_ns for p in run_copy.path.rglob("*") if p.is_file()}
    train(fork_of(run_copy, 15))
    assert {p: p.stat().st_mtime_ns for p in run_copy.path.rglob("*") if p.is_file()} == files


def test_a_fork_beats_its_own_beginning_not_its_parents_best(run_copy: RunFolder) -> None:
    child = fork_of(run_copy, 15)
    numbers = json.loads((child.checkpoint_path(15) / "training.json").read_text())
    assert numbers["best_val_loss"] == numbers["val_loss"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__layers": 3}, "model.layers"),
        ({"data__corpus": "other.txt"}, "data.corpus"),
        ({"training__steps": 15}, "training.steps"),
    ],
)
def test_what_a_checkpoint_is_made_of_cannot_change(
    run_copy: RunFolder, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        fork_of(run_copy, 15, **changes)
    assert not (run_copy.path.parent / "child").exists()


def test_a_damaged_checkpoint_leaves_no_half_a_fork(run_copy: RunFolder) -> None:
    (run_copy.checkpoint_path(15) / "training.json").write_text("{")
    with pytest.raises(RequestError, match="Cannot copy"):
        fork_of(run_copy, 15)
    assert not (run_copy.path.parent / "child").exists()


def test_the_nearest_checkpoint_is_found(run_copy: RunFolder, tmp_path: Path) -> None:
    steps = [checkpoint.step for checkpoint in run_copy.checkpoints()]
    nearest = fork.nearest_checkpoint(run_copy, 0)
    latest = fork.nearest_checkpoint(run_copy)
    assert nearest is not None and nearest.step == steps[0]
    assert latest is not None and latest.step == steps[-1]
    assert fork.nearest_checkpoint(RunFolder(tmp_path)) is None


# Changes while it trains


def at(step: int) -> object:
    return lambda event: isinstance(event, StepCompleted) and event.step == step


def test_a_change_counts_from_the_next_step_and_is_recorded(
    runs_dir: Path, config: RunConfig
) -> None:
    folder = RunFolder.create(
        runs_dir,
        "a",
        with_settings(config, {"training.schedule": "constant", "training.warmup_steps": 0}),
    )
    change = Change("training.learning_rate", 0.0123)
    seen = train_and(folder, at(8), change)  # type: ignore[arg-type]
    recorded = next(event for event in seen if isinstance(event, SettingChanged))
    assert (recorded.step, recorded.key, recorded.new) == (8, "training.learning_rate", 0.0123)
    rates = {e.step: e.learning_rate for e in seen if isinstance(e, MetricsReported)}
    assert rates[10] == 0.0123 != rates[8]
    assert folder.read_config().training.learning_rate == 0.0123
    assert recorded in folder.read_events()[0]
    assert [c.key for c in folder.state().changes] == ["training.learning_rate"]


def test_more_steps_stretch_the_schedule_from_then_on(runs_dir: Path, config: RunConfig) -> None:
    plain = {"schedule": "linear", "log_every": 1, "warmup_steps": 0, "cooldown": 1.0}
    linear = with_settings(config, {f"training.{key}": value for key, value in plain.items()})
    folder = RunFolder.create(runs_dir, "a", linear)
    seen = train_and(folder, at(9), Change("training.steps", 36))  # type: ignore[arg-type]
    rates = {e.step: e.learning_rate for e in seen if isinstance(e, MetricsReported)}
    peak = linear.training.learning_rate
    assert max(rates) == 36
    assert rates[9] == pytest.approx(peak * (1 - 8 / 18))
    assert rates[10] == pytest.approx(peak * (1 - 9 / 36))
    state = folder.state()
    assert state.started is not None and state.started.steps == 36
    assert state.progress == 1.0


@pytest.mark.parametrize("key", ["training.learning_rate", "training.steps"])
def test_a_change_survives_a_kill_exactly(runs_dir: Path, config: RunConfig, key: str) -> None:
    value = {"training.learning_rate": 0.02, "training.steps": 22}[key]
    rare = with_settings(config, {"training.checkpoint_every": 1000, "training.log_every": 1})

    def run(name: str, killed_at: int | None) -> dict[tuple[str, int], float]:
        folder = RunFolder.create(runs_dir, name, rare)
        control, seen = Control(), list[Event]()
        events = run_training(folder, control)
        for event in events:
            seen.append(event)
            if isinstance(event, StepCompleted) and event.step == 8:
                control.put(Change(key, value))
            if isinstance(event, StepCompleted) and event.step == killed_at:
                events.close()  # type: ignore[attr-defined]
                seen += train(RunFolder.open(folder.path))
                break
        return history(seen)

    assert run("killed", 11) == run("unbroken", None)


def test_a_change_saves_a_checkpoint_first(runs_dir: Path, config: RunConfig) -> None:
    rare = with_settings(config, {"training.checkpoint_every": 1000})
    folder = RunFolder.create(runs_dir, "a", rare)
    seen = train_and(folder, at(8), Change("training.steps", 20))  # type: ignore[arg-type]
    kinds = [e for e in seen if isinstance(e, (CheckpointSaved, SettingChanged)) and e.step == 8]
    assert [type(event) for event in kinds] == [CheckpointSaved, SettingChanged]


@pytest.mark.parametrize(
    "change",
    [
        Change("training.steps", 5),
        Change("training.learning_rate", -1),
        Change("training.learning_rate", float("nan")),
        Change("training.muon_learning_rate", 0.1),
        Change("model.layers", 4),
        Change("nonsense", 4),
    ],
)
def test_a_change_that_cannot_be_is_said_and_does_nothing(
    runs_dir: Path, config: RunConfig, change: Change
) -> None:
    folder = RunFolder.create(runs_dir, "a", config)
    seen = train_and(folder, at(8), change)  # type: ignore[arg-type]
    assert any(isinstance(event, Notice) for event in seen)
    assert not any(isinstance(event, SettingChanged) for event in seen)
    assert history(seen) == history(train(RunFolder.create(runs_dir, "b", config)))


def test_an_abort_ends_without_saving(runs_dir: Path, config: RunConfig) -> None:
    rare = with_settings(config, {"training.checkpoint_every": 5, "training.evaluate_every": 99})
    folder = RunFolder.create(runs_dir, "a", rare)
    train_and(folder, at(8), "abort")
    assert [checkpoint.step for checkpoint in folder.checkpoints()] == [5]


def test_only_what_has_an_effect_can_change() -> None:
    config = tiny_config({"training.max_seconds": 60.0})
    assert changeable(config) == ("training.learning_rate", "training.max_seconds")
    with pytest.raises(RequestError, match="have passed"):
        changed(config, "training.max_seconds", 10.0, step=1, seconds=20.0)
    assert changed(config, "training.max_seconds", 90, step=1, seconds=20.0).training.max_seconds


def test_both_optimizers_take_another_rate(config: RunConfig) -> None:
    from tests.model.helpers import make_trainer

    for optimizer, key in (
        ("adamw", "training.learning_rate"),
        ("muon", "training.muon_learning_rate"),
    ):
        start = with_settings(
            config, {"training.optimizer": optimizer, "model.architecture": "modern"}
        )
        trainer: Trainer = make_trainer(start)
        other = make_trainer(start)
        other.change(with_settings(start, {key: 0.0}))
        for each in (trainer, other):
            for event in each.run():
                if isinstance(event, StepCompleted) and event.step == 2:
                    break
        same = [
            torch.equal(a, b)
            for a, b in zip(trainer.model.parameters(), other.model.parameters(), strict=True)
        ]
        assert not all(same)


# Nothing left to do


def with_spent_budget(run: RunFolder, seconds: float, evaluation: float = 0.0) -> None:
    for checkpoint in run.checkpoints():
        path = checkpoint.path / "training.json"
        numbers = json.loads(path.read_text())
        numbers.update(elapsed_seconds=seconds, evaluation_seconds=evaluation)
        path.write_text(json.dumps(numbers))
        (checkpoint.path / "SHA256SUMS").unlink()


@pytest.mark.parametrize(("spent", "evaluation"), [(30.0, 0.0), (20.0, 0.0), (19.0, 2.0)])
def test_a_fork_whose_time_is_up_is_refused(
    run_copy: RunFolder, spent: float, evaluation: float
) -> None:
    with_spent_budget(run_copy, spent, evaluation)
    with pytest.raises(
        RequestError, match=r"max_seconds is 20; it must be more than the \d+\.\d s"
    ):
        fork_of(run_copy, 15, training__max_seconds=20)
    assert not (run_copy.path.parent / "child").exists()


def test_a_fork_by_hand_whose_time_is_up_leaves_nothing(run_copy: RunFolder) -> None:
    child = fork_of(run_copy, 15, training__max_seconds=20)
    with_spent_budget(child, 30)
    with pytest.raises(RequestError, match=r"budget of 20 s is used up; set training.max_seconds"):
        train(child)
    assert not child.path.exists()


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"training.steps": 12}, "18 steps are done; set training.steps to more"),
        ({"training.max_seconds": 5}, "budget of 5 s is used up; set training.max_seconds to more"),
    ],
)
def test_a_resume_with_nothing_left_is_refused_and_changes_nothing(
    run_copy: RunFolder, changes: dict[str, object], match: str
) -> None:
    with_spent_budget(run_copy, 30)
    log, asked = run_copy.events_path.read_bytes(), (run_copy.path / "run.toml").read_bytes()
    config = with_settings(run_copy.read_config(), changes)
    with pytest.raises(RequestError, match=match):
        list(run_training(run_copy, Control(), config=config))
    assert run_copy.events_path.read_bytes() == log
    assert (run_copy.path / "run.toml").read_bytes() == asked


def test_a_run_that_was_killed_at_its_very_end_is_finished(run_copy: RunFolder) -> None:
    lines = run_copy.events_path.read_bytes().splitlines(keepends=True)
    run_copy.events_path.write_bytes(b"".join(lines[:-1]))
    assert isinstance(train(run_copy)[-1], RunFinished)
