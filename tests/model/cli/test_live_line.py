"""The line at the foot of a terminal while a run trains, on real ptys, read by an emulator."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import struct
import termios
from collections.abc import Iterator
from pathlib import Path

import pyte
import pytest

from megatron_model.cli import live_line
from megatron_model.cli.live_line import LiveLine, line_of_state
from megatron_model.config.fields import config_to_toml
from megatron_model.events.schema import (
    CorpusProgress,
    Evaluated,
    Event,
    MetricsReported,
    PhaseChanged,
    RunPaused,
    RunStarted,
    StepCompleted,
    WorkProgress,
)
from megatron_model.events.state import RunState
from megatron_model.run.folder import RunFolder
from tests.model.helpers import tiny_config
from tests.survival.processes import Terminal, wait_for, wait_for_reports

END = b"\x18"  # cancel: nothing that is ever drawn


def started(**changes: object) -> RunStarted:
    values: dict[str, object] = {
        "step": 0, "name": "a", "corpus": "a.txt", "characters": 1000, "vocabulary_size": 20,
        "parameters": 1000, "steps": 1000, "device": "cpu",
    }  # fmt: skip
    return RunStarted(**{**values, **changes})  # type: ignore[arg-type]


def report(step: int, loss: float = 2.0) -> MetricsReported:
    return MetricsReported(
        step=step,
        train_loss=loss,
        learning_rate=0.1,
        gradient_norm=1.0,
        tokens_per_second=12_345.0,
        elapsed_seconds=step / 10,
    )


def a_run() -> list[Event]:
    validated = Evaluated(step=200, val_loss=1.75, bits_per_character=2.5, elapsed_seconds=20.0)
    return [started(), report(100), report(200, 1.5), validated, report(300, 1.25)]


def fold(events: list[Event]) -> RunState:
    state = RunState()
    state.apply_all(events)
    return state


def test_the_line_says_how_far_the_run_is() -> None:
    assert line_of_state(fold(a_run()), 100) == (
        "step 300 of 1,000  loss 1.2500  best 1.7500  12,345 characters/s  1m 10s left"
    )


@pytest.mark.parametrize(
    ("width", "text"),
    [
        (60, "step 300 of 1,000  loss 1.2500  best 1.7500"),
        (45, "step 300 of 1,000  loss 1.2500  best 1.7500"),
        (30, "step 300 of 1,000  loss 1.2500"),
        (20, "step 300 of 1,000"),
        (5, ""),
        (-1, ""),
    ],
)
def test_a_narrow_terminal_gets_what_says_most(width: int, text: str) -> None:
    assert line_of_state(fold(a_run()), width) == text


def test_other_work_than_training_is_named() -> None:
    preparing = [PhaseChanged(step=0, phase="preparing"), CorpusProgress(step=0, done=1, total=4)]
    assert line_of_state(fold(preparing), 80) == "preparing 25%"
    validating = [PhaseChanged(step=300, phase="evaluating"), WorkProgress(step=300, share=0.5)]
    text = line_of_state(fold([*a_run(), *validating]), 80)
    assert text.startswith("step 300 of 1,000  evaluating 50%  loss")


def test_a_time_budget_counts_in_place_of_steps() -> None:
    run = [started(max_seconds=60.0), report(100), report(300)]
    assert line_of_state(fold(run), 25) == "step 300, 50%"
    assert line_of_state(fold(run), 100).endswith("30s left")


@pytest.fixture
def pty(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, int]]:
    """A terminal of 60 columns: its master, which holds what was drawn, and its slave."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(live_line, "SECONDS", 0.0)
    master, slave = os.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 10, 60, 0, 0))
    yield master, slave
    for descriptor in (master, slave):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def screen_of(pty: tuple[int, int]) -> list[str]:
    """Return what stands on the screen, once all that was drawn so far has arrived."""
    master, slave = pty
    os.write(slave, END)
    drawn = b""
    while not drawn.endswith(END):
        drawn += os.read(master, 1 << 16)
    screen = pyte.Screen(60, 10)
    pyte.ByteStream(screen).feed(drawn.removesuffix(END))
    return [line.rstrip() for line in screen.display if line.strip()]


def test_one_line_is_written_over_and_what_is_printed_stands_above(pty: tuple[int, int]) -> None:
    _, slave = pty
    live = LiveLine(slave)
    for event in a_run():
        live.take(event)
        live.take(StepCompleted(step=event.step, elapsed_seconds=event.step / 10))
    live.clear()
    os.write(slave, b"step 200 validation\n")
    live.take(StepCompleted(step=301, elapsed_seconds=30.1))
    assert screen_of(pty) == [
        "step 200 validation",
        "step 301 of 1,000  loss 1.2500  best 1.7500",
    ]
    live.take(StepCompleted(step=302, elapsed_seconds=30.2))
    live.clear()
    assert screen_of(pty) == []


