"""The list of runs: what is known at once, the rest as it is read, and nothing read twice."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace as replace_row
from pathlib import Path

import pytest
from msgspec.structs import replace

from megatron_model.events import log as event_log
from megatron_model.events import schema as events
from megatron_model.events.schema import encode_event
from megatron_model.events.state import SERIES_LIMIT, RunState, Series
from megatron_model.run import folder as run_folder
from megatron_model.run.folder import RunFolder
from megatron_tui.runs import listing as runs_view
from megatron_tui.runs import reader as runs_reader
from megatron_tui.runs import table as runs_table
from megatron_tui.runs.listing import KnownRuns, RunRow
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.runs.table import RunsTable
from megatron_tui.setup.dialogs import run_pick
from tests.tui.conftest import copy_recorded, make_app, make_workbench, until
from tests.tui.training.helpers import WIDE, report, started


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Record every file of a run that is opened to be read, by its run and name."""
    opened: list[str] = []
    real_open, real_read = os.open, Path.read_text

    def note(path: object) -> None:
        name = str(path)
        if name.endswith((run_folder.EVENTS_FILE, run_folder.RUN_FILE)):
            opened.append("/".join(name.split("/")[-2:]))

    def spy_open(path: object, *args: object, **options: object) -> int:
        note(path)
        return real_open(path, *args, **options)  # type: ignore[arg-type]

    def spy_read(path: Path, *args: object, **options: object) -> str:
        note(path)
        return real_read(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", spy_open)
    monkeypatch.setattr(Path, "read_text", spy_read)
    yield opened


def test_a_file_that_did_not_change_is_not_read_again(runs_dir: Path, reads: list[str]) -> None:
    folders = [copy_recorded(runs_dir, name) for name in ("one", "two")]
    known = KnownRuns()
    before = [known.row(folder) for folder in folders]
    assert {"one/run.toml", "one/events.jsonl", "two/run.toml", "two/events.jsonl"} == set(reads)
    reads.clear()
    assert [known.row(folder) for folder in folders] == before
    assert reads == []
    with folders[0].events_path.open("ab") as log:
        log.write(encode_event(report(440, 1.0)))
    assert known.row(folders[0]).step == 440
    assert known.row(folders[1]) is before[1]
    assert set(reads) == {"one/events.jsonl"}
    reads.clear()
    (folders[1].path / "run.toml").write_text("[model]\nlayers = 7\n")
    assert "7 layers" in known.row(folders[1]).model
    assert "two/run.toml" in reads
    with folders[1].lock():
        assert known.row(folders[1]).active, "who trains it is asked each time"
    assert not known.row(folders[1]).active


def test_what_is_kept_of_many_runs_is_small(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_view, "STATES_KEPT", 2)
    folders = [copy_recorded(runs_dir, f"run-{number}") for number in range(6)]
    known = KnownRuns()
    rows = [known.row(folder) for folder in folders]
    assert len(known._states) == 2
    with folders[0].events_path.open("ab") as log:
        log.write(encode_event(report(440, 1.0)))
    assert [known.row(folder).step for folder in folders] == [440, 437, 437, 437, 437, 437]
    known.forget(folders[:1])
    assert not known.seen(folders[1]).known
    assert known.seen(folders[0]).step == 440
    assert all(row.known for row in rows)


async def test_names_come_at_once_and_a_tick_cancels_nothing(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        copy_recorded(runs_dir, f"run-{number}")
    gate, folded = threading.Semaphore(0), []
    whole = RunFolder.fold

    def slow(folder: RunFolder) -> tuple[RunState, int]:
        gate.acquire()
        folded.append(folder.name)
        return whole(folder)

    monkeypatch.setattr(RunFolder, "fold", slow)
    monkeypatch.setattr(runs_reader, "SHOW_SECONDS", 0.0)
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        try:
            await pilot.press("f5")
            await until(lambda: isinstance(app.screen, RunsScreen) and len(app.screen.rows) == 3)
            screen = app.screen
            assert isinstance(screen, RunsScreen)
            assert [row.standing for row in screen.rows] == ["reading"] * 3
            assert "No runs" not in str(screen.query_one("#empty Label").render())
            gate.release()
            await until(lambda: sum(row.known for row in screen.rows) == 1)
            for _ in range(3):
                screen.reader.read_again()
                await pilot.pause()
        finally:
            gate.release(100)
        await until(lambda: all(row.known for row in screen.rows) and not screen.reader.reading)
        assert sorted(folded) == ["run-0", "run-1", "run-2"], "one look, that read each run once"


async def test_a_screen_that_nobody_touches_looks_at_the_runs_in_training_alone(
    runs_dir: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [copy_recorded(runs_dir, f"run-{number}") for number in range(3)]
    with folders[1].events_path.open("ab") as log:
        log.write(encode_event(started(step=437)))
    app = make_app(make_workbench(runs_dir))
    with folders[1].lock():
        async with app.run_test(size=WIDE) as pilot:
            await pilot.press("f5")
            await until(lambda: isinstance(app.screen, RunsScreen) and len(app.screen.rows) == 3)
            screen = app.screen
            assert isinstance(screen, RunsScreen)
            screen._timer.pause()
            await until(lambda: all(row.known for row in screen.rows) and not screen.reader.reading)
            asked: list[str] = []
            ask = RunFolder.is_active
            monkeypatch.setattr(
                RunFolder, "is_active", lambda folder: (asked.append(folder.name), ask(folder))[1]
            )
            listed: list[Path] = []
            entries = Path.iterdir
            monkeypatch.setattr(
                Path, "iterdir", lambda path: (listed.append(path), entries(path))[1]
            )

            async def tick() -> dict[str, tuple[str, int]]:
                screen.reader.read_again()
                await until(lambda: not screen.reader.reading)
                return {row.name: (row.standing, row.step) for row in screen.rows}

            reads.clear()
            before = await tick()
            assert before["run-1"] == ("running", 437)
            assert (reads, set(asked), listed) == ([], {"run-1"}, [])
            with folders[1].events_path.open("ab") as log:
                log.write(encode_event(report(440, 1.0)))
            assert (await tick())["run-1"] == ("running", 440)
            assert set(reads) == {"run-1/events.jsonl"}
            copy_recorded(runs_dir, "new")
            assert "new" in await tick()
            # One that another program goes on with is found when all are looked at.
            with folders[0].lock(), folders[0].events_path.open("ab") as log:
                log.write(encode_event(started(step=437)))
                log.flush()
                assert (await tick())["run-0"][0] == before["run-0"][0]
                screen.reader._rested = 0.0
                assert (await tick())["run-0"][0] == "running"


async def test_a_tick_writes_only_what_changed(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in rows and cells: with so many runs the clock would tell nothing else."""
    now = 2e9
    monkeypatch.setattr(runs_table, "MANY", 5000)
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen) and not app.screen.reader.reading)
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        screen._timer.pause()
        table = screen.table
        # All were heard of within the hour, in the middle of a minute; one in the last seconds.
        rows = [
            replace_row(
                RunRow.unread(RunFolder(runs_dir / f"run-{number}")),
                standing="finished",
                last_time=now - (4.0 if number == 7 else 90.0 + 60 * (number % 50)),
            )
            for number in range(2000)
        ]
        table.show(rows, now)
        await pilot.pause()
        written: list[str] = []
        changed: list[tuple[str, str]] = []
        write, update = RunsTable._write, RunsTable.update_cell
        monkeypatch.setattr(
            RunsTable, "_write", lambda own, key, row: (written.append(key), write(own, key, row))
        )
        monkeypatch.setattr(
            RunsTable,
            "update_cell",
            lambda own, key, column, cell: (
                changed.append((Path(key).name, column.value)),
                update(own, key, column, cell),
            ),
        )
        table.grow_older(now + 5)
        assert [Path(key).name for key in written] == ["run-7"]
        assert changed == [("run-7", "updated")]
        assert str(table.get_cell(str(rows[7].folder.path), "updated")) == "9s ago"
        written.clear()
        changed.clear()
        table.change([replace_row(rows[3], step=12)], now + 5)
        assert changed == [("run-3", "step")]
        assert table.runs[3].step == 12
        changed.clear()
        table.show(
            [replace_row(rows[3], step=12) if row is rows[3] else row for row in rows], now + 6
        )
        assert changed == [("run-7", "updated")]
        table.grow_older(now + 31)
        assert len({key for key, _ in changed}) == 2000, "each minute the minutes are written"
        assert {column for _, column in changed} == {"updated"}


async def test_a_runs_folder_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    app = make_app(make_workbench(tmp_path / "loop"))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f5")
        await until(
            lambda: (
                isinstance(app.screen, RunsScreen)
                and "Cannot read" in str(app.screen.query_one("#empty Label").render())
            )
        )


async def test_a_long_table_is_filled_in_parts_and_stays_sorted(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs_table, "MANY", 3)
    folders = [copy_recorded(runs_dir, f"run-{number}") for number in range(8)]
    for age, folder in enumerate(folders):
        os.utime(folder.events_path, (1e9 - age, 1e9 - age))
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f5")
        await until(
            lambda: (
                isinstance(app.screen, RunsScreen)
                and len(app.screen.query_one(RunsTable).shown) == 8
            )
        )
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        table = screen.query_one(RunsTable)

        def names() -> list[str]:
            return [str(table.get_row_at(row)[0]) for row in range(table.row_count)]

        await until(lambda: not screen.reader.reading and names() == [f"run-{n}" for n in range(8)])
        await pilot.press("j")
        assert screen.chosen is not None and screen.chosen.name == "run-1"
        os.utime(folders[5].events_path, (2e9, 2e9))
        screen.reader.read()
        await until(lambda: names() == [f"run-{n}" for n in (5, 0, 1, 2, 3, 4, 6, 7)])
        assert screen.chosen.name == "run-1", "the cursor stays on its run"
        folders[0].delete()
        screen.reader.read()
        await until(lambda: names() == [f"run-{n}" for n in (5, 1, 2, 3, 4, 6, 7)])
        assert screen.chosen.name == "run-1"


def test_a_stopped_run_is_not_called_finished_in_any_list(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    with folder.events_path.open("ab") as log:
        log.write(encode_event(events.RunFinished(step=437, reason="stopped", elapsed_seconds=1.0)))
    assert KnownRuns().row(folder).standing == "stopped"
    assert folder.status(folder.state()) == "stopped"
    entry = run_pick(runs_dir)._entries[0]
    assert "stopped" in entry.detail and "finished" not in entry.detail


# Long logs


def test_many_events_at_once_are_as_one_by_one() -> None:
    history = [started(steps=10_000)]
    for step in range(1, 3000):
        history.append(report(step, 2.0 + (step % 7)))
        if step % 5 == 0:
            history.append(
                events.DeviceSampled(step=step, kind="ram", name="x", used=step, peak=9, total=10)
            )
        if step % 100 == 0:
            history.append(
                events.Evaluated(
                    step=step, val_loss=1.0, bits_per_character=1.4, elapsed_seconds=step / 10
                )
            )
    history += [started(step=1500), *(report(step) for step in range(1501, 1600))]
    history += [report(1550), report(1540)]  # a log that says the same twice, or goes back
    damaged = replace(report(1601), time=1e300, elapsed_seconds=-1.0)
    sample = events.DeviceSampled(step=1601, kind="ram", name="x", used=1, peak=9, total=10)
    history += [report(1600), damaged, sample, replace(sample, time=-1.0)]
    at_once, one_by_one = RunState(), RunState()
    at_once.apply_all(history)
    for event in history:
        one_by_one.apply(event)
    assert at_once == one_by_one


def test_a_curve_that_grows_by_many_points_keeps_its_spikes_and_is_bounded() -> None:
    spikes = {12_345: 99.0, 54_321: -7.0, 99_998: 50.0}
    curve = Series()
    for start in range(1, 100_001, 5000):
        steps = list(range(start, start + 5000))
        curve.extend(
            steps, [step / 10 for step in steps], [spikes.get(s, 1.0 + 1 / s) for s in steps]
        )
        assert len(curve) <= SERIES_LIMIT
    kept = dict(zip(curve.steps, curve.values, strict=True))
    assert spikes.items() <= kept.items()
    assert curve.steps == sorted(set(curve.steps))
    assert curve.seconds == [step / 10 for step in curve.steps]
    assert curve.steps[-60:] == list(range(99_941, 100_001))
    gaps = [b - a for a, b in zip(curve.steps, curve.steps[1:], strict=False)]
    assert max(gaps) < 200, "no part of the curve may be lost"


def test_whole_lines_are_decoded_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_recorded(tmp_path)
    with folder.events_path.open("ab") as log:
        log.writelines(encode_event(report(500 + step)) for step in range(5000))
    single: list[bytes] = []
    together: list[int] = []
    decode, decode_all = events.decode_event, event_log.decode_events
    monkeypatch.setattr(events, "decode_event", lambda x: (single.append(x), decode(x))[1])
    monkeypatch.setattr(
        event_log, "decode_events", lambda x: (together.append(len(x)), decode_all(x))[1]
    )
    state = folder.state()
    assert state.step == 5499
    assert (single, together) == ([], [folder.events_path.stat().st_size])


def test_of_a_long_log_no_byte_is_read_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_recorded(tmp_path)
    with folder.events_path.open("ab") as log:
        log.writelines(encode_event(report(500 + step)) for step in range(5000))
    monkeypatch.setattr(event_log, "PIECE", 50_000)
    read: list[int] = []
    pread = os.pread

    def spy(descriptor: int, size: int, offset: int) -> bytes:
        data = pread(descriptor, size, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", spy)
    assert folder.state().step == 5499
    size = folder.events_path.stat().st_size
    assert size > 15 * 50_000
    # What a piece ends with in the middle of a line is read again with the next one.
    assert sum(read) < size + len(read) * 1000


@pytest.mark.slow
def test_a_log_of_two_million_lines_takes_little_memory(tmp_path: Path) -> None:
    folder = copy_recorded(tmp_path)
    with folder.events_path.open("wb") as log:
        log.write(encode_event(started(steps=2_000_000)))
        for start in range(1, 2_000_001, 20_000):
            log.writelines(
                encode_event(report(step, 9.0 if step == 777_777 else 2.0))
                for step in range(start, start + 20_000)
            )
    program = (
        "import resource, sys; from pathlib import Path\n"
        "from megatron_model.run.folder import RunFolder\n"
        "state = RunFolder(Path(sys.argv[1])).state()\n"
        "most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "status = Path('/proc/self/status')\n"  # where there is none, the process before may count
        "lines = status.read_text().splitlines() if status.exists() else []\n"
        "most = next((int(l.split()[1]) for l in lines if l.startswith('VmHWM')), most)\n"
        "print(state.step, len(state.train_loss) <= 8192, 9.0 in state.train_loss.values, most)\n"
    )
    told = subprocess.run(
        [sys.executable, "-c", program, str(folder.path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert told[:3] == ["2000000", "True", "True"]
    most = int(told[3]) * (1 if sys.platform == "darwin" else 1024)
    assert most < 100 << 20


@pytest.mark.slow
def test_ten_thousand_runs_are_read_once(runs_dir: Path, reads: list[str]) -> None:
    settings = (copy_recorded(runs_dir, "first").path / "run.toml").read_bytes()
    line = encode_event(started()) + encode_event(report(10))
    for number in range(9999):
        path = runs_dir / f"run-{number}"
        path.mkdir()
        (path / "run.toml").write_bytes(settings)
        (path / "events.jsonl").write_bytes(line)
    reads.clear()
    known = KnownRuns()
    folders = run_folder.list_runs(runs_dir)
    rows = [known.row(folder) for folder in folders]
    assert len(rows) == 10_000
    assert sum(name.endswith("run.toml") for name in reads) == 10_000
    reads.clear()
    again = [known.row(folder) for folder in run_folder.list_runs(runs_dir)]
    assert all(one is other for one, other in zip(rows, again, strict=True))
    assert reads == []
