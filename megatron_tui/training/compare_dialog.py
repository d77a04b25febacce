"""Choose the runs to lay over the loss chart, and read what differs between their settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import ScrollableContainer, Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option
from textual.worker import get_current_worker

from megatron_model.run.comparison import Compared, read_run
from megatron_model.run.folder import RunFolder, list_runs
from megatron_model.util.text import safe
from megatron_tui.comparison.lines import colour_of, sign_of
from megatron_tui.comparison.writing import ask_where_to_write
from megatron_tui.training.difference_table import WIDEST, difference_table
from megatron_tui.ui import formatting
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen, Options
from megatron_tui.ui.panel import Label

MANY = 200
"""So many runs are offered, the newest first."""


class RunList(Options):
    """The runs; a mark is set after the keys that were typed before it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "space,enter",
            "screen.mark",
            "Mark",
            tooltip="Lay it over the chart, or take it away",
            id="compare.mark",
        ),
    ]


class CompareScreen(ModalScreen[tuple[Compared, ...]]):
    """A list of runs over a table; closing it hands back the marked ones."""

    CSS_PATH = "compare.tcss"
    AUTO_FOCUS = "OptionList"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("0", "clear", "Unmark all", tooltip="Compare with nothing", id="compare.clear"),
        Binding("escape,c,q", "close", "Close", tooltip="Back to the chart", id="compare.close"),
        Binding("v", "view", "View", tooltip="Lay them over each other, ranked", id="compare.view"),
        Binding("w", "write", "Write", tooltip="Write what differs to a file", id="compare.write"),
        Binding("h,left", "aside(-1)", show=False, tooltip="Table to the left", id="compare.left"),
        Binding(
            "l,right", "aside(1)", show=False, tooltip="Table to the right", id="compare.right"
        ),
        Binding("j", "move('down')", show=False),
        Binding("k", "move('up')", show=False),
        Binding(
            "pageup,ctrl+u",
            "page(-1)",
            "Table",
            tooltip="Scroll the table up",
            id="compare.page_up",
            priority=True,  # the list would take it for itself
        ),
        Binding(
            "pagedown,ctrl+d",
            "page(1)",
            "Table",
            tooltip="Scroll the table down",
            id="compare.page_down",
            priority=True,
        ),
    ]

    def __init__(self, folder: RunFolder, own: Compared, marked: Sequence[Compared]) -> None:
        super().__init__()
        self._own_folder, self._own = folder, own
        self._folders: list[RunFolder] = []
        self.marked: list[Compared] = list(marked)

    def compose(self) -> ComposeResult:
        """Runs, differences, keys."""
        with Vertical(classes="compare"):
            yield Label(Content.assemble((f"Compare {self._own.name} with", "bold")))
            yield RunList(markup=False)
            with ScrollableContainer(can_focus=False):
                yield Label(classes="table")
            yield KeyHints()

    def on_mount(self) -> None:
        """List the runs."""
        self._read_list()

    def on_resize(self) -> None:
        """The table's columns depend on the width."""
        self.call_after_refresh(self._show_table)

    @work(thread=True, exclusive=True, group="compare", exit_on_error=False)
    def _read_list(self) -> None:
        found = [
            folder
            for folder in list_runs(self._own_folder.path.parent)
            if folder.path != self._own_folder.path
        ]
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._offer, found[:MANY])

    def _offer(self, folders: list[RunFolder]) -> None:
        self._folders = folders
        self._show_list()
        self._show_table()

    def _show_list(self) -> None:
        self.refresh_bindings()
        options = self.query_one(OptionList)
        before = options.highlighted or 0
        options.clear_options()
        options.add_options([Option(self._line(folder)) for folder in self._folders])
        if self._folders:
            options.highlighted = min(before, len(self._folders) - 1)

    def _line(self, folder: RunFolder) -> Content:
        name = safe(folder.name, one_line=True)
        names = [run.name for run in self.marked]
        shown = formatting.shortened(name, 48)
        if name not in names:
            return Content(f"    {shown}")
        place = names.index(name)
        return Content.assemble(
            (f"  {sign_of(place)} ", f"bold ${colour_of(place)}"), (shown, "bold")
        )

    def _show_table(self) -> None:
        text = self.query_one(".table", Label)
        if not self._folders:
            text.show(Content.styled("There is no other run to compare with.", "$quiet"))
        elif not self.marked:
            text.show(Content.styled("Mark a run: its settings stand here beside these.", "$quiet"))
        else:
            width = max(40, self.query_one(ScrollableContainer).size.width - 2)
            text.show(difference_table(self._own, self.marked, width), layout=True)

    @on(OptionList.OptionSelected)
    def _clicked(self) -> None:
        self.action_mark()

    def action_mark(self) -> None:
        """Mark the run under the cursor, or unmark it."""
        index = self.query_one(OptionList).highlighted
        if index is None or not 0 <= index < len(self._folders):
            return
        name = safe(self._folders[index].name, one_line=True)
        kept = [run for run in self.marked if run.name != name]
        if len(kept) < len(self.marked):
            self.marked = kept
            self._show_list()
            self._show_table()
        else:
            self._read(self._folders[index])

    @work(thread=True, group="compare-read", exit_on_error=False)
    def _read(self, folder: RunFolder) -> None:
        run = read_run(folder)
        if not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._mark, run)

    def _mark(self, run: Compared) -> None:
        if all(run.name != other.name for other in self.marked):
            self.marked.append(run)
        self._show_list()
        self._show_table()

    def action_clear(self) -> None:
        """Unmark every run."""
        self.marked = []
        self._show_list()
        self._show_table()

    def action_write(self) -> None:
        """Ask for a file, and write the table of what differs."""
        ask_where_to_write(self.app, [self._own, *self.marked])

    def action_view(self) -> None:
        """Show the run and those that are marked over each other."""
        from megatron_tui.comparison.screen import ComparisonScreen

        self.app.push_screen(ComparisonScreen([self._own, *self.marked]))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what needs another run only where one is marked."""
        return bool(self.marked) if action in ("write", "view", "clear") else True

    def action_aside(self, direction: int) -> None:
        """Scroll a wide table."""
        scroll = self.query_one(ScrollableContainer)
        scroll.scroll_relative(x=direction * WIDEST, animate=False)

    def action_close(self) -> None:
        """Close with the marked runs."""
        self.dismiss(tuple(self.marked))

    def action_move(self, direction: str) -> None:
        """Move the cursor."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if direction == "down" else options.action_cursor_up()

    def action_page(self, direction: int) -> None:
        """Scroll the table."""
        scroll = self.query_one(ScrollableContainer)
        scroll.scroll_relative(y=direction * max(1, scroll.size.height - 1), animate=False)
