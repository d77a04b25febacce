"""A run ends by itself where its validation loss gets no better, or is low enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_model.config.fields import with_settings
from megatron_model.events.schema import Evaluated, RunFinished, StepCompleted
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_model.run.fork import fork_run, nearest_checkpoint
from megatron_model.run.runner import run_training
from megatron_model.util.errors import RequestError
from tests.model.helpers import TEXT, history, tiny_config, train, train_and


def a_run(tmp_path: Path, name: str, **changes: object) -> RunFolder:
    """Return a run of 60 steps that is evaluated at every second one."""
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    asked = {"data.corpus": str(text), "training.steps": 60, "training.evaluate_every": 2}
    settings = {f"training.{key}": value for key, value in changes.items()}
    return RunFolder.create(tmp_path / "runs", name, tiny_config({**asked, **settings}))


def losses(folder: RunFolder) -> list[float]:
    return [event.val_loss for event in folder.read_events()[0] if isinstance(event, Evaluated)]


def end(folder: RunFolder) -> RunFinished:
    last = folder.read_events()[0][-1]
    assert isinstance(last, RunFinished)
    return last


def test_patience_ends_a_run_that_learns_nothing(tmp_path: Path) -> None:
    folder = a_run(tmp_path, "still", patience=3, learning_rate=0)
    train(folder)
    assert (end(folder).reason, end(folder).step) == ("patience", 8)
    assert len(set(losses(folder))) == 1
    assert folder.status(folder.state()) == "finished"
    assert folder.state().best_step == 2


def test_a_run_that_learns_is_let_alone_unless_it_learns_too_little(tmp_path: Path) -> None:
    train(a_run(tmp_path, "whole", patience=3, steps=20, learning_rate=3e-3))
    whole = RunFolder(tmp_path / "runs" / "whole")
    assert (end(whole).reason, end(whole).step) == ("completed", 20)
    slow = a_run(tmp_path, "slow", patience=3, steps=20, learning_rate=3e-3, min_delta=50)
    train(slow)
    assert (end(slow).reason, end(slow).step) == ("patience", 8)
    assert losses(slow) == losses(whole)[:4]


def test_a_target_ends_a_run_that_reached_it(tmp_path: Path) -> None:
    train(a_run(tmp_path, "whole", steps=20, learning_rate=3e-3))
    found = losses(RunFolder(tmp_path / "runs" / "whole"))
    assert found == sorted(found, reverse=True)
    folder = a_run(tmp_path, "target", steps=20, learning_rate=3e-3, target_loss=found[4] + 1e-6)
    train(folder)
    assert (end(folder).reason, end(folder).step) == ("target", 10)


def test_the_count_survives_a_stop_and_is_that_of_an_unbroken_run(tmp_path: Path) -> None:
    changes = {"patience": 4, "min_delta": 0.05, "learning_rate": 3e-3}
    whole, broken = (a_run(tmp_path, name, **changes) for name in ("whole", "broken"))
    train(whole)
    assert end(whole).reason == "patience"
    last = end(whole).step - 3
    train_and(broken, lambda event: isinstance(event, StepCompleted) and event.step == last, "stop")
    assert end(broken).reason == "stopped"
    train(broken)
    assert (end(broken).reason, end(broken).step) == (end(whole).reason, end(whole).step)
    assert history(broken.read_events()[0]) == history(whole.read_events()[0])


def test_a_fork_of_a_run_that_was_enough_counts_anew(tmp_path: Path) -> None:
    parent = a_run(tmp_path, "still", patience=2, learning_rate=0)
    train(parent)
    checkpoint = nearest_checkpoint(parent)
    assert checkpoint is not None
    assert checkpoint.step == end(parent).step == 6
    fork = fork_run(parent, checkpoint, "fork", parent.read_config())
    train(fork)
    assert (end(fork).reason, end(fork).step) == ("patience", 10)
    low = with_settings(parent.read_config(), {"training.target_loss": 50})
    with pytest.raises(RequestError, match=r"target_loss is 50; it must be less than the \d"):
        fork_run(parent, checkpoint, "low", low)
    assert not (tmp_path / "runs" / "low").exists()


def test_going_on_needs_more_patience(tmp_path: Path) -> None:
    folder = a_run(tmp_path, "still", patience=2, learning_rate=0)
    train(folder)
    assert end(folder).step == 6
    config = folder.read_config()
    for patience, allowed in ((1, False), (2, False), (4, True)):
        changed = tiny_config(
            {"data.corpus": config.data.corpus, "training.steps": 60, "training.evaluate_every": 2}
            | {"training.learning_rate": 0, "training.patience": patience}
        )
        if allowed:
            for _ in run_training(folder, Control(), config=changed):
                pass
        else:
            with pytest.raises(RequestError, match="set training.patience to more, or to 0"):
                list(run_training(folder, Control(), config=changed))
    assert (end(folder).reason, end(folder).step) == ("patience", 10)
