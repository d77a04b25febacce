"""Slow links: the redraw rate follows what the terminal takes, is seen, and is chosen by a key."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from megatron_model.config.fields import RunConfig
from megatron_model.run.folder import RunFolder
from megatron_tui.terminal.connection import FASTEST, SLOWEST, Connection
from megatron_tui.terminal.output import MeteredFile
from megatron_tui.training.screen import TrainingScreen
from tests.tui.conftest import GatedTrainer, make_app, make_workbench, until
from tests.tui.training.helpers import WIDE, Shown, live, report, started


class Clock:
    """A clock that is put forward by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_local_terminal_is_drawn_at_full_rate_whatever_it_takes(clock: Clock) -> None:
    line = Connection(remote=False, clock=clock)
    line.wrote(4000, 3.0)
    assert line.interval == FASTEST
    assert not line.asks()
    assert line.words() == ""


def test_ssh_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    assert not Connection.of_terminal().remote
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 5000 10.0.0.2 22")
    assert Connection.of_terminal().remote


def test_the_rate_follows_the_answers_of_the_terminal(clock: Clock) -> None:
    line = Connection(remote=True, clock=clock)
    assert line.asks() and not line.asks()  # one question at a time
    clock.now += 0.05
    line.answered()
    assert line.interval == FASTEST
    assert line.asks()
    clock.now += 0.8
    assert line.interval == pytest.approx(1.6)  # no answer yet: it waits longer and longer
    clock.now += 10
    assert line.interval == SLOWEST
    line.answered()
    for expected in (SLOWEST, SLOWEST, 5.0, 2.7, 1.35, 0.675, 0.3375, FASTEST):
        assert line.interval == pytest.approx(expected, rel=0.01)
        line.asks()
        line.answered()


def test_without_answers_the_time_to_write_counts(clock: Clock) -> None:
    line = Connection(remote=True, clock=clock)
    line.wrote(1000, 1.0)
    assert line.interval == 2.0
    for _ in range(10):
        line.wrote(1000, 0.0)
    assert line.interval == FASTEST


def test_drawing_is_due_once_an_interval(clock: Clock) -> None:
    line = Connection(remote=False, clock=clock)
    line.rate = 2.0
    due = []
    for _ in range(12):
        due.append(line.due())
        clock.now += 0.25
    assert due == [True, False] * 6


def test_traffic_is_that_of_the_last_seconds(clock: Clock) -> None:
    line = Connection(remote=True, clock=clock)
    for _ in range(8):
        line.wrote(6000, 0.0)
        clock.now += 0.5
    assert line.bytes_per_second == 12_000
    assert line.words() == "drawn 4/s, 12 KB/s"
    line.rate = 0.5
    assert line.words() == "drawn every 2 s, 12 KB/s"
    clock.now += 60
    assert line.bytes_per_second == 0
    assert line.words() == "drawn every 2 s, under 1 KB/s"


def test_what_goes_to_the_terminal_is_counted_byte_by_byte() -> None:
    reading, writing = os.pipe()
    heard: list[tuple[int, float]] = []
    with MeteredFile(writing, lambda count, seconds: heard.append((count, seconds))) as file:
        file.write("né\n".encode())
    with os.fdopen(reading, "rb") as stream:
        assert stream.read() == "né\n".encode()
    assert heard[0][0] == 4 and heard[0][1] >= 0


def test_counting_and_asking_happen_on_different_threads(clock: Clock) -> None:
    line = Connection(remote=True, clock=clock)
    writers = [
        threading.Thread(target=lambda: [line.wrote(1, 0.0) for _ in range(500)]) for _ in range(4)
    ]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        line.asks()
        line.answered()
    assert line.bytes_per_second == 2000 / 4


async def test_the_dot_changes_the_rate_which_is_seen_and_remembered(runs_dir: Path) -> None:
    events = [started(), *(report(step) for step in range(10, 400, 10))]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(3)
        await until(lambda: shown.run.standing == "running")
        assert "drawn" not in shown.progress
        for words in ("drawn 4/s", "drawn 2/s", "drawn 1/s", "drawn every 2 s"):
            await shown.press(".")
            await until(lambda words=words: words in shown.progress)  # type: ignore[misc]
        assert shown.app.workbench.preferences.get("redraws", 0.0) == 0.5
        await shown.press(".")
        await until(lambda: "drawn" not in shown.progress)


async def test_a_terminal_that_takes_its_time_gets_fewer_pictures(
    runs_dir: Path, clock: Clock
) -> None:
    events = [started(), *(report(step) for step in range(10, 400, 10))]
    trainer = GatedTrainer(events)
    workbench = make_workbench(runs_dir, trainer)
    connection = workbench.connection = Connection(remote=True, clock=clock)
    app = make_app(workbench)
    async with app.run_test(size=WIDE) as pilot:
        app._train(RunFolder.create(runs_dir, "a", RunConfig()))
        await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
        shown = Shown(app, pilot)
        trainer.release(2)
        await until(lambda: shown.run.state.step == 10)
        clock.now += 10
        await until(lambda: connection._drawn == clock.now)
        await until(lambda: "step 10 of" in shown.header)
        assert connection.asks()  # a picture is on its way, and the terminal does not answer
        clock.now += 2.0
        trainer.release(2)
        await until(lambda: shown.run.state.step == 30)
        assert "step 10 of" in shown.header
        connection.answered()
        clock.now += 10
        await until(lambda: "step 30 of" in shown.header)
        app.workbench.training.stop()
        trainer.release(len(events))
        await until(app.workbench.training.idle.is_set)
