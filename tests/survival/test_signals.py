"""Headless trainers: ended by signals with everything saved, and not by the loss of a terminal."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from megatron_model.events.schema import RunFinished, RunStarted
from megatron_model.run import lock as run_lock
from megatron_model.run.folder import LOCK_FILE
from tests.survival.processes import (
    Terminal,
    last_hand_over,
    make_run,
    start_trainer,
    stop,
    wait_for,
    wait_for_reports,
)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["int", "term"])
def test_signals_again_and_again_do_not_break_the_save(
    runs_dir: Path, corpus: Path, number: signal.Signals
) -> None:
    folder = make_run(runs_dir, corpus)
    with start_trainer(folder) as trainer:
        wait_for_reports(folder)
        while trainer.poll() is None:
            trainer.send_signal(number)
        assert trainer.returncode == 128 + number
    finished = folder.read_events()[0][-1]
    assert isinstance(finished, RunFinished)
    latest = folder.latest_checkpoint()
    assert latest is not None
    assert latest.step == finished.step


def test_a_headless_trainer_goes_on_without_its_terminal(runs_dir: Path, corpus: Path) -> None:
    folder = make_run(runs_dir, corpus)
    terminal = Terminal("-m", "megatron_model", "train", "--resume", str(folder.path))
    try:
        wait_for_reports(folder)
        terminal.close()
        wait_for_reports(folder, 3)
        holder = run_lock.holder(folder.path / LOCK_FILE)
        assert holder is not None
        assert holder.pid == terminal.pid
        stop(folder)
        assert terminal.wait() == 0
    finally:
        terminal.kill()


def test_a_trainer_is_taken_over_and_one_that_is_told_to_stop_is_not_gone_on_with(
    runs_dir: Path, corpus: Path
) -> None:
    folder = make_run(runs_dir, corpus)
    with start_trainer(folder) as first:
        wait_for_reports(folder)
        asked_at = folder.state().step
        with start_trainer(folder, "--take-over") as second:
            assert first.wait() == 0
            wait_for_reports(folder)
            # The first went on while the second loaded what it needs.
            assert last_hand_over(folder) > asked_at
            with start_trainer(folder, "--take-over") as third:
                os.kill(second.pid, signal.SIGTERM)
                assert second.wait() == 128 + signal.SIGTERM
                # Either it came in time and was let go, or it finds the run ended and leaves it.
                wait_for(lambda: third.poll() is not None or folder.is_active(), "the third")
                if third.poll() is None:
                    third.terminate()
                assert third.wait() in (0, 2, 143)
    events = folder.read_events()[0]
    assert isinstance(events[-1], RunFinished)
    assert 2 <= sum(isinstance(event, RunStarted) for event in events) <= 3
