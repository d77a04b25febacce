"""The live dashboard by its keys: curves, figures, commands, alerts, the film of samples."""

from __future__ import annotations

import asyncio
import math
from functools import partial
from pathlib import Path

import pytest
from textual.widgets import Input

from megatron_model.events.schema import (
    DeviceSampled,
    Event,
    Phase,
    PhaseChanged,
    SampleGenerated,
    WorkProgress,
    encode_event,
)
from megatron_model.interop.curves_in import import_curves, read_csv
from megatron_model.run.control import Change
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.plot.chart import Chart
from megatron_tui.runs.listing import KnownRuns
from megatron_tui.services.launch import Process
from megatron_tui.services.preferences import Preferences
from megatron_tui.training import curves
from megatron_tui.training.compare_dialog import CompareScreen
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.training.stop_dialog import StopRun
from megatron_tui.ui.ask_values import AskValues
from megatron_tui.ui.panel import Label
from tests.tui.conftest import (
    NOW,
    GatedTrainer,
    copy_recorded,
    make_app,
    make_workbench,
    until,
)
from tests.tui.training.helpers import NARROW, WIDE, Shown, live, recorded, report, started

# The curves


async def test_train_raw_and_smoothed(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        assert shown.colours[:2] == ["chart-raw", "chart-train"]
        await shown.press("P")
        assert "chart-raw" not in shown.colours
        await shown.press("P", "0")
        assert shown.colours[0] == "chart-train"
        await shown.press("+")
        assert shown.colours[:2] == ["chart-raw", "chart-train"]
        await shown.press("+", "-")
        assert shown.screen.charts.view.smoothing == 1


async def test_validation_overlay_and_best_marker(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        assert shown.colours[-1] == "chart-validation"
        assert shown.loss.plot.marks[0].x == shown.run.state.best_step
        assert "◆" in shown.loss.text
        assert "best 1.744 at 400" in shown.legend


async def test_log_y(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        linear = shown.loss.text
        await shown.press("L")
        assert shown.loss.plot.log_y
        assert shown.loss.text != linear


async def test_x_is_steps_time_or_characters(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        assert shown.loss.plot.x_limits == (0.0, 437.0)
        await shown.press("x")
        assert shown.loss.plot.x_limits == (0.0, 365.1)
        await shown.press("x")
        assert shown.loss.plot.x_limits == (0.0, 437.0 * 16 * 128)
        assert "characters" in str(shown.panel("loss").border_subtitle)
        await shown.press("x")
        assert shown.loss.plot.x_limits == (0.0, 437.0)


async def test_y_is_nats_bits_or_perplexity(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        nats = shown.loss.plot.curves[-1].ys[-1]
        await shown.press("Y")
        assert shown.loss.plot.curves[-1].ys[-1] == pytest.approx(nats / math.log(2))
        assert "bits" in str(shown.panel("loss").border_title)
        await shown.press("Y")
        assert shown.loss.plot.curves[-1].ys[-1] == pytest.approx(math.exp(nats))
        assert f"{math.exp(nats):.3f}" in shown.legend
        assert "perplexity" in str(shown.panel("loss").border_title)
        await shown.press("Y")
        assert shown.loss.plot.curves[-1].ys[-1] == nats


async def test_reference_lines_mean_something(runs_dir: Path) -> None:
    events = [started(), *(report(step, 4.5 - step / 400) for step in range(50, 950, 50))]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(len(events))
        await until(lambda: len(shown.loss.plot.references) == 3 and "┤" in shown.loss.text)
        heights = [reference.y for reference in shown.loss.plot.references]
        assert heights == pytest.approx([math.log(65), 3.0, 2.1])
        await until(lambda: "trigram 2.10" in shown.loss.text)
        assert "ln V 4.17" in shown.loss.text
        await shown.press("_")
        assert "trigram" not in shown.loss.text
        await shown.press("_", "Y")
        assert shown.loss.plot.references[2].y == pytest.approx(2.1 / math.log(2))


async def test_zoom_pan_and_a_cursor_that_reads_values(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        await shown.press("h")
        assert shown.screen.charts.view.cursor == 420
        assert "step 420" in shown.legend and "train 1.530" in shown.legend
        assert "│" in shown.loss.text
        await shown.press("h")
        cursor = shown.screen.charts.view.cursor
        assert cursor is not None and cursor < 420
        await shown.press("]")
        low, high = shown.loss.plot.x_limits or (0, 0)
        assert high - low == pytest.approx(437 / 2)
        assert low <= cursor <= high
        await shown.press("]", "{")
        panned = shown.loss.plot.x_limits or (0, 0)
        assert panned[0] < low + 437 / 4
        await shown.press("}")
        await shown.press("[")
        assert shown.screen.charts.view.zoom == 1
        await shown.press("0")
        assert shown.loss.plot.x_limits == (0.0, 437.0)
        assert shown.screen.charts.view.cursor is None
        await shown.press("l", *["h"] * 100)
        assert shown.screen.charts.view.cursor == 20
        await shown.press("escape")
        assert shown.screen.charts.view.cursor is None


async def test_learning_rate_gradient_speed_and_memory_charts(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        titles = []
        for _ in curves.METRICS:
            titles.append(str(shown.panel("metrics").border_title))
            await shown.press("m")
        assert titles == [
            "memory, RAM of the trainer", "gradient norm", "learning rate", "speed, characters/s",
        ]  # fmt: skip
        await shown.press("M")
        assert "speed" in str(shown.panel("metrics").border_title)
        charts = [chart for chart in shown.panel("metrics").query(Chart) if chart.display]
        assert any("┤" in chart.text for chart in charts)


async def test_panels_are_toggled_and_zoomed(runs_dir: Path) -> None:
    async with recorded(runs_dir, NARROW) as shown:
        for number, name in enumerate(("loss", "now", "metrics", "sample", "log"), 1):
            before = shown.panel(name).display
            await shown.press(str(number))
            await until(partial(shown.displays, name, not before))
            await shown.press(str(number))
            await until(partial(shown.displays, name, before))
        await shown.press("tab", "enter")
        await until(lambda: shown.panel("loss").region.width == 80)
        assert not shown.panel("now").display
        await shown.press("3")
        await until(lambda: shown.panel("metrics").region.width == 80)
        drawn = [c for c in shown.panel("metrics").query(Chart) if "┤" in c.text]
        await until(lambda: len([c for c in drawn if c.size.width]) >= 1)
        await shown.press("escape")
        await until(lambda: shown.panel("loss").display and shown.panel("now").display)


# Figures, phases, time


async def test_tokens_per_second_and_step_milliseconds(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        await until(lambda: "4.21k char/s" in shown.text("now"))
        assert "486 ms" in shown.text("now") or "487 ms" in shown.text("now")


async def test_eta_is_right_after_a_resume_and_while_evaluations_interrupt(
    runs_dir: Path,
) -> None:
    # Before the resume a step took 10 s, now 0.1 s; an evaluation takes 5 s, nine are to come.
    slow = [started(), report(100, elapsed_seconds=1000.0)]
    here = started(step=100, elapsed_seconds=1000.0, time=NOW - 50)
    fast = [
        here,
        report(110, elapsed_seconds=1001.0, time=NOW - 49),
        PhaseChanged(step=110, time=NOW - 49, phase="evaluating"),
        PhaseChanged(step=110, time=NOW - 44, phase="training"),
        report(120, elapsed_seconds=1007.0, time=NOW - 43),
        PhaseChanged(step=120, time=NOW - 43, phase="evaluating"),
        WorkProgress(step=120, time=NOW - 41, share=0.4),
    ]
    # The gated trainer puts a StepCompleted behind every event: the fold alone is exact here.
    async with recorded(runs_dir, more=(*slow, *fast)) as shown:
        state = shown.run.state
        state.apply(fast[-1])
        assert state.remaining_seconds == pytest.approx(880 * 0.1 + 9 * 5 + 5 * 0.6)
        shown.run.active = True
        shown.screen.update_run()
        await until(lambda: "2m 16s left" in shown.progress)


async def test_memory_used_peak_total_utilisation_temperature(runs_dir: Path) -> None:
    gpu = DeviceSampled(
        step=437, kind="gpu", name="H100", used=34 << 30, peak=40 << 30, total=80 << 30,
        utilization=0.93, temperature=61.0,
    )  # fmt: skip
    async with recorded(runs_dir, more=(gpu,)) as shown:
        await until(lambda: "34.0 GiB of 80.0 GiB" in shown.text("metrics"))
        assert "peak 40.0 GiB" in shown.text("metrics")
        assert str(shown.panel("metrics").border_title) == "memory, H100"
        assert str(shown.panel("metrics").border_subtitle) == "busy 93% · 61 °C · GiB"


async def test_phase_line(runs_dir: Path) -> None:
    phases: tuple[Phase, ...] = (
        "loading", "preparing", "compiling", "training", "evaluating", "sampling", "saving",
    )  # fmt: skip
    events: list[Event] = []
    for phase in phases:
        events += [PhaseChanged(step=0, phase=phase), WorkProgress(step=0, share=0.25)]
    async with live(runs_dir, [started(), *events]) as (shown, trainer):
        trainer.release(1)
        for phase in phases:
            trainer.release(2)
            await until(partial(shown.tells, f"{phase} 25%"))


async def test_latest_sample(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        assert "Ov son, that he is not one" in shown.text("sample")
        assert "step 400" in str(shown.panel("sample").border_title)


async def test_event_log(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        assert "validation 1.744" in shown.text("log")
        assert "stopped at step 437" in shown.text("log")


# Commands


async def test_pause_save_evaluate_and_sample(runs_dir: Path) -> None:
    events = [started(), *(report(step) for step in range(10, 400, 10))]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(3)
        await until(lambda: shown.run.standing == "running")
        await shown.press("w", "e", "g", "space")
        trainer.release(1)
        await until(lambda: shown.run.standing == "paused")
        assert trainer.obeyed == ["save", "evaluate", "sample", "pause"]
        assert "paused" in shown.progress
        assert "updated" not in shown.progress
        await shown.press("space")
        trainer.release(1)
        await until(lambda: shown.run.standing == "running")


@pytest.mark.parametrize(("key", "order"), [("y", "stop"), ("a", "abort"), ("n", None)])
async def test_stop_soft_hard_or_not(runs_dir: Path, key: str, order: str | None) -> None:
    events = [started(), *(report(step) for step in range(10, 400, 10))]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(3)
        await until(lambda: shown.run.standing == "running")
        await shown.press("S")
        await until(lambda: isinstance(shown.app.screen, StopRun))
        await shown.press(key)
        await until(lambda: not isinstance(shown.app.screen, StopRun))
        trainer.release(1)
        if order is not None:
            await until(lambda: trainer.obeyed == [order])
        else:
            assert not shown.run.stopping


async def test_detach(runs_dir: Path) -> None:
    asked: list[str] = []

    def refuse(folder: RunFolder) -> Process:
        asked.append(folder.name)
        raise RequestError("not in a test")

    events = [started(), *(report(step) for step in range(10, 400, 10))]
    async with live(runs_dir, events) as (shown, trainer):
        shown.app.workbench.training._start_process = refuse
        trainer.release(3)
        await until(lambda: shown.run.standing == "running")
        await shown.press("d")
        await until(lambda: asked == ["a"])


async def test_a_dead_trainer_never_looks_alive(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(lines[:-1]))
    app = make_app(make_workbench(runs_dir), run=folder)
    async with app.run_test(size=WIDE) as pilot:
        shown = Shown(app, pilot)
        await until(lambda: isinstance(app.screen, TrainingScreen))
        await until(lambda: "interrupted" in shown.progress)
        assert "updated" not in shown.progress and "left" not in shown.progress
        assert "Pause" not in shown.key_bar


async def test_age_of_the_last_update(runs_dir: Path) -> None:
    events = [started(), report(10, time=NOW - 7)]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(2)
        await until(lambda: "updated 7s ago" in shown.progress)


async def test_nothing_is_sent_while_nothing_happens(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        await until(lambda: shown.app.workbench.torch_loader.state == "ready")
        await asyncio.sleep(0.2)
        painted: list[object] = []
        display = shown.app._display
        shown.app._display = lambda screen, picture: (  # type: ignore[method-assign]
            painted.append(picture), display(screen, picture),
        )[-1]  # fmt: skip
        await asyncio.sleep(1.3)  # longer than the clock's second
        assert painted == []


# Alerts


async def test_alert_failed_and_not_a_number(runs_dir: Path) -> None:
    events = [started(), report(10), report(20, math.nan)]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(3)
        await until(lambda: "NaN or infinity since step 20" in shown.alert)
        assert "fork (F)" in shown.alert


async def test_alert_spike_and_n_goes_there(runs_dir: Path) -> None:
    losses = [2.0 + 0.01 * (i % 3) for i in range(40)]
    losses[20], losses[30] = 4.0, 5.0
    # Heard of a moment ago: otherwise the silence is an alert too.
    reports = (report(10 * i, loss, time=NOW - 1) for i, loss in enumerate(losses, 1))
    events = [started(), *reports]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(len(events))
        await until(lambda: "jumped from 2.0" in shown.alert and "1 of 2" in shown.alert)
        await until(lambda: "Alert" in shown.key_bar)
        await shown.press("n")
        assert shown.screen.charts.view.cursor == 310
        await shown.press("n")
        assert shown.screen.charts.view.cursor == 210
        assert "2 of 2" in shown.alert


async def test_alert_stall(runs_dir: Path) -> None:
    events = [started(time=NOW - 400), *(report(i, time=NOW - 400 + i / 10) for i in (10, 20, 30))]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(4)
        await until(lambda: "Nothing was heard" in shown.alert)


async def test_alert_over_fitting(runs_dir: Path) -> None:
    from megatron_model.events.schema import Evaluated

    events: list[Event] = [started()]
    for i in range(1, 8):
        events.append(report(100 * i, 2.0 - 0.1 * i))
        loss = 2.0 + 0.05 * abs(i - 3)
        events.append(
            Evaluated(step=100 * i, val_loss=loss, bits_per_character=1.0, elapsed_seconds=1.0)
        )
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(len(events))
        await until(lambda: "Over-fitting since step 300" in shown.alert)
        assert "fork (F)" in shown.alert


# Beside the run


async def test_mfu_and_data_wait(runs_dir: Path) -> None:
    events = [started(), report(10, data_wait=0.03)]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(2)
        await until(lambda: "MFU" in shown.text("now") and "38%" in shown.text("now"))
        assert "3%" in shown.text("now").split("data wait")[1].split()[0]


async def test_compare_runs(runs_dir: Path) -> None:
    other = copy_recorded(runs_dir, "other")
    text = (other.path / "run.toml").read_text()
    (other.path / "run.toml").write_text(text.replace("batch_size = 16", "batch_size = 32"))
    async with recorded(runs_dir) as shown:
        await shown.press("c")
        await until(lambda: isinstance(shown.app.screen, CompareScreen))
        dialog = shown.app.screen
        assert isinstance(dialog, CompareScreen)
        await until(lambda: len(dialog._folders) == 1)
        await shown.press("space")
        await until(lambda: "batch size" in dialog.query_one(".table", Label).plain)
        row = next(
            line for line in dialog.query_one(".table", Label).plain.splitlines() if "batch" in line
        )
        assert row.split() == ["batch", "size", "16", "32"]
        await shown.press("escape")
        await until(lambda: "chart-compare-1" in shown.colours)
        assert "A other" in shown.legend
        assert [mark.sign for mark in shown.loss.plot.marks] == ["A", "◆"]
        await shown.press("c", "0", "escape")
        await until(lambda: "chart-compare-1" not in shown.colours)


async def test_imported_curves_are_laid_over_a_run_and_listed(
    runs_dir: Path, tmp_path: Path
) -> None:
    table = tmp_path / "their.csv"
    table.write_text("step,train_loss,val_loss\n100,3,3.5\n300,2,2.5\n")
    theirs = import_curves(runs_dir, "theirs", table, read_csv(table))
    async with recorded(runs_dir) as shown:
        await shown.press("c")
        await until(lambda: isinstance(shown.app.screen, CompareScreen))
        dialog = shown.app.screen
        assert isinstance(dialog, CompareScreen)
        await until(lambda: len(dialog._folders) == 1)
        await shown.press("space")
        await until(lambda: "2.500" in dialog.query_one(".table", Label).plain)
        await shown.press("escape")
        await until(lambda: "chart-compare-1" in shown.colours)
        assert "A theirs" in shown.legend
    row = KnownRuns().row(theirs)
    assert (row.problem, row.resumable, row.standing) == ("", False, "finished")
    assert row.corpus == f"imported from {table}"


async def test_imported_curves_are_shown_by_themselves(runs_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "their.csv"
    table.write_text("step,loss\n100,3\n300,2\n")
    theirs = import_curves(runs_dir, "theirs", table, read_csv(table))
    app = make_app(make_workbench(runs_dir), run=theirs)
    async with app.run_test(size=WIDE):
        await until(lambda: isinstance(app.screen, TrainingScreen))
        assert app.workbench.training.shown is not None
        assert app.workbench.training.shown.name == "theirs"


async def test_fork_from_the_checkpoint_nearest_to_the_cursor(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    trainer = GatedTrainer(
        [started(step=400, parent="shakespeare-cpu", parent_step=400), report(420)]
    )
    app = make_app(make_workbench(runs_dir, trainer), run=folder)
    async with app.run_test(size=WIDE) as pilot:
        shown = Shown(app, pilot)
        await until(lambda: isinstance(app.screen, TrainingScreen) and "┤" in shown.loss.text)
        await shown.press(*["h"] * 6, "F")
        await until(lambda: isinstance(app.screen, AskValues))
        assert "step 400" in app.screen.query(Label)[1].plain
        field = next(i for i in app.screen.query(Input) if i.value == "0.003")
        field.focus()
        await shown.press("end", *["backspace"] * 5, *"nonsense", "enter")
        await until(lambda: "must be a number" in app.screen.query_one(".error", Label).plain)
        await shown.press(*["backspace"] * 8, *"0.001", "enter")
        await until(lambda: app.workbench.training.training is not None)
        child = shown.run.folder
        assert child.name == "shakespeare-cpu-at-400"
        assert child.read_parent() == ("shakespeare-cpu", 400)
        assert child.read_config().training.learning_rate == 0.001
        assert [c.step for c in child.checkpoints()] == [400]
        trainer.release(2)
        await until(lambda: "chart-parent" in shown.colours)
        # Whole up to the fork from the first drawing on, also while the child has not begun.
        dimmed = next(c for c in shown.loss.plot.curves if c.colour == "chart-parent")
        assert max(dimmed.xs) == 400
        app.workbench.training.stop()
        trainer.release(5)
        await until(app.workbench.training.idle.is_set)


async def test_live_learning_rate_edit(runs_dir: Path) -> None:
    events = [started(), *(report(step) for step in range(10, 400, 10))]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(3)
        await until(lambda: shown.run.standing == "running")
        await shown.press("C")
        await until(lambda: isinstance(shown.app.screen, AskValues))
        form = shown.app.screen
        assert isinstance(form, AskValues)
        assert {question.key for question in form._questions} == {
            "training.learning_rate", "training.steps",
        }  # fmt: skip
        await shown.press("home", *["delete"] * 8, *"0.001", "enter")
        await until(lambda: isinstance(shown.app.screen, TrainingScreen))
        trainer.release(1)
        await until(lambda: trainer.obeyed == [Change("training.learning_rate", 0.001)])


async def test_read_only_attach(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(lines[:-1]))
    with folder.lock():  # somebody else trains it
        app = make_app(make_workbench(runs_dir), run=folder)
        async with app.run_test(size=WIDE) as pilot:
            shown = Shown(app, pilot)
            await until(lambda: isinstance(app.screen, TrainingScreen))
            await until(lambda: shown.run.standing == "running" and shown.run.detached)
            with folder.events_path.open("ab") as log:
                log.write(encode_event(report(440, 1.111)))
            await until(lambda: "1.111" in shown.text("now"))


# The film strip


async def test_film_strip_is_scrubbed_and_follows_the_newest(runs_dir: Path) -> None:
    samples = [
        SampleGenerated(step=100 * i, time=NOW, prompt="O ", text="la " * (20 * (i % 3) + 1))
        for i in range(1, 9)
    ]
    events: list[Event] = [started()]
    for i, sample in enumerate(samples, 1):
        events += [report(100 * i), sample]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(1 + 2 * 6)
        await until(lambda: "step 600" in str(shown.panel("sample").border_title))
        await shown.press("left", "left")
        title = str(shown.panel("sample").border_title)
        assert "step 400" in title and "train 2.000" in title
        assert shown.screen.query_one(".sample-text", Label).plain == "O " + "la " * 21
        trainer.release(2)
        await until(lambda: len(shown.run.state.samples) == 7)
        assert "step 400" in str(shown.panel("sample").border_title)
        assert "4 of 7" in str(shown.panel("sample").border_subtitle)
        await shown.press("right")
        assert "step 500" in str(shown.panel("sample").border_title)
        await shown.press("home")
        assert "step 100" in str(shown.panel("sample").border_title)
        await shown.press("end")
        assert "step 700" in str(shown.panel("sample").border_title)
        trainer.release(2)
        await until(lambda: "step 800" in str(shown.panel("sample").border_title))


# What was chosen


async def test_axes_smoothing_and_panels_are_remembered(runs_dir: Path, tmp_path: Path) -> None:
    folder = copy_recorded(runs_dir)
    for visit in range(2):
        workbench = make_workbench(runs_dir)
        workbench.preferences = Preferences(tmp_path / "preferences.json")
        app = make_app(workbench, run=folder)
        async with app.run_test(size=WIDE) as pilot:
            shown = Shown(app, pilot)
            await until(shown.is_there)
            if visit == 0:
                await shown.press("x", "Y", "L", "+", "P", "_", "m", "5")
            view = shown.screen.charts.view
            assert (view.x_axis, view.unit, view.log_y, view.smoothing) == ("time", "bits", True, 4)
            assert (view.raw, view.references, shown.screen.charts.metric) == (
                False,
                False,
                "gradient",
            )
            await until(partial(shown.displays, "log", False))
