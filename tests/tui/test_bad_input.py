"""What bad input gets: odd numbers, endless logs, torn lines, folders that go, two at one run."""

from __future__ import annotations

import asyncio
import math
import shutil
from pathlib import Path

import pytest

from megatron_model.events.schema import Evaluated, Event, encode_event
from megatron_model.run.folder import RunFolder
from megatron_tui.runs.listing import KnownRuns
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.services import run_log
from megatron_tui.services.training import TrainingService
from megatron_tui.training.screen import TrainingScreen
from tests.tui.conftest import GatedTrainer, copy_recorded, make_app, make_workbench, until
from tests.tui.training.helpers import WIDE, Shown, live, recorded, report, started


@pytest.mark.parametrize(
    "values",
    [
        [math.nan] * 30,
        [math.inf, -math.inf] * 15,
        [2.0] * 10 + [2e10] + [2.0] * 19,
        [0.0, -1.0, 1e-300, 1e300] * 8,
        [1e-10 * 10**i for i in range(30)],
    ],
    ids=["nan", "infinite", "ten-orders", "at-or-below-zero", "all-sizes"],
)
async def test_odd_numbers_are_drawn_on_every_scale(runs_dir: Path, values: list[float]) -> None:
    events: list[Event] = [started()]
    for step, value in enumerate(values, 1):
        odd = {"gradient_norm": value, "learning_rate": value, "tokens_per_second": value}
        events.append(report(10 * step, value, **odd))
        events.append(
            Evaluated(step=10 * step, val_loss=value, bits_per_character=value, elapsed_seconds=1.0)
        )
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(len(events))
        await until(lambda: shown.run.state.step == 10 * len(values))
        for keys in ("y", "u", "u", "m", "m", "x", "h", "]", "n"):
            await shown.press(keys)
        assert len(shown.loss.text.split("\n")) == shown.loss.size.height
        assert "step" in shown.header


async def test_a_torn_and_a_corrupt_line_cost_only_themselves(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    lines[5:5] = [b'{"event":"step_fin\n', b"\xff\x00\n", b"[]\n", b"{}\n"]
    folder.events_path.write_bytes(b"".join(lines) + b'{"event":"evalu')
    app = make_app(make_workbench(runs_dir), run=folder)
    async with app.run_test(size=WIDE) as pilot:
        shown = Shown(app, pilot)
        await until(lambda: isinstance(app.screen, TrainingScreen) and "┤" in shown.loss.text)
        assert shown.run.state.best_step == 400
        assert len(shown.run.state.train_loss) > 15


async def test_a_long_log_is_on_show_at_once_and_read_behind_it(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "LONG_LOG", 40_000)
    gate = asyncio.Event()
    loop = asyncio.get_running_loop()
    whole = RunFolder.fold

    def slow(folder: RunFolder) -> object:
        asyncio.run_coroutine_threadsafe(gate.wait(), loop).result()
        return whole(folder)

    monkeypatch.setattr(RunFolder, "fold", slow)
    more = [started(), *(report(10 * i, 3.0 - i / 900) for i in range(1, 1201))]
    async with recorded(runs_dir, more=tuple(more)) as shown:
        assert shown.run.state.step == 12_000
        assert "reading the log" in shown.progress
        assert 0 < len(shown.run.state.train_loss) < 1000
        await shown.press("h", "]")
        gate.set()
        await until(lambda: not shown.run.reading and len(shown.run.state.train_loss) == 1200)
        await until(lambda: "reading" not in shown.progress)
        assert not shown.app.workbench.training.busy


def test_the_state_of_a_million_steps_is_small(tmp_path: Path) -> None:
    service = TrainingService()
    folder = copy_recorded(tmp_path)
    with folder.events_path.open("wb") as log:
        log.write(encode_event(started(steps=1_000_000)))
        for i in range(1, 10_001):
            log.write(encode_event(report(100 * i, 4.0 if i == 5000 else 2.0)))
    run = service.show(folder)
    assert run.state.step == 1_000_000
    assert len(run.state.train_loss) < 6000
    assert 4.0 in run.state.train_loss.values  # the spike survives


def test_what_was_read_of_a_run_is_not_read_again(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, known = copy_recorded(runs_dir), KnownRuns()
    first = known.state(folder)
    assert first.step == 437
    asked: list[int] = []
    read = RunFolder.read_events
    monkeypatch.setattr(
        RunFolder, "read_events",
        lambda folder, offset=0, limit=-1: (asked.append(offset), read(folder, offset, limit))[1],
    )  # fmt: skip
    size = folder.events_path.stat().st_size
    with folder.events_path.open("ab") as log:
        log.write(encode_event(report(440, 1.0)))
    assert known.state(folder).step == 440
    assert asked == [size]
    # A log that was replaced is another one.
    shutil.copy(folder.events_path, folder.path / "copy")
    folder.events_path.unlink()
    (folder.path / "copy").rename(folder.events_path)
    assert known.state(folder).step == 440
    assert known.state(folder) is not first
    folder.events_path.write_bytes(b"")
    assert known.state(folder).status == "new"
    folder.events_path.unlink()
    assert known.state(folder).status == "new"


async def test_a_run_deleted_under_the_screen(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        shutil.rmtree(shown.run.folder.path)
        for key in ("h", "]", "y", "m", "F", "E"):
            await shown.press(key)
        await shown.press("c")
        await until(lambda: shown.app.screen.is_modal)
        await shown.press("escape", "f5")
        await until(lambda: isinstance(shown.app.screen, RunsScreen) and not shown.app.screen.rows)
        await shown.press("f3")
        await until(lambda: isinstance(shown.app.screen, TrainingScreen))
        await shown.press("0")
        assert "┤" in shown.loss.text  # what was read of it stays


async def test_a_run_deleted_while_another_process_trains_it(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(lines[:-1]))
    with folder.lock():
        app = make_app(make_workbench(runs_dir), run=folder)
        async with app.run_test(size=WIDE) as pilot:
            shown = Shown(app, pilot)
            await until(lambda: isinstance(app.screen, TrainingScreen) and shown.run.active)
            shutil.rmtree(folder.path)
            await until(lambda: not shown.run.active)
            await until(lambda: "interrupted" in shown.progress)
            await pilot.press("space", "w", "d")


async def test_two_workbenches_at_one_run(runs_dir: Path) -> None:
    events = [started(), *(report(step) for step in range(10, 400, 10))]
    async with live(runs_dir, events) as (first, trainer):
        folder = first.run.folder
        # The gated trainer yields events without writing them; the log is what others see.
        with folder.events_path.open("ab") as log:
            log.writelines(encode_event(event) for event in events[:3])
        trainer.release(3)
        await until(lambda: first.run.standing == "running")
        service = TrainingService(GatedTrainer([]))
        other = service.show(RunFolder.open(folder.path))
        assert (other.active, other.detached, other.standing) == (True, True, "running")
        assert other.state.step == 20
        with pytest.raises(Exception, match="trained by another process"):
            service.start(other.folder)
        service.command("save")  # goes to the trainer through the run's folder
        assert len(list((folder.path / "commands").iterdir())) == 1
        assert first.run.standing == "running"
