"""Any number of runs over each other: the chart, and below it who is ahead and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from rich.style import Style
from rich.text import Text as RichText
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from megatron_model.run.comparison import Compared, Ranked, differing, ranked
from megatron_model.util.text import plural
from megatron_tui.comparison.lines import colour_of
from megatron_tui.comparison.view import (
    AXIS_TITLES,
    TITLES,
    ComparisonView,
    Points,
    comparison_curves,
    comparison_plot,
    legend_row,
    title_of,
)
from megatron_tui.comparison.writing import ask_where_to_write
from megatron_tui.plot.chart import Chart
from megatron_tui.ui import formatting
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Panel

NAME_WIDTH = 36


class Legend(DataTable[RichText]):
    """The runs as they are ranked; it scrolls both ways."""

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False, fixed_columns=2)


class ComparisonScreen(ModalScreen[None]):
    """Curves over a ranked legend; the run under the cursor stands out."""

    CSS_PATH = "comparison.tcss"
    AUTO_FOCUS = "Legend"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "x_axis", "Axis", tooltip="Compare by the next axis", id="comparison.axis"),
        Binding(
            "plus", "smooth(1)", "Smooth", key_display="+", tooltip="Smooth more",
            id="comparison.smoother",
        ),
        Binding(
            "minus", "smooth(-1)", "Smooth", key_display="-", tooltip="Smooth less",
            id="comparison.rougher",
        ),
        Binding(
            "L", "log_scale", "Log", tooltip="Logarithmic loss on or off", id="comparison.log"
        ),
        Binding(
            "w", "write", "Write", tooltip="Write the table as CSV or Markdown",
            id="comparison.write",
        ),
        Binding("escape,q,c", "close", "Close", tooltip="Back", id="comparison.close"),
        Binding("j", "move(1)", show=False, tooltip="Next run", id="comparison.down"),
        Binding("k", "move(-1)", show=False, tooltip="Previous run", id="comparison.up"),
        Binding("h", "aside(-1)", show=False, tooltip="Table to the left", id="comparison.left"),
        Binding("l", "aside(1)", show=False, tooltip="Table to the right", id="comparison.right"),
    ]  # fmt: skip

    def __init__(self, runs: Sequence[Compared]) -> None:
        super().__init__()
        self._runs = list(runs)
        self._keys = differing(self._runs)
        self.view = ComparisonView()
        self.ranked: list[Ranked] = []
        self._points: list[Points] = []
        """The curves of those, in the same order."""

    def compose(self) -> ComposeResult:
        """Chart, legend, keys."""
        with Panel("", id="curves"):
            yield Chart("No run has a curve along this axis.")
        with Panel("", id="legend"):
            yield Legend()
        yield KeyHints()

    def on_mount(self) -> None:
        """Rank the runs."""
        table = self.query_one(Legend)
        for number, title in enumerate([*TITLES, *map(title_of, self._keys)]):
            heading = RichText(title, justify="left" if number < 2 else "right")
            table.add_column(heading, key=str(number))
        self._rank()

    def _rank(self) -> None:
        """Rank the runs anew; the cursor stays on its run."""
        table, chosen = self.query_one(Legend), self.chosen
        self.ranked = ranked(self._runs, self.view.by, self.view.kept)
        self._points = comparison_curves(self.ranked, self.view)
        table.clear()
        for place, each in enumerate(self.ranked):
            sign, name, *numbers = legend_row(each, place, self._keys)
            table.add_row(
                RichText(sign, style=self._ink(colour_of(place))),
                RichText(formatting.shortened(name, NAME_WIDTH)),
                *(RichText(number, justify="right") for number in numbers),
                key=str(place),
            )
        rows = [place for place, each in enumerate(self.ranked) if each.run is chosen]
        table.move_cursor(row=rows[0] if rows else 0)
        smoothing = f", smoothing {self.view.kept:g}" if self.view.kept else ""
        curves = self.query_one("#curves", Panel)
        curves.set_title(f"loss by {AXIS_TITLES[self.view.by]}{smoothing}")
        known = sum(each.rank > 0 for each in self.ranked)
        without = len(self.ranked) - known
        title = f"{plural(len(self.ranked), 'run')}, the best first"
        if without:
            title += f"; {without} without a curve by {AXIS_TITLES[self.view.by]}"
        legend = self.query_one("#legend", Panel)
        legend.set_title(title)
        legend.set_subtitle("level: as far as all of them came")
        self._draw()

    def _ink(self, colour: str) -> Style:
        return Style.parse(f"bold {self.app.theme_variables.get(colour, '')}".strip())

    @property
    def chosen(self) -> Compared | None:
        """The run under the cursor."""
        row = self.query_one(Legend).cursor_row
        return self.ranked[row].run if 0 <= row < len(self.ranked) else None

    @on(DataTable.RowHighlighted)
    def _draw(self) -> None:
        row = self.query_one(Legend).cursor_row
        self.query_one(Chart).show(comparison_plot(self._points, self.view, row))

    def action_x_axis(self) -> None:
        """Go on to the next axis."""
        self.view = self.view.next_axis()
        self._rank()

    def action_smooth(self, change: int) -> None:
        """Smooth more or less."""
        self.view = self.view.smoother(change)
        self._rank()

    def action_log_scale(self) -> None:
        """Switch between linear and logarithmic loss."""
        self.view = replace(self.view, log_y=not self.view.log_y)
        self._draw()

    def action_write(self) -> None:
        """Ask for a file, and write the table."""
        ask_where_to_write(self.app, self._runs, self.view.by)

    def action_move(self, change: int) -> None:
        """Move the cursor."""
        table = self.query_one(Legend)
        table.move_cursor(row=max(0, table.cursor_row + change))

    def action_aside(self, direction: int) -> None:
        """Scroll a wide table."""
        self.query_one(Legend).scroll_relative(x=direction * 16, animate=False)

    def action_close(self) -> None:
        """Close."""
        self.dismiss()
