"""The queue with real processes: its keeper and its trainers are killed, and every run ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import MetricsReported
from megatron_model.queue import Queue, start_keeper
from megatron_model.run import lock
from megatron_model.run.about import read_about
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import LOCK_FILE, RunFolder
from megatron_tui.services.queue import revived
from tests.survival.processes import reports, wait_for

pytestmark = pytest.mark.slow


@pytest.fixture
def queue(runs_dir: Path) -> Iterator[Queue]:
    """A queue none of whose processes outlives the test."""
    queue = Queue(runs_dir)
    yield queue
    stop_keeper(queue)
    for entry in queue.entries():
        holder = lock.holder(runs_dir / (entry.run or "-") / LOCK_FILE)
        if holder is not None and holder.alive:
            os.kill(holder.pid, signal.SIGKILL)


def stop_keeper(queue: Queue) -> None:
    holder = lock.holder(queue.keeper_lock)
    if queue.kept and holder is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            keeper = psutil.Process(holder.pid)
            keeper.kill()
            keeper.wait(10)


def start(queue: Queue) -> subprocess.Popen[bytes]:
    keeper = start_keeper(queue)
    assert keeper is not None
    wait_for(lambda: queue.kept, "the keeper")
    return keeper


def states(queue: Queue) -> list[str]:
    return [entry.state for entry in sorted(queue.entries(), key=lambda each: each.id)]


def folder_of(queue: Queue, number: int) -> RunFolder:
    wait_for(lambda: queue.entry(number).run, f"entry {number} to begin")
    return RunFolder(queue.runs_dir / queue.entry(number).run)


def reported_steps(folder: RunFolder) -> list[int]:
    return [e.step for e in folder.read_events()[0] if isinstance(e, MetricsReported)]


def pause(folder: RunFolder) -> None:
    """Have the run wait in the middle."""
    wait_for(lambda: folder.is_active() and reports(folder), f"{folder.name} to train")
    CommandFolder(folder.path).send("pause")
    wait_for(lambda: folder.state().status == "paused", f"{folder.name} to pause")


def test_the_keeper_is_killed_and_a_corpus_goes_and_all_the_others_are_trained(
    queue: Queue, config: RunConfig, tmp_path: Path
) -> None:
    gone = tmp_path / "gone.txt"
    gone.write_bytes(Path(config.data.corpus).read_bytes())
    long = with_settings(config, {"training.steps": 20_000, "training.log_every": 1})
    queue.add(long, name="first", tags=("night",))
    queue.add(with_settings(config, {"data.corpus": str(gone)}), name="second")
    queue.add(config, name="third")
    queue.add(config, name="third")
    gone.unlink()
    keeper = start(queue)
    first = folder_of(queue, 1)
    pause(first)
    trainer = lock.holder(first.path / LOCK_FILE)
    keeper.kill()
    keeper.wait()
    assert states(queue) == ["running", "waiting", "waiting", "waiting"]
    assert first.is_active(), "the trainer goes on"

    again = start(queue)
    assert start_keeper(queue) is None, "there is one"
    second_keeper = subprocess.run(
        [sys.executable, "-m", "megatron_model", "queue", "keep"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "at work already" in second_keeper.stderr
    found = lock.holder(first.path / LOCK_FILE)
    assert found == trainer, "it was adopted, not started again"
    assert states(queue)[1:] == ["waiting"] * 3, "one at a time on a device"
    CommandFolder(first.path).send("stop")
    again.wait(120)
    assert states(queue) == ["done", "failed", "done", "done"]
    assert queue.entry(1).problem.startswith("It was stopped at step")
    assert "gone.txt" in queue.entry(2).problem
    assert not (queue.runs_dir / "second").exists()
    assert [queue.entry(number).run for number in (3, 4)] == ["third", "third-2"]
    assert read_about(first).tags == ("night",)
    for name in ("first", "third", "third-2"):
        steps = reported_steps(RunFolder(queue.runs_dir / name))
        assert steps == sorted(set(steps)), "no step was trained twice"
        assert steps
    assert RunFolder(queue.runs_dir / "third-2").state().status == "finished"


@pytest.mark.parametrize("choice", ["resume", "mark"])
def test_a_trainer_and_the_keeper_are_killed_at_once_as_by_a_power_cut(
    queue: Queue, config: RunConfig, choice: str
) -> None:
    changes = {"training.steps": 300, "training.checkpoint_every": 50, "training.log_every": 1}
    long = with_settings(config, changes)
    queue.add(long, name="first", on_interruption=choice)  # type: ignore[arg-type]
    keeper = start(queue)
    first = folder_of(queue, 1)
    pause(first)
    wait_for(lambda: queue.entry(1).identity, "the entry to know its run")
    saved = first.latest_checkpoint()
    trainer = lock.holder(first.path / LOCK_FILE)
    assert trainer is not None
    keeper.kill()
    os.kill(trainer.pid, signal.SIGKILL)
    keeper.wait()
    wait_for(lambda: not first.is_active(), "the trainer to be gone")
    assert revived(queue.runs_dir) == "The queue goes on: 1 run to train."
    wait_for(lambda: queue.kept, "the workbench to have started a keeper")
    assert revived(queue.runs_dir) == "", "there is one now"
    wait_for(lambda: not queue.kept, "the end of the queue")
    entry = queue.entry(1)
    assert entry.run == "first"
    if choice == "mark":
        assert entry.state == "failed"
        assert entry.problem.startswith("It was interrupted")
        queue.retry(1)
        start(queue).wait(120)
        entry = queue.entry(1)
    assert entry.state == "done", entry.problem
    state = first.state()
    assert (state.status, state.step) == ("finished", 300)
    if saved is not None:
        assert reported_steps(first).count(saved.step) == 1, "what was saved is not trained again"


def test_a_trainer_alone_is_killed_and_the_keeper_goes_on_with_its_run(
    queue: Queue, config: RunConfig
) -> None:
    queue.add(with_settings(config, {"training.steps": 300}), name="first")
    queue.add(config, name="second")
    keeper = start(queue)
    first = folder_of(queue, 1)
    pause(first)
    trainer = lock.holder(first.path / LOCK_FILE)
    assert trainer is not None
    begun = time.time()
    os.kill(trainer.pid, signal.SIGKILL)
    keeper.wait(120)
    assert states(queue) == ["done", "done"]
    assert first.state().status == "finished"
    assert first.state().last_time >= begun
