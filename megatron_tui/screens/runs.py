"""The Runs screen: every run, newest first; open, resume, write with, delete."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text as RichText
from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.events import Resize, ScreenResume
from textual.widgets import DataTable
from textual.worker import get_current_worker

from megatron_model.errors import RequestError
from megatron_model.run_folder import list_runs
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.messages import GenerationRequested, ResumeRequested, RunOpened
from megatron_tui.open_run import OpenRun
from megatron_tui.runs_view import KnownRuns, RunRow, read_row
from megatron_tui.screens.dialogs import Confirm
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.widgets.header import SIGNS
from megatron_tui.widgets.panel import Panel, Text
from megatron_tui.workbench import Workbench

REFRESH_SECONDS = 5.0

COLUMNS = (("run", 22), ("status", 13), ("step", 16), ("best", 6), ("last word", 9))
"""Titles and widths; together they fit 80 columns."""

EMPTY = Content.assemble(
    ("No runs yet.\n\n", "bold"), "Press ", ("F2", "bold $primary"), " to set up the first one."
)


class RunsScreen(WorkbenchScreen):
    """Compose the table and the facts, pass what was asked up."""

    MODE = "runs"
    AUTO_FOCUS = "DataTable"
    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", tooltip="Show the run", id="runs.open", priority=True),
        Binding("r", "resume", "Resume", tooltip="Train the run further", id="runs.resume"),
        Binding("g", "generate", "Generate", tooltip="Write with its model", id="runs.write"),
        Binding("D", "delete", "Delete", tooltip="Delete the run and its folder", id="runs.delete"),
        Binding("j", "move(1)", "Down", show=False, tooltip="Next run", id="runs.down"),
        Binding("k", "move(-1)", "Up", show=False, tooltip="Previous run", id="runs.up"),
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.rows: list[RunRow] = []
        self._known = KnownRuns()
        self._name_width = COLUMNS[0][1]

    def compose_body(self) -> ComposeResult:
        """Table over facts; a sentence while there is no run."""
        yield Container(Text(EMPTY), id="empty")
        with Vertical(id="list"):
            with Panel("runs", id="table-panel"):
                yield DataTable(cursor_type="row", zebra_stripes=False)
            with Panel("run", id="facts"):
                yield Text()

    def on_mount(self) -> None:
        """Set up the columns."""
        self._set_columns(self.app.size.width)
        self._timer = self.set_interval(REFRESH_SECONDS, self.read)

    def on_resize(self, event: Resize) -> None:
        """Give the names what room there is now."""
        if not self.is_mounted or _name_width(event.size.width) == self._name_width:
            return
        table = self.query_one(DataTable)
        row = table.cursor_row
        rows, self.rows = self.rows, []
        self._set_columns(event.size.width)
        self.show_rows(rows)
        table.move_cursor(row=row)

    def _set_columns(self, width: int) -> None:
        table = self.query_one(DataTable)
        table.clear(columns=True)
        self._name_width = _name_width(width)
        for title, own in COLUMNS:
            heading = RichText(title, justify="left" if title in ("run", "status") else "right")
            table.add_column(heading, width=self._name_width if title == "run" else own, key=title)

    def on_screen_resume(self, _event: ScreenResume | None = None) -> None:
        """Look again."""
        self._timer.resume()
        self.read()

    def on_screen_suspend(self) -> None:
        """Do not look while nobody does."""
        self._timer.pause()

    @work(thread=True, group="runs", exclusive=True, exit_on_error=False)
    def read(self) -> None:
        """Read the runs away from the screen."""
        worker = get_current_worker()
        own = self.workbench.training.run_of
        rows = []
        for folder in list_runs(self.workbench.runs_dir):
            if worker.is_cancelled:
                return
            rows.append(read_row(folder, own(folder), self._known))
        self.app.call_from_thread(self.show_rows, rows)

    def show_rows(self, rows: list[RunRow]) -> None:
        """Fill the table; the cursor stays on its run."""
        now = self.workbench.training.now()
        chosen = self.chosen
        table = self.query_one(DataTable)
        if [row.folder.path for row in rows] != [row.folder.path for row in self.rows]:
            table.clear()
            for row in rows:
                table.add_row(*_cells(row, now, self._name_width), key=str(row.folder.path))
        else:
            for before, row in zip(self.rows, rows, strict=True):
                if before != row or before.age(now) != row.age(now):
                    for column, cell in zip(
                        table.columns, _cells(row, now, self._name_width), strict=True
                    ):
                        table.update_cell(str(row.folder.path), column, cell)
        self.rows = rows
        self.set_class(bool(rows), "-open")
        if chosen is not None:
            for index, row in enumerate(rows):
                if row.folder.path == chosen.folder.path:
                    table.move_cursor(row=index)
        self._show_facts()
        self.refresh_bindings()

    @property
    def chosen(self) -> RunRow | None:
        """The run under the cursor."""
        index = self.query_one(DataTable).cursor_row
        return self.rows[index] if 0 <= index < len(self.rows) else None

    def show_run(self, run: OpenRun | None) -> None:
        """The run in training moves on in the table at its own pace; nothing to do here."""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done with the run under the cursor."""
        row = self.chosen if self.is_mounted else None
        if action in ("open", "generate", "move"):
            return row is not None
        if action == "resume":
            return row is not None and row.resumable and self.workbench.training.training is None
        if action == "delete":
            return row is not None and not row.active
        return True

    @on(DataTable.RowHighlighted)
    def _highlight(self) -> None:
        self._show_facts()
        self.refresh_bindings()

    def action_open(self) -> None:
        """Show the run on the Training screen."""
        if self.chosen is not None:
            self.post_message(RunOpened(self.chosen.folder))

    def action_resume(self) -> None:
        """Train the run further."""
        if self.chosen is not None:
            self.post_message(ResumeRequested(self.chosen.folder))

    def action_generate(self) -> None:
        """Write with the run's model."""
        if self.chosen is not None:
            self.post_message(GenerationRequested(self.chosen.folder))

    def action_move(self, change: int) -> None:
        """Move the cursor."""
        table = self.query_one(DataTable)
        table.move_cursor(row=max(0, table.cursor_row + change))

    def action_delete(self) -> None:
        """Ask, then delete."""
        row = self.chosen
        if row is None:
            return

        def delete(confirmed: bool | None) -> None:
            if not confirmed:
                return
            shown = self.workbench.training.shown
            try:
                row.folder.delete()
            except RequestError as error:
                self.notify(safe(str(error)), severity="error", markup=False)
                return
            if shown is not None and shown.folder.path == row.folder.path:
                self.workbench.training.shown = None
            self.update_run()
            self.read()

        self.app.push_screen(
            Confirm(
                f"Delete {row.name}?",
                "Its checkpoints, its log and its settings go. This cannot be undone.",
                yes="Delete",
                no="Keep",
                danger=True,
            ),
            delete,
        )

    def _show_facts(self) -> None:
        row = self.chosen
        facts, panel = self.query_one("#facts Text", Text), self.query_one("#facts", Panel)
        if row is None:
            facts.show("")
            return
        panel.set_title(row.name)
        facts.show(
            Content("\n").join(
                [
                    Content.assemble(("corpus   ", "$quiet"), row.corpus),
                    Content.assemble(("model    ", "$quiet"), row.model),
                    Content.assemble(
                        ("folder   ", "$quiet"),
                        safe(formatting.homely(row.folder.path), one_line=True),
                    ),
                ]
            )
        )


def _name_width(width: int) -> int:
    """Return how wide the names may be: a wide terminal has room for whole ones."""
    return COLUMNS[0][1] + max(0, min(30, width - 80))


def _cells(row: RunRow, now: float, name_width: int) -> list[RichText]:
    sign, _ = SIGNS[row.standing]
    of = f" of {row.steps:,}" if row.steps else ""
    if row.budget:
        of = f" in {formatting.duration(row.budget)}"
    return [
        RichText(formatting.shortened(row.name, name_width), style="bold"),
        RichText(f"{sign} {row.standing}"),
        RichText(f"{row.step:,}{of}", justify="right"),
        RichText(formatting.loss(row.best_val_loss), justify="right"),
        RichText(row.age(now), justify="right"),
    ]