def test_what_may_last_is_drawn_at_once(
    pty: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_line, "SECONDS", 3600.0)
    live = LiveLine(pty[1])
    for event in [*a_run(), StepCompleted(step=301, elapsed_seconds=30.1), RunPaused(step=301)]:
        live.take(event)
    assert screen_of(pty) == ["step 301 of 1,000  paused  loss 1.2500  best 1.7500"]


@pytest.mark.parametrize("term", ["dumb", ""])
def test_a_terminal_that_cannot_is_left_alone(
    pty: tuple[int, int], monkeypatch: pytest.MonkeyPatch, term: str
) -> None:
    monkeypatch.setenv("TERM", term)
    live = LiveLine(pty[1])
    for event in a_run():
        live.take(event)
    assert not live.on
    assert screen_of(pty) == []


def test_what_is_no_terminal_is_left_alone() -> None:
    read, write = os.pipe()
    live = LiveLine(write)
    for event in a_run():
        live.take(event)
    assert not live.on
    os.close(write)
    assert os.read(read, 10) == b""
    os.close(read)


def test_a_terminal_that_takes_nothing_does_not_hold_up_the_run(pty: tuple[int, int]) -> None:
    live = LiveLine(pty[1])
    live.take(started())
    termios.tcflow(pty[1], termios.TCOOFF)  # what ctrl+s does
    for step in range(1, 5000):
        live.take(StepCompleted(step=step, elapsed_seconds=step / 10))
    termios.tcflow(pty[1], termios.TCOON)
    live.take(StepCompleted(step=5000, elapsed_seconds=500.0))
    (line,) = screen_of(pty)
    assert line.startswith("step 5,000 of 1,000")


def test_a_terminal_that_hangs_up_ends_the_line(pty: tuple[int, int]) -> None:
    live = LiveLine(pty[1])
    live.take(started())
    os.close(pty[0])
    for event in a_run():
        live.take(event)
    live.clear()


# A whole run in a terminal


@pytest.fixture
def long_run(tmp_path: Path, corpus: Path, runs_dir: Path) -> Iterator[tuple[Terminal, RunFolder]]:
    settings = tmp_path / "tiny.toml"
    changes = {"training.steps": 10_000_000, "training.evaluate_every": 10_000_000}
    more = {"training.checkpoint_every": 10_000_000}
    settings.write_text(config_to_toml(tiny_config({**changes, **more})), encoding="utf-8")
    words = ["train", str(corpus), "--config", str(settings), "--name", "long"]
    terminal = Terminal("-m", "megatron_model", *words, "--runs-dir", str(runs_dir))
    yield terminal, RunFolder(runs_dir / "long")
    terminal.kill()


def shown(terminal: Terminal) -> list[str]:
    screen = pyte.Screen(120, 40)
    pyte.ByteStream(screen).feed(terminal.output)
    return [line.rstrip() for line in screen.display if line.strip()]


@pytest.mark.slow
def test_a_run_in_a_terminal_is_followed_in_one_line(
    long_run: tuple[Terminal, RunFolder],
) -> None:
    terminal, folder = long_run
    wait_for(lambda: "loss" in shown(terminal)[-1] if terminal.output else False, "the line")
    wait_for_reports(folder, 5)
    lines = shown(terminal)
    assert lines[0].startswith("run long in ")
    assert lines[1].startswith("training began")
    assert len(lines) == 3, lines
    assert "of 10,000,000  loss" in lines[2]
    terminal.press("\x03")  # ctrl+c
    assert terminal.wait() == 128 + signal.SIGINT
    wait_for(lambda: b"weights: " in terminal.output, "the last line")
    lines = shown(terminal)
    assert lines[-1].startswith("weights: ")
    assert sum("of 10,000,000" in line for line in lines) == 0, lines
    assert any(line.startswith("stopped at step") for line in lines)


@pytest.mark.slow
def test_a_run_whose_terminal_is_closed_goes_on(long_run: tuple[Terminal, RunFolder]) -> None:
    terminal, folder = long_run
    terminal.see("of 10,000,000  loss")
    terminal.close()
    log = folder.path / "trainer.log"
    wait_for(log.exists, "the loss of the terminal to be heard of")
    wait_for_reports(folder, 5)
    os.kill(terminal.pid, signal.SIGTERM)
    assert terminal.wait() == 128 + signal.SIGTERM
    assert folder.latest_checkpoint() is not None
    assert "Traceback" not in log.read_text()
