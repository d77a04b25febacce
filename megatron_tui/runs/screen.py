"""The Runs screen: every run, newest first; open, resume, generate with, learn on, delete."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.events import Resize, ScreenResume
from textual.widgets import DataTable

from megatron_model.data.corpus import find_corpus
from megatron_model.run.query import parse_query
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_tui.messages import (
    GenerationRequested,
    LearningOnRequested,
    ResumeRequested,
    RunOpened,
)
from megatron_tui.runs.listing import RunRow
from megatron_tui.runs.reader import ORDERS, RunsReader
from megatron_tui.runs.table import RunsTable
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.terminal.keyboard import irreversible
from megatron_tui.ui import formatting
from megatron_tui.ui.ask_values import AskValues, Question
from megatron_tui.ui.background import background_of
from megatron_tui.ui.dialogs import Confirm
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.pick import AskPath

REFRESH_SECONDS = 5.0

LOOKING = Content.styled("Looking for runs …", "$quiet")
FACT_WIDTH = 9

EMPTY = Content.assemble(
    ("No runs yet.\n\n", "bold"), "Press ", ("F2", "bold $primary"), " to set up the first one."
)


def _check_filter(values: Mapping[str, str]) -> None:
    if values["filter"].strip():
        parse_query(values["filter"])


class RunsScreen(WorkbenchScreen):
    """Compose the table and the facts, keep them up to date, ask the app for what the keys say."""

    MODE = "runs"
    AUTO_FOCUS = "RunsTable"
    CSS_PATH = "runs.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open", tooltip="Show the run", id="runs.open", priority=True),
        Binding("r", "resume", "Resume", tooltip="Resume training the run", id="runs.resume"),
        Binding("g", "generate", "Generate", tooltip="Write with its model", id="runs.write"),
        Binding(
            "F",
            "learn_on",
            "Learn on",
            show=False,
            tooltip="Train a new run from its weights, with another text",
            id="runs.learn_on",
        ),
        Binding("D", "delete", "Delete", tooltip="Delete the run and its folder", id="runs.delete"),
        Binding(
            "slash", "filter", "Filter", tooltip="Show the runs that are meant", id="runs.filter"
        ),
        Binding("o", "order", "Order", tooltip="Sort by the next column", id="runs.order"),
        Binding("escape", "show_all", "All", tooltip="Show all runs again", id="runs.all"),
        Binding("j", "move(1)", "Down", show=False, tooltip="Next run", id="runs.down"),
        Binding("k", "move(-1)", "Up", show=False, tooltip="Previous run", id="runs.up"),
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.table = RunsTable()
        self.reader = RunsReader(
            workbench.runs_dir,
            workbench.training,
            background_of(self),
            show=self._show_rows,
            change=self._change_rows,
            ended=self._end_reading,
        )
        self._filter = ""
        """Which runs are shown, as it was typed."""

    @property
    def rows(self) -> list[RunRow]:
        """What is known of each run, the newest first."""
        return self.table.runs

    @property
    def chosen(self) -> RunRow | None:
        """The run under the cursor."""
        return self.table.chosen

    def compose_body(self) -> ComposeResult:
        """Table over facts; a sentence while there is no run."""
        yield Container(Label(LOOKING), id="empty")
        with Vertical(id="list"):
            with Panel("runs", id="table-panel"):
                yield self.table
            with Panel("run", id="facts"):
                yield Label()

    def on_mount(self) -> None:
        """Set up the columns, and look at the runs from time to time."""
        self.table.set_screen_width(self.app.size.width)
        self._timer = self.set_interval(REFRESH_SECONDS, self._tick)

    def on_resize(self, event: Resize) -> None:
        """Give the names what room there is now."""
        if self.is_mounted:
            self.call_after_refresh(self._show_facts)
            self.table.set_screen_width(event.size.width)

    def on_screen_resume(self, _event: ScreenResume | None = None) -> None:
        """Look again."""
        self._timer.resume()
        self.reader.read()

    def on_screen_suspend(self) -> None:
        """Do not look at the runs while they are not on screen."""
        self._timer.pause()

    def _show_rows(self, rows: list[RunRow]) -> None:
        if self.is_attached:
            self.table.show(rows, self.workbench.training.now())
            self.set_class(bool(rows or self._filter), "-open")
            panel = self.query_one("#table-panel", Panel)
            title = f"runs: {len(rows):,} of {self.reader.found:,}, {self._filter}"
            panel.set_title(title if self._filter else "runs")
            panel.set_subtitle("" if self.reader.order == "newest" else self.reader.order)

    def _change_rows(self, rows: list[RunRow]) -> None:
        if self.is_attached:
            self.table.change(rows, self.workbench.training.now())

    def _tick(self) -> None:
        self.table.grow_older(self.workbench.training.now())
        self.reader.read_again()

    def _end_reading(self, problem: str) -> None:
        empty = Content.styled(problem, "$error") if problem else EMPTY
        self.query_one("#empty Label", Label).show(empty, layout=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done with the run under the cursor."""
        row = self.chosen if self.is_mounted else None
        if action in ("open", "generate", "move"):
            return row is not None
        if action == "show_all":
            return bool(self._filter)
        if action in ("filter", "order"):
            return bool(self.rows or self._filter)
        if action == "learn_on":
            return row is not None and self.workbench.training.training is None
        if action == "resume":
            return row is not None and row.resumable and self.workbench.training.training is None
        if action == "delete":
            return row is not None and not row.active
        return True

    def action_open(self) -> None:
        """Show the run on the Training screen."""
        if self.chosen is not None:
            self.post_message(RunOpened(self.chosen.folder))

    @irreversible
    def action_resume(self) -> None:
        """Resume training the run."""
        if self.chosen is not None:
            self.post_message(ResumeRequested(self.chosen.folder))

    def action_generate(self) -> None:
        """Generate text with the run's model."""
        if self.chosen is not None:
            self.post_message(GenerationRequested(self.chosen.folder))

    def action_learn_on(self) -> None:
        """Ask for a text, and have a new run go on from this one's weights with it."""
        row = self.chosen
        if row is None:
            return

        def refuse(typed: str, _again: bool) -> str:
            try:
                find_corpus(typed)
            except RequestError as error:
                return str(error)
            return ""

        def begin(corpus: str | None) -> None:
            if corpus is not None:
                self.post_message(LearningOnRequested(row.folder, corpus))

        title = f"Train {safe(row.name, one_line=True)} on with the text"
        self.app.push_screen(AskPath(title, "", refuse), begin)

    def action_filter(self) -> None:
        """Ask which runs to show."""

        def take(values: dict[str, str] | None) -> None:
            if values is not None:
                self._show_only(values["filter"].strip())

        example = "val<1.5 and corpus~shake, tag=good, model.layers>=4, age<7d"
        questions = [Question("filter", "filter", self._filter)]
        self.app.push_screen(
            AskValues("Show the runs with", example, questions, _check_filter, yes="Show"), take
        )

    def action_order(self) -> None:
        """Show the runs in the next order."""
        orders = list(ORDERS)
        self.reader.order = orders[(orders.index(self.reader.order) + 1) % len(orders)]
        self.reader.read()

    def action_show_all(self) -> None:
        """Show all runs."""
        self._show_only("")

    def _show_only(self, typed: str) -> None:
        self._filter = typed
        self.reader.query = parse_query(typed) if typed else None
        self.refresh_bindings()
        self.reader.read()

    def action_move(self, change: int) -> None:
        """Move the cursor."""
        self.table.move_cursor(row=max(0, self.table.cursor_row + change))

    def action_delete(self) -> None:
        """Ask, then delete."""
        row = self.chosen
        if row is None:
            return

        def delete(confirmed: bool | None) -> None:
            if confirmed:
                self._delete(row)

        self.app.push_screen(
            Confirm(
                f"Delete {row.name}?",
                "Its checkpoints, log and settings are deleted. This cannot be undone.",
                yes="Delete",
                no="Keep",
                danger=True,
            ),
            delete,
        )

    def _delete(self, row: RunRow) -> None:
        training = self.workbench.training
        try:
            row.folder.delete()
        except RequestError as error:
            notify(self, str(error), error=True)
            return
        if training.shown is not None and training.shown.folder.path == row.folder.path:
            training.shown = None
        self.update_run()
        self.reader.read()

    @on(RunsTable.Filled)
    @on(DataTable.RowHighlighted)
    def _row_changed(self) -> None:
        self._show_facts()
        self.refresh_bindings()

    def _show_facts(self) -> None:
        row = self.chosen
        facts, panel = self.query_one("#facts Label", Label), self.query_one("#facts", Panel)
        if row is None:
            facts.show("")
            return
        panel.set_title(row.name)
        # A path has no blanks to wrap at; its end tells more than its beginning.
        room = (facts.size.width or self.app.size.width - 4) - FACT_WIDTH
        folder = safe(formatting.homely(row.folder.path), one_line=True)
        lines = (
            ("corpus", formatting.shortened(row.corpus, room)),
            ("model", row.model),
            ("folder", formatting.shortened(folder, room)),
        )
        facts.show(
            Content("\n").join(
                Content.assemble((f"{label:<{FACT_WIDTH}}", "$quiet"), text)
                for label, text in lines
            )
        )
