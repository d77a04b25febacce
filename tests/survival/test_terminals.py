"""A run outlives its terminal: closed, stalled, left or told to end, with real ptys and signals."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.events.schema import RunFinished, RunHandedOver
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import RunFolder
from megatron_tui.textual_patches.chunks import HAND_SECONDS
from tests.survival.processes import (
    gaps,
    hand_overs,
    make_run,
    stop,
    training_workbench,
    wait_for,
    wait_for_reports,
    workbench,
)

pytestmark = pytest.mark.slow


LEFT_ALTERNATE_SCREEN = "\x1b[?1049l"


@pytest.fixture
def run(runs_dir: Path, corpus: Path) -> Iterator[RunFolder]:
    """A run that does not end by itself, and whose trainer does not outlive the test."""
    folder = make_run(runs_dir, corpus)
    yield folder
    stop(folder)


def test_a_closed_terminal_leaves_the_run_going_and_another_one_finds_it(
    run: RunFolder, runs_dir: Path
) -> None:
    with training_workbench(runs_dir, run) as terminal:
        terminal.close()
        assert terminal.wait() == 128 + signal.SIGHUP
    assert hand_overs(run) == 1
    wait_for_reports(run, 2)
    assert len(gaps(run.read_events()[0])) == 1
    # Found in a new terminal: attached to, commanded, and taken back.
    with workbench(runs_dir, run.name) as terminal:
        terminal.see("Take back")
        terminal.press(" ")
        wait_for(lambda: run.state().status == "paused", "the pause")
        terminal.press(" ")
        wait_for(lambda: run.state().status == "running", "the run to go on")
        terminal.press("d")
        wait_for(lambda: hand_overs(run) == 2, "the run to be let go")
        wait_for_reports(run)
        os.kill(terminal.pid, signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
        terminal.see(LEFT_ALTERNATE_SCREEN)
    assert not run.is_active()
    finished = run.read_events()[0][-1]
    assert isinstance(finished, RunFinished)
    latest = run.latest_checkpoint()
    assert latest is not None
    assert latest.step == finished.step


def test_a_stalled_terminal_is_given_up_and_the_run_goes_on(run: RunFolder, runs_dir: Path) -> None:
    with training_workbench(runs_dir, run, {"MEGATRON_STALL_SECONDS": "3"}) as terminal:
        terminal.stall()
        # What is on its way to the terminal fills up the sooner, the more there is to draw.
        terminal.press("\x1b[15~\x1bOR" * 40)  # F5, F3
        assert terminal.wait() == 128 + signal.SIGHUP
    assert hand_overs(run) == 1
    wait_for_reports(run)


def test_leaving_while_training_leaves_the_run_going(run: RunFolder, runs_dir: Path) -> None:
    with training_workbench(runs_dir, run) as terminal:
        terminal.press("\x11")  # ctrl+q
        terminal.see("Leave it running")
        terminal.press("l")
        assert terminal.wait() == 0
        terminal.see(LEFT_ALTERNATE_SCREEN)
    assert hand_overs(run) == 1
    wait_for_reports(run)


def test_a_paused_run_stays_paused_when_it_is_handed_over(run: RunFolder, runs_dir: Path) -> None:
    with training_workbench(runs_dir, run) as terminal:
        terminal.press(" ")
        wait_for(lambda: run.state().status == "paused", "the pause")
        terminal.press("d")
        wait_for(lambda: hand_overs(run) == 1, "the hand-over")
        terminal.output = b""  # what it shows from here on is what it found out since
        wait_for(lambda: run.state().status == "paused" and run.is_active(), "the pause again")
        handed = next(e for e in run.read_events()[0] if isinstance(e, RunHandedOver))
        assert run.state().step == handed.step
        terminal.see("‖")  # in the header: the screen knows it too
        terminal.press(" ")
        wait_for_reports(run)


def test_a_workbench_that_is_killed_loses_only_what_was_not_saved(
    run: RunFolder, runs_dir: Path
) -> None:
    with training_workbench(runs_dir, run) as terminal:
        CommandFolder(run.path).send("save")
        wait_for(lambda: run.latest_checkpoint() is not None, "a checkpoint")
        os.kill(terminal.pid, signal.SIGKILL)
        assert terminal.wait() == -signal.SIGKILL
    assert not run.is_active()
    assert run.status(run.state()) == "interrupted"


@pytest.mark.slow
def test_a_paste_that_is_not_announced_leaves_the_run_alone(run: RunFolder, runs_dir: Path) -> None:
    with training_workbench(runs_dir, run) as terminal:
        terminal.press("dS\rs\ry\rqs\rSally sells data\r")
        terminal.see("Keys came all at once")
        wait_for_reports(run, 2)
        assert hand_overs(run) == 0
        terminal.press("\x1b")  # whatever it opened
        terminal.see("Stop")
        time.sleep(10 * HAND_SECONDS)  # an escape and a letter close together are one key
        terminal.press("d")
        wait_for(lambda: hand_overs(run) == 1, "the hand-over")
