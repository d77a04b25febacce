"""A run's log may hold anything: no value in it breaks the fold, a readout, a chart, or a list."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from megatron_model.cli.parser import parse, run
from megatron_model.events import log as event_log
from megatron_model.events import schema as events
from megatron_model.events.log import EventLog, last_event, read_events
from megatron_model.events.schema import Event, decode_event, decode_events, encode_event
from megatron_model.events.state import RunState
from megatron_model.run.comparison import AXES, Compared, ranked
from megatron_model.run.folder import RunFolder, list_runs
from megatron_tui.comparison.view import (
    ComparisonView,
    comparison_curves,
    comparison_plot,
    legend_row,
)
from megatron_tui.plot.painter import Painter
from megatron_tui.runs.listing import read_row
from megatron_tui.runs.preview import preview_of
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.services.process_run import ProcessRun
from megatron_tui.services.run_log import RunLog
from megatron_tui.shell.header import RunSummary
from megatron_tui.training import alerts, chart_view, curves, film_strip, rank_lines
from megatron_tui.training import readouts as figures
from megatron_tui.training.chart_view import UNITS, X_AXES, ChartView
from megatron_tui.training.curves import METRICS
from megatron_tui.training.difference_table import difference_table
from megatron_tui.training.film_strip import FilmStrip
from megatron_tui.training.other_runs import lettered
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui import formatting
from tests.tui.conftest import NOW, copy_recorded, make_app, make_workbench, until
from tests.tui.training.helpers import WIDE, report, started

ABSURD = [1e300, -1e300, 1e18, -1.0, 0.0, 5e-324, 253402300800.0]

whole = st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, 10, 2**62])
real = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(ABSURD)
text = st.text(max_size=12)
VALUES: dict[Any, st.SearchStrategy[Any]] = {int: whole, float: real, str: text}


def _value(kind: Any) -> st.SearchStrategy[Any]:
    found = msgspec.inspect.type_info(kind)
    match found:
        case msgspec.inspect.IntType():
            return whole
        case msgspec.inspect.FloatType():
            return real
        case msgspec.inspect.StrType():
            return text
        case msgspec.inspect.NoneType():
            return st.none()
        case msgspec.inspect.LiteralType(values=values):
            return st.sampled_from(list(values))
        case msgspec.inspect.UnionType(types=types):
            return st.one_of([_of(one) for one in types])
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(_of(item), max_size=3).map(tuple)
        case msgspec.inspect.StructType(cls=cls):
            return _struct(cls)
    raise AssertionError(f"no values for {found}")


def _of(found: Any) -> st.SearchStrategy[Any]:
    simple = {"IntType": int, "FloatType": float, "StrType": str, "NoneType": type(None)}
    name = type(found).__name__
    if name in simple:
        return _value(simple[name])
    return _struct(found.cls) if name == "StructType" else st.sampled_from(list(found.values))


def _struct(cls: type[Any]) -> st.SearchStrategy[Any]:
    hints = {field.name: field.type for field in msgspec.structs.fields(cls)}
    return st.builds(cls, **{name: _value(kind) for name, kind in hints.items()})


any_event = st.one_of([_struct(kind) for kind in events.RECORDED])
histories = st.tuples(_struct(events.RunStarted), st.lists(any_event, max_size=12))


def show_everything(state: RunState, folder: RunFolder, view: ChartView) -> None:
    """Make whatever the screens say and draw of a run."""
    run = ProcessRun(RunLog(folder, state), active=True)
    figures.now_figures(state)
    figures.about_figures(state)
    figures.log_lines(state)
    figures.progress_bar(state.progress, 20)
    alerts.alerts(state, NOW)
    layout = rank_lines.rank_layout(run.device_count, 60, 6)
    rank_lines.rank_lines(state, layout)
    assert rank_lines.ranks_title(state) is not None
    assert rank_lines.ranks_note(state) is not None
    for run_now in (run, ProcessRun(RunLog(folder, state), active=False)):
        assert RunSummary.of(run_now).places()
        assert formatting.duration(run_now.state.remaining_seconds)
    for index in range(len(state.samples)):
        film_strip.frame_title(state, index, "bits")
    film_strip.film_line(state.samples, FilmStrip().index(state.samples), 60)
    other = Compared("other", state, None)
    difference_table(other, [other], 60)
    for by in AXES:
        both = ranked([other, other], by)
        compared = comparison_plot(
            comparison_curves(both, ComparisonView(by)), ComparisonView(by), 0
        )
        if not compared.empty:
            assert len(Painter().draw(compared, 50, 8)) == 8
        assert all(legend_row(each, 0, []) for each in both)
    preview = preview_of(state)
    if not preview.plot.empty:
        Painter().draw(preview.plot, 50, 8)
    for look in (view, view.zoomed(5)):
        moved = chart_view.moved_cursor(state, look, 50, -1)
        chart_view.panned(state, moved, -1)
        figures.loss_legend(state, look, 70, lettered([other]))
        if moved.cursor is not None:
            figures.cursor_line(state, moved, 70)
        plot = curves.loss_plot(state, moved, lettered([other]))
        if not plot.empty:
            assert len(Painter().draw(plot, 50, 8)) == 8
    for metric in METRICS:
        figures.metric_line(state, view, metric, 50)
        figures.metric_note(state, metric)
        plot = curves.metric_plot(state, view, metric)
        if not plot.empty:
            Painter().draw(plot, 50, 8)


views = st.builds(
    ChartView,
    x_axis=st.sampled_from(X_AXES),
    unit=st.sampled_from(UNITS),
    log_y=st.booleans(),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(histories, views)
def test_no_history_breaks_the_fold_or_what_is_shown_of_it(
    history: tuple[Event, list[Event]], view: ChartView
) -> None:
    lines = b"".join(encode_event(event) for event in (history[0], *history[1]))
    decoded = decode_events(lines)
    assert decoded == [decode_event(line) for line in lines.splitlines()]
    state = RunState()
    state.apply_all(decoded)
    assert 0.0 <= state.progress <= 1.0
    assert 0.0 <= state.elapsed_seconds < math.inf
    one_by_one = RunState()
    for event in decoded:
        one_by_one.apply(event)
    assert state == one_by_one
    show_everything(state, RunFolder(Path("/nowhere/run")), view)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, *ABSURD])
def test_no_number_breaks_a_formatter(value: float) -> None:
    for write in (
        formatting.exact, formatting.count, formatting.size, formatting.duration, formatting.clock,
        formatting.age, formatting.loss, formatting.rate, formatting.times, formatting.percent,
        formatting.bits,
    ):  # fmt: skip
        assert 0 < len(write(value)) < 28, write.__name__
    assert len(events.local_time(value, "%Y-%m-%d %H:%M")) <= 32


def absurd_logs() -> dict[str, bytes]:
    """Return a log for each number of each kind of event, absurd in several ways."""
    logs: dict[str, bytes] = {}
    examples = [
        started(),
        report(10),
        events.Evaluated(step=10, val_loss=1.0, bits_per_character=1.4, elapsed_seconds=1.0),
        events.DeviceSampled(step=10, kind="ram", name="x", used=1, peak=1, total=1),
        events.SettingChanged(step=10, key="training.steps", old=1, new=2),
        events.RunHandedOver(step=10, elapsed_seconds=1.0),
        events.RunFinished(step=10, reason="completed", elapsed_seconds=1.0),
    ]
    for place, example in enumerate(examples):
        fields = json.loads(encode_event(example))
        for name, value in fields.items():
            if isinstance(value, (int, float)):
                for odd in ("1e300", "-1e300", "NaN", "1" + "0" * 5000, "-1", "1e-320", "0"):
                    changed = json.dumps({**fields, name: "?"}).replace('"?"', odd).encode()
                    lines = [encode_event(e).rstrip() for e in examples]
                    lines[place] = changed
                    logs[f"{fields['event']}-{name}-{odd[:9]}"] = b"\n".join([*lines, b""])
    return logs


def test_no_number_in_a_log_breaks_the_list_of_runs(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = absurd_logs()
    for name, log in logs.items():
        (runs_dir / name).mkdir(parents=True)
        (runs_dir / name / "run.toml").touch()
        (runs_dir / name / "events.jsonl").write_bytes(log)
    copy_recorded(runs_dir, "good")
    assert run(parse(["runs", "--runs-dir", str(runs_dir)])) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(logs) + 1
    assert run(parse(["runs", "--json", "--runs-dir", str(runs_dir)])) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"] for row in rows} == {*logs, "good"}
    for folder in list_runs(runs_dir):
        row = read_row(folder)
        assert len(row.age(NOW)) < 12, folder.name


@pytest.mark.parametrize("field", ["time", "elapsed_seconds", "train_loss", "step"])
async def test_the_workbench_shows_a_run_with_an_absurd_number(runs_dir: Path, field: str) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines()
    odd = 2**62 if field == "step" else 1e300
    fields = {**json.loads(encode_event(report(430))), field: odd}
    folder.events_path.write_bytes(b"\n".join([*lines, json.dumps(fields).encode(), b""]))
    app = make_app(make_workbench(runs_dir), run=folder)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
        for key in ("x", "x", "x", "u", "y", "h", "]", "m", "m", "m"):
            await pilot.press(key)
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen) and len(app.screen.rows) == 1)


# Folders and files that cannot be read


def hostile_folders(runs_dir: Path) -> None:
    """Put runs beside each other that cannot be read, each in its own way."""
    for name in ("pipe", "zero", "folder", "toml", "binary"):
        copy_recorded(runs_dir, name)
        if name in ("pipe", "zero", "folder"):
            (runs_dir / name / "events.jsonl").unlink()
    os.mkfifo(runs_dir / "pipe" / "events.jsonl")
    (runs_dir / "zero" / "events.jsonl").symlink_to("/dev/zero")
    (runs_dir / "folder" / "events.jsonl").mkdir()
    (runs_dir / "toml" / "run.toml").write_text("[[[[")
    (runs_dir / "binary" / "run.toml").write_bytes(b"\xff\x00" * 100)
    (runs_dir / "loop").symlink_to(runs_dir / "loop")
    copy_recorded(runs_dir, "inner")
    (runs_dir / "inner" / "run.toml").unlink()
    (runs_dir / "inner" / "run.toml").symlink_to("run.toml")
    copy_recorded(runs_dir, "good")


UNREADABLE = {"pipe", "zero", "folder", "loop", "inner"}


def test_a_run_that_cannot_be_read_is_one_line_that_says_so(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile_folders(runs_dir)
    assert run(parse(["runs", "--runs-dir", str(runs_dir)])) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert set(lines) == {*UNREADABLE, "toml", "binary", "good"}
    for name in UNREADABLE - {"inner"}:
        assert "unreadable" in lines[name]
        assert "Cannot read" in lines[name]
    assert "2023-11-14" in lines["good"]
    assert run(parse(["runs", "--json", "--runs-dir", str(runs_dir)])) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {row["name"] for row in rows if "error" in row} == UNREADABLE - {"inner"}


async def test_the_runs_screen_shows_what_cannot_be_read(runs_dir: Path) -> None:
    hostile_folders(runs_dir)
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen) and len(app.screen.rows) == 8)
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: all(row.known for row in screen.rows))
        problems = {row.folder.name for row in screen.rows if row.problem}
        assert problems == {*UNREADABLE, "toml", "binary"}
        assert {row.folder.name for row in screen.rows if row.standing == "unreadable"} == (
            UNREADABLE - {"inner"}
        )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into every folder")
def test_a_folder_that_is_closed_to_us_is_one_line(
    runs_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    closed = copy_recorded(runs_dir, "closed")
    copy_recorded(runs_dir, "good")
    closed.path.chmod(0)
    try:
        assert run(parse(["runs", "--runs-dir", str(runs_dir)])) == 0
        lines = capsys.readouterr().out.splitlines()
    finally:
        closed.path.chmod(0o700)
    assert len(lines) == 2
    assert sum("Permission denied" in line for line in lines) == 1


# Lines of any length


def test_an_endless_line_costs_only_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_log, "LONGEST_LINE", 4096)
    path = tmp_path / "events.jsonl"
    good = encode_event(report(10, 1.0))
    endless = b'{"event":"noticed","step":1,"text":"' + b"x" * 50_000 + b'"}\n'
    path.write_bytes(good + endless + good + endless + good)
    most: list[int] = []
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda d, n, o: most.append(n) or read(d, n, o))
    for piece in (100, 1000, 1 << 22):
        monkeypatch.setattr(event_log, "PIECE", piece)
        found, offset = read_events(path)
        assert found == [decode_event(good)] * 3
        assert offset == path.stat().st_size
    assert last_event(path) == decode_event(good)
    # One that is not whole is not held either, nor read again and again.
    path.write_bytes(good + endless[:-1])
    monkeypatch.setattr(event_log, "PIECE", 1000)
    most.clear()
    found, offset = read_events(path)
    assert found == [decode_event(good)]
    assert offset == path.stat().st_size
    assert max(most) <= 4097


def test_a_torn_line_waits_for_its_end(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = encode_event(report(10, 1.0))
    path.write_bytes(good + good[:20])
    found, offset = read_events(path)
    assert (len(found), offset) == (1, len(good))
    path.write_bytes(good + good)
    assert len(read_events(path, offset)[0]) == 1
    assert len(read_events(path, 0, limit=10)[0]) == 1, "one line at least is read"


def test_a_log_is_only_written_to_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "events.jsonl")
    with pytest.raises(Exception, match="not a regular file"):
        EventLog(tmp_path / "events.jsonl")


def test_what_is_kept_of_texts_is_bounded() -> None:
    state = RunState()
    endless = "x" * 1_000_000
    state.apply_all([
        started(), events.Notice(step=1, text=endless),
        events.SampleGenerated(step=1, prompt=endless, text=endless),
    ])  # fmt: skip
    assert max(len(line.text) for line in state.log) < 100_000
    assert len(state.samples[-1].text) < 100_000
