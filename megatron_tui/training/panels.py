"""The panels of the Training screen; each is shown a run's state and draws its part of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ClassVar, Generic, NamedTuple, TypeVar

from textual.app import ComposeResult
from textual.containers import Grid, VerticalScroll
from textual.content import Content
from textual.timer import Timer
from textual.widget import Widget

from megatron_model.events.schema import SampleGenerated
from megatron_model.events.state import LogLine, RunState
from megatron_model.util.text import safe
from megatron_tui.plot.chart import Chart
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.training import curves, film_strip, readouts
from megatron_tui.training.alerts import AlertWatch
from megatron_tui.training.chart_view import UNIT_TITLES, Axis, ChartView, Unit
from megatron_tui.training.curves import METRICS, LossData, Metric, MetricData, Newest
from megatron_tui.training.film_strip import FilmStrip
from megatron_tui.training.other_runs import OtherRun
from megatron_tui.ui import formatting
from megatron_tui.ui.panel import Label, Panel

Drawn = TypeVar("Drawn")
Look = TypeVar("Look")
Data = TypeVar("Data")


class TrainingPanel(Panel, Generic[Drawn], can_focus=True):
    """A panel that can be chosen with tab, to be zoomed; what it shows follows from a `Drawn`."""

    DEFAULT_CSS = """
    TrainingPanel:focus { border: round $primary; }
    """

    again: Callable[[], object] | None = None
    """Shows the same once more: how much fits depends on the size."""
    _drawn: Drawn | None = None
    """What the picture on show was made of; None before the first one, and for another size."""

    def on_resize(self) -> None:
        """Draw for the new size, once the parts have theirs."""
        self._drawn = None
        if self.again is not None:
            self.call_after_refresh(self.again)

    def is_new(self, drawn: Drawn) -> bool:
        """Whether a picture of this is not on show yet; it is then taken to be drawn."""
        if drawn == self._drawn or not self.size:
            return False
        self._drawn = drawn
        return True


class ChartPanel(TrainingPanel[tuple[Look, Data]], Generic[Look, Data]):
    """A panel with charts: drawn at once for a person, and at most so often for the run."""

    PAUSE: ClassVar[float] = 0.5
    """Seconds before a chart is drawn again for the sake of the run."""
    _drawn_at = 0.0
    _timer: Timer | None = None

    def due(self, look: Look, data: Data) -> bool:
        """Whether to draw now: another look at once, more data when enough time has passed."""
        if self._drawn is not None and look == self._drawn[0]:
            if self._drawn == (look, data):
                return False
            wait = self._drawn_at + self.PAUSE - time.monotonic()
            if wait > 0:
                if self._timer is None and self.again is not None:
                    self._timer = self.set_timer(wait, self._draw_now)
                return False
        if not self.is_new((look, data)):
            return False
        self._drawn_at = time.monotonic()
        return True

    def _draw_now(self) -> None:
        self._timer = None
        if self.again is not None:
            self.again()


NO_REPORT = "The curve begins with the first report."


class LossLook(NamedTuple):
    """How a person looks at the loss chart."""

    view: ChartView
    others: tuple[tuple[str, float], ...]
    """Name and end of each other run."""


class LossPanel(ChartPanel[LossLook, LossData]):
    """Train loss raw and smoothed, validation loss, the best of it, other runs."""

    def __init__(self) -> None:
        super().__init__("loss", id="loss")

    def compose(self) -> ComposeResult:
        """Legend over chart."""
        yield Label(classes="legend")
        yield Chart(NO_REPORT)

    @property
    def columns(self) -> int:
        """About how many cells the curves are wide."""
        return max(10, self.query_one(Chart).size.width - 6)

    def show(self, state: RunState, view: ChartView, others: Sequence[OtherRun] = ()) -> None:
        """Draw the curves."""
        self.again = partial(self.show, state, view, others)
        look = LossLook(view, tuple((other.name, other.until) for other in others))
        if not self.due(look, curves.loss_data(state, view, others)):
            return
        self.set_title(UNIT_TITLES[view.unit])
        width = self.query_one(Label).size.width
        if view.cursor is None:
            chart = self.query_one(Chart)
            train, measured = ("*" if chart.ascii_only else "━"), "━"
            if chart.ascii_only or not chart.colours:
                measured = "o"
            signs = (train, measured, "X" if chart.ascii_only else "◆")
            legend = readouts.loss_legend(state, view, width, others, signs)
        else:
            legend = readouts.cursor_line(state, view, width)
        self.query_one(Label).show(legend)
        empty = "Every loss so far is NaN or infinity." if len(state.train_loss) else NO_REPORT
        self.query_one(Chart).show(curves.loss_plot(state, view, others), empty=empty)
        notes = [f"{2**view.zoom}x"] if view.zoom else []
        notes += ["log scale"] if view.log_y else []
        self.set_subtitle(" · ".join([*notes, Axis(state, view.x_axis).title]))


class FiguresPanel(TrainingPanel[list[tuple[str, str]]]):
    """The newest of every measurement, in two columns."""

    def __init__(self) -> None:
        super().__init__("now", id="now")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Label()

    def show(self, state: RunState) -> None:
        """Write the readouts."""
        self.again = partial(self.show, state)
        width, height = self.size
        columns = 2 if width >= TWO_COLUMNS else 1
        pairs = readouts.now_figures(state, short=columns == 2)
        if height * columns >= len(pairs) + 4:
            pairs += readouts.about_figures(state)
        if self.is_new(pairs):
            self.query_one(Label).show(two_columns(pairs[: height * columns], width))


class MetricChart(Widget):
    """One of the further measurements: its newest value over its curve."""

    DEFAULT_CSS = """
    MetricChart { layout: vertical; height: 1fr; }
    """

    def __init__(self, metric: Metric) -> None:
        super().__init__(id=f"chart-{metric}")
        self.metric: Metric = metric

    def compose(self) -> ComposeResult:
        """Title, value, chart."""
        yield Label(classes="legend metric-title")
        yield Label(classes="legend metric-value")
        yield Chart("No measurement yet.")

    def show(self, state: RunState, view: ChartView, *, titled: bool) -> None:
        """Draw the curve."""
        title = self.query_one(".metric-title", Label)
        title.display = titled
        title.show(Content.styled(readouts.metric_title(state, self.metric), "bold"))
        value = self.query_one(".metric-value", Label)
        value.show(readouts.metric_line(state, view, self.metric, value.size.width))
        self.query_one(Chart).show(curves.metric_plot(state, view, self.metric))


class MetricsPanel(ChartPanel[tuple[ChartView, Metric], MetricData]):
    """Memory, gradient norm, learning rate and speed: one of them, or as many as fit."""

    PAUSE = 2.0
    EACH = (12, 7)
    """Rows that a chart wants in one column, and in two, which are wide enough to be low."""

    def __init__(self) -> None:
        super().__init__("memory", id="metrics")

    def compose(self) -> ComposeResult:
        """A grid of charts."""
        with Grid():
            for metric in METRICS:
                yield MetricChart(metric)

    def show(self, state: RunState, view: ChartView, chosen: Metric) -> None:
        """Draw the chosen curve, and those after it if there is room."""
        self.again = partial(self.show, state, view, chosen)
        if not self.due((view, chosen), curves.metric_data(state, view)):
            return
        columns = 2 if self.size.width >= 76 else 1
        rows = max(1, self.size.height // self.EACH[columns - 1])
        count = min(len(METRICS), rows * columns)
        first = METRICS.index(chosen)
        shown = [METRICS[(first + offset) % len(METRICS)] for offset in range(count)]
        self.query_one(Grid).styles.grid_size_columns = 1 if count == 1 else columns
        several = count > 1
        self.set_title("measurements" if several else readouts.metric_title(state, chosen))
        self.set_subtitle(readouts.metric_note(state, "" if several else chosen))
        for chart in self.query(MetricChart):
            chart.display = chart.metric in shown
            if chart.display:
                chart.show(state, view, titled=several)
                if not chart.size:
                    self.call_after_refresh(chart.show, state, view, titled=several)


class Frame(NamedTuple):
    """What the frame of the film on show follows from."""

    length: int
    newest: SampleGenerated | None
    strip: FilmStrip
    unit: Unit
    val_loss: Newest | None


class SamplePanel(TrainingPanel[Frame]):
    """What the model wrote, at every evaluation: a film to be scrubbed."""

    def __init__(self) -> None:
        super().__init__("sample", id="sample")

    def compose(self) -> ComposeResult:
        """The strip of frames under the text of one, which can be scrolled."""
        with VerticalScroll(can_focus=False):
            yield Label(classes="sample-text")
        yield Label(classes="film")

    def show(self, state: RunState, strip: FilmStrip, unit: Unit = "nats") -> None:
        """Write the frame."""
        self.again = partial(self.show, state, strip, unit)
        samples = state.samples
        newest = samples[-1] if samples else None
        frame = Frame(len(samples), newest, strip, unit, curves.newest(state.val_loss))
        if not self.is_new(frame):
            return
        text, film = self.query_one(".sample-text", Label), self.query_one(".film", Label)
        film.display = len(state.samples) > 1 and self.size.height > 2
        if not state.samples:
            self.set_title("sample")
            self.set_subtitle("")
            text.show(film_strip.no_samples())
            return
        index = strip.index(state.samples)
        sample = state.samples[index]
        self.set_title(film_strip.frame_title(state, index, unit))
        self.set_subtitle(film_strip.frame_place(state, index, strip))
        film.show(film_strip.film_line(state.samples, index, self.size.width))
        written = Content.assemble((safe(sample.prompt), "$quiet"), safe(sample.text).expandtabs(4))
        if written.plain != text.plain:
            # Another length must not leave the view behind the end of a shorter text.
            self.query_one(VerticalScroll).scroll_home(animate=False)
        text.show(written, layout=True)


class LogEnd(NamedTuple):
    """What the lines of the log follow from: whose they are, how many, and the last ones."""

    path: Path
    length: int
    last: LogLine | None
    problem: str | None


class LogPanel(TrainingPanel[LogEnd]):
    """What happened, newest last."""

    def __init__(self) -> None:
        super().__init__("log", id="log")

    def compose(self) -> ComposeResult:
        """One text that follows its end."""
        with VerticalScroll(can_focus=False):
            yield Label()

    def on_mount(self) -> None:
        """Follow the end."""
        self.query_one(VerticalScroll).anchor()

    def show(self, run: RunHandle) -> None:
        """Write the lines."""
        self.again = partial(self.show, run)
        log = run.state.log
        if not self.is_new(LogEnd(run.path, len(log), log[-1] if log else None, run.problem)):
            return
        lines = readouts.log_lines(run.state)
        if run.problem:
            problem = Content.styled(safe(run.problem), "$error")
            lines = Content("\n").join([lines, problem]) if lines.plain else problem
        self.query_one(Label).show(lines, layout=True)


class AlertBar(Label):
    """The alert that a person should read now; nothing while there is none."""

    DEFAULT_CSS = """
    AlertBar { height: auto; max-height: 3; padding: 0 2; display: none; }
    """

    def show_alerts(self, alerts: AlertWatch) -> None:
        """Write the chosen alert."""
        self.display = bool(alerts.found)
        if alerts.found:
            self.show(readouts.alert_lines(alerts.found, alerts.chosen), layout=True)


class RunProgress(Label):
    """Activity, bar, time left and trained, age of the last event, what the drawing costs."""

    DEFAULT_CSS = """
    RunProgress { height: 1; width: 1fr; padding: 0 2; }
    """

    _parts: tuple[str, float, tuple[str, ...]] = ("", 0.0, ())
    """What is going on, how much is done, and the rest in words, the most important first."""

    def tell(self, run: RunHandle, now: float, redrawing: str = "") -> None:
        """Write the line; `redrawing` is how often it is and what that costs."""
        state = run.state
        words = []
        if run.active and state.remaining_seconds is not None:
            words.append(f"{formatting.duration(state.remaining_seconds)} left")
        if state.elapsed_seconds:
            words.append(f"{formatting.duration(state.elapsed_seconds)} trained")
        # A paused run has no age to count: nothing is sent while nothing happens.
        if run.standing == "running" and state.last_time:
            words.append(f"updated {formatting.age(max(0.0, now - state.last_time))}")
        if run.active and redrawing:
            words.append(redrawing)
        parts = (run.activity(now), round(state.progress, 3), tuple(words))
        if parts != self._parts:
            self._parts = parts
            self.show(self._line())

    def on_resize(self) -> None:
        """Another width has room for other words."""
        self.show(self._line())

    def _line(self) -> Content:
        """Return the line; words that leave no room for the bar go first."""
        activity, share, words = self._parts
        done = f" {share * 100:.0f}% "
        while True:
            rest = "   ".join(words)
            width = self.size.width - len(activity) - len(done) - len(rest) - 3
            if width >= 10 or not words:
                break
            words = words[:-1]
        bar = readouts.progress_bar(share, max(0, width))
        return Content.assemble((activity, "bold"), "  ", bar, done, " ", (rest, "$quiet"))


TWO_COLUMNS = 38
"""Cells that two columns of figures need."""


def two_columns(pairs: list[tuple[str, str]], width: int) -> Content:
    """Return labels and values in two columns, or in one where two would be cut."""
    columns = 2 if width >= TWO_COLUMNS else 1
    labels = [
        max((len(label) for label, _ in pairs[c::columns]), default=0) for c in range(columns)
    ]
    values = [
        max((len(value) for _, value in pairs[c::columns]), default=0) for c in range(columns)
    ]
    lines: list[Content] = []
    for index in range(0, len(pairs), columns):
        line = Content("")
        for column, (label, value) in enumerate(pairs[index : index + columns]):
            gap = "  " if column else ""
            padded = value.ljust(values[column]) if column < columns - 1 else value
            line = Content.assemble(
                line, gap, (f"{label:<{labels[column]}} ", "$quiet"), (padded, "bold")
            )
        lines.append(line)
    return Content("\n").join(lines)
