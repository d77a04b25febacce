"""The panels of the Training screen; each is shown a run's state and draws its part of it."""

from __future__ import annotations

from textual.app import ComposeResult, RenderResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.reactive import reactive
from textual.widget import Widget

from megatron_model.run_state import RunState
from megatron_model.text import safe
from megatron_tui import curves, figures, formatting
from megatron_tui.curves import SMOOTHING, ChartView
from megatron_tui.training_service import OpenRun
from megatron_tui.widgets.chart import Chart
from megatron_tui.widgets.panel import Panel, Text


class LossPanel(Panel):
    """Train loss raw and smoothed, validation loss, the best of it."""

    def __init__(self) -> None:
        super().__init__("loss, nats per character", id="loss")

    def compose(self) -> ComposeResult:
        """Legend over chart."""
        yield Text(classes="legend")
        yield Chart("The curve begins with the first report.")

    def show(self, state: RunState, view: ChartView) -> None:
        """Draw the curves."""
        legend = figures.loss_legend(state, SMOOTHING[view.smoothing], self.size.width)
        self.query_one(Text).show(legend)
        self.query_one(Chart).show(curves.loss_plot(state, view))
        self.set_subtitle("log scale" if view.log_y else "")


class FiguresPanel(Panel):
    """The newest of every measurement, in two columns."""

    def __init__(self) -> None:
        super().__init__("now", id="now")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Text()

    def show(self, state: RunState) -> None:
        """Write the figures."""
        pairs = figures.now_figures(state, short=self.size.width >= TWO_COLUMNS)
        if self.size.height > 7:
            pairs += figures.about_figures(state)
        self.query_one(Text).show(two_columns(pairs, self.size.width))


class MemoryPanel(Panel):
    """Memory over time: of the GPU where there is one, else of the trainer's process."""

    def __init__(self) -> None:
        super().__init__("memory", id="memory")

    def compose(self) -> ComposeResult:
        """Figures over chart."""
        yield Text(classes="legend")
        yield Chart("No measurement yet.")

    def show(self, state: RunState, view: ChartView) -> None:
        """Draw the curve."""
        self.set_title(figures.memory_title(state))
        self.query_one(Text).show(figures.memory_line(state))
        self.query_one(Chart).show(curves.memory_plot(state, view))
        self.set_subtitle(curves.memory_unit(state) if len(state.memory) else "")


class SamplePanel(Panel):
    """What the model wrote last."""

    def __init__(self) -> None:
        super().__init__("sample", id="sample")

    def compose(self) -> ComposeResult:
        """One text that can be scrolled."""
        with VerticalScroll(can_focus=False):
            yield Text(classes="sample-text")

    def show(self, state: RunState) -> None:
        """Write the newest sample."""
        text = self.query_one(Text)
        if not state.samples:
            self.set_title("sample")
            text.show(Content.styled("The model writes here at every validation.", "$quiet"))
            return
        sample = state.samples[-1]
        self.set_title(f"sample at step {sample.step:,}")
        text.show(
            Content.assemble((safe(sample.prompt), "$quiet"), safe(sample.text).expandtabs(4)),
            layout=True,
        )


class LogPanel(Panel):
    """What happened, newest last."""

    def __init__(self) -> None:
        super().__init__("log", id="log")

    def compose(self) -> ComposeResult:
        """One text that follows its end."""
        with VerticalScroll(can_focus=False):
            yield Text()

    def on_mount(self) -> None:
        """Follow the end."""
        self.query_one(VerticalScroll).anchor()

    def show(self, run: OpenRun) -> None:
        """Write the lines."""
        lines = figures.log_lines(run.state)
        if run.problem:
            problem = Content.styled(safe(run.problem), "$error")
            lines = Content("\n").join([lines, problem]) if lines.plain else problem
        self.query_one(Text).show(lines, layout=True)


class RunProgress(Widget):
    """Phase, bar, time gone and left, age of the last word from the trainer."""

    DEFAULT_CSS = """
    RunProgress { height: 1; width: 1fr; padding: 0 2; }
    """

    line: reactive[tuple[str, float, str]] = reactive(("", 0.0, ""))
    """What is going on, how much is done, and the rest in words."""

    def show(self, run: OpenRun, now: float) -> None:
        """Write the line."""
        state = run.state
        words = []
        if state.elapsed_seconds:
            words.append(f"{formatting.duration(state.elapsed_seconds)} trained")
        if run.active and state.remaining_seconds is not None:
            words.append(f"{formatting.duration(state.remaining_seconds)} left")
        if run.active and state.last_time:
            words.append(f"last word {formatting.age(max(0.0, now - state.last_time))}")
        self.line = (self._phase(run), round(state.progress, 3), "   ".join(words))

    def _phase(self, run: OpenRun) -> str:
        if run.standing == "stopping":
            return "saving, then stopping"
        phase, share = run.state.phase, run.state.phase_progress
        if not run.active or phase is None:
            return run.standing
        return phase if share is None else f"{phase} {formatting.percent(share)}"

    def render(self) -> RenderResult:
        """Return the line."""
        phase, share, words = self.line
        done = f" {share * 100:.0f}% "
        width = self.size.width - len(phase) - len(done) - len(words) - 4
        bar = figures.progress_bar(share, max(0, width))
        return Content.assemble((phase, "bold"), "  ", bar, done, " ", (words, "$quiet"))


TWO_COLUMNS = 38
"""Cells that two columns of figures need."""


def two_columns(pairs: list[tuple[str, str]], width: int) -> Content:
    """Return labels and values in two columns, or in one where two would be cut."""
    columns = 2 if width >= TWO_COLUMNS else 1
    labels = [max(len(label) for label, _ in pairs[c::columns]) for c in range(columns)]
    values = [max(len(value) for _, value in pairs[c::columns]) for c in range(columns)]
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
