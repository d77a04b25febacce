"""The Runs screen: every run in any order, and what can be done with one, or with all marked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.events import Resize, ScreenResume
from textual.timer import Timer
from textual.widgets import DataTable

from megatron_model.data.corpus import find_corpus
from megatron_model.run.archive import archive_of
from megatron_model.run.comparison import Compared, read_run
from megatron_model.run.folder import RunFolder, free_name
from megatron_model.run.query import parse_query
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_tui.messages import (
    GenerationRequested,
    LearningOnRequested,
    ResumeRequested,
    RunOpened,
    RunRequested,
)
from megatron_tui.runs.changes import RunChanges
from megatron_tui.runs.listing import RunRow
from megatron_tui.runs.preview import Preview, RunPreview, preview_of
from megatron_tui.runs.queue_panel import QueuePanel
from megatron_tui.runs.reader import ORDERS, RunsReader
from megatron_tui.runs.table import RunsTable
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.terminal.keyboard import irreversible
from megatron_tui.ui import formatting
from megatron_tui.ui.ask_values import AskValues, Question
from megatron_tui.ui.background import background_of
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.pick import AskPath

REFRESH_SECONDS = 5.0

LOOKING = Content.styled("Looking for runs …", "$quiet")
FACT_WIDTH = 9

EMPTY = Content.assemble(
    ("No runs yet.\n\n", "bold"), "Press ", ("F2", "bold $primary"), " to set up the first one."
)


NONE_ARCHIVED = Content.assemble(
    ("No run is archived.\n\n", "bold"), "Press ", ("v", "bold $primary"), " for the others."
)
PREVIEW_SECONDS = 0.15
"""How long the cursor rests on a run before that is looked into: keys repeat faster."""


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
        Binding(
            "s",
            "again",
            "Again",
            show=False,
            tooltip="Begin a new run with its settings",
            id="runs.again",
        ),
        Binding(
            "space", "mark", "Mark", tooltip="Mark the run, for a key to act on all", id="runs.mark"
        ),
        Binding(
            "c",
            "compare",
            "Compare",
            tooltip="Lay the marked runs over each other",
            id="runs.compare",
        ),
        Binding("t", "tag", "Tag", tooltip="Put tags on, or take them off", id="runs.tag"),
        Binding("n", "note", "Note", tooltip="Write down what it is about", id="runs.note"),
        Binding("R", "rename", "Rename", tooltip="Give it another name", id="runs.rename"),
        Binding(
            "w",
            "export",
            "Export",
            show=False,
            tooltip="Write a page, or a table, of the marked runs",
            id="runs.export",
        ),
        Binding(
            "a",
            "archive",
            "Archive",
            tooltip="Put it aside; of those aside, bring it back",
            id="runs.archive",
        ),
        Binding("u", "undo", "Undo", tooltip="Bring back what was archived last", id="runs.undo"),
        Binding(
            "v",
            "archived",
            "Archived",
            show=False,
            tooltip="Show the runs that were archived, or the others",
            id="runs.archived",
        ),
        Binding("D", "delete", "Delete", tooltip="Delete the run and its folder", id="runs.delete"),
        Binding(
            "slash", "filter", "Filter", tooltip="Show the runs that are meant", id="runs.filter"
        ),
        Binding("o", "order(1)", "Order", tooltip="Sort by the next column", id="runs.order"),
        Binding("O", "turn", "Turn", show=False, tooltip="Turn the order round", id="runs.turn"),
        Binding(
            "escape", "show_all", "All", tooltip="Mark none; show all runs again", id="runs.all"
        ),
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
        self.changes = RunChanges(lambda: self.app, self._changed, self._say)
        self._preview_timer: Timer | None = None
        self._preview_of: tuple[RunRow, bool] | None = None
        """Which row was looked into last."""
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

    @property
    def acted_on(self) -> list[RunRow]:
        """The runs that are marked, or the one under the cursor."""
        return self.table.marked or ([self.chosen] if self.chosen is not None else [])

    @property
    def shows_archived(self) -> bool:
        """Whether the runs that were put aside are listed, in place of the others."""
        return self.reader.runs_dir != self.workbench.runs_dir

    def compose_body(self) -> ComposeResult:
        """Table over facts; a sentence while there is no run."""
        yield Container(Label(LOOKING), id="empty")
        with Vertical(id="list"):
            with Panel("runs", id="table-panel"):
                yield self.table
            with Panel("run", id="facts"):
                yield Label()
            yield RunPreview()
        yield QueuePanel(self.workbench)

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
            self._show_title()

    def _show_title(self) -> None:
        rows, marked = self.table.runs, len(self.table.marked)
        title = "archived runs" if self.shows_archived else "runs"
        if self._filter:
            title = f"{title}: {len(rows):,} of {self.reader.found:,}, {self._filter}"
        if marked:
            title = f"{title}, {marked:,} marked"
        panel = self.query_one("#table-panel", Panel)
        panel.set_title(title)
        order, turned = self.reader.order, self.reader.turned
        words = f"{order}, turned round" if turned else order
        panel.set_subtitle("" if words == "newest" else words)

    def _change_rows(self, rows: list[RunRow]) -> None:
        if self.is_attached:
            self.table.change(rows, self.workbench.training.now())

    def _tick(self) -> None:
        self.table.grow_older(self.workbench.training.now())
        self.reader.read_again()

    def _end_reading(self, problem: str) -> None:
        nothing = NONE_ARCHIVED if self.shows_archived else EMPTY
        empty = Content.styled(problem, "$error") if problem else nothing
        self.query_one("#empty Label", Label).show(empty, layout=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done with the run under the cursor."""
        if not self.is_mounted:
            return False
        row, acted, idle = self.chosen, self.acted_on, self.workbench.training.training is None
        if action in ("open", "generate", "move", "mark", "tag", "export"):
            return row is not None
        if action == "show_all":
            return bool(self._filter or self.table.marked or self.shows_archived)
        if action in ("filter", "order", "turn"):
            return bool(self.rows or self._filter)
        if action in ("note", "compare"):
            return row is not None
        if action == "rename":
            return row is not None and not row.active
        if action == "learn_on":
            return row is not None and idle
        if action == "again":
            return row is not None and idle and not row.problem
        if action == "resume":
            return row is not None and row.resumable and idle and not self.shows_archived
        if action in ("delete", "archive"):
            return bool(acted) and not any(row.active for row in acted)
        if action == "undo":
            return self.changes.undoable
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

    def action_order(self, change: int) -> None:
        """Show the runs in the next order."""
        orders = list(ORDERS)
        self.sort_by(orders[(orders.index(self.reader.order) + change) % len(orders)])

    def action_turn(self) -> None:
        """Turn the order round."""
        self.sort_by(self.reader.order)

    def sort_by(self, order: str) -> None:
        """Show the runs in an order; in the present one, turned round."""
        self.reader.turned = not self.reader.turned if order == self.reader.order else False
        self.reader.order = order
        self.reader.sort()

    @on(DataTable.HeaderSelected)
    def _sort_by_column(self, event: DataTable.HeaderSelected) -> None:
        order = str(event.column_key.value)
        self.sort_by("best" if order == "curve" else order)

    def action_show_all(self) -> None:
        """Mark none; then show all runs; then those that are not archived."""
        if self.table.marked:
            self.table.unmark()
            self._marks_changed()
        elif self._filter:
            self._show_only("")
        elif self.shows_archived:
            self.action_archived()

    def action_archived(self) -> None:
        """Show the runs that were put aside, or the others."""
        runs_dir = self.workbench.runs_dir
        self.reader.runs_dir = runs_dir if self.shows_archived else archive_of(runs_dir)
        self.table.unmark()
        self._end_reading("")
        self.reader.read()

    def _show_only(self, typed: str) -> None:
        self._filter = typed
        self.reader.query = parse_query(typed) if typed else None
        self.refresh_bindings()
        self.reader.read()

    def action_move(self, change: int) -> None:
        """Move the cursor."""
        self.table.move_cursor(row=max(0, self.table.cursor_row + change))

    def action_mark(self) -> None:
        """Mark the run, or unmark it, and go on to the next."""
        self.table.mark()
        self._marks_changed()

    def _marks_changed(self) -> None:
        self._show_title()
        self.refresh_bindings()

    def action_again(self) -> None:
        """Begin a new run with the settings of the one under the cursor."""
        row = self.chosen
        if row is None:
            return
        try:
            config = row.folder.read_config()
        except RequestError as error:
            notify(self, str(error), error=True)
            return
        stem = row.folder.name.partition("-again")[0]
        name = free_name(self.workbench.runs_dir, stem, "-again")
        self.post_message(RunRequested(name, config))

    def action_compare(self) -> None:
        """Lay the marked runs over each other."""
        rows = self.acted_on
        if len(rows) < 2:
            notify(self, "Mark runs with space; c lays them over each other.")
            return

        def read() -> Iterator[list[Compared]]:
            yield [read_run(row.folder) for row in rows if row.standing != "unreadable"]

        def show(runs: list[Compared]) -> None:
            from megatron_tui.comparison.screen import ComparisonScreen

            if self.is_current:
                self.app.push_screen(ComparisonScreen(runs))

        background_of(self)(read, show, group="compare", exclusive=True)

    def action_tag(self) -> None:
        """Ask for tags to put on and take off."""
        self.changes.tag(self._folders)

    def action_note(self) -> None:
        """Write a note on the run under the cursor."""
        if self.chosen is not None:
            self.changes.note(self.chosen.folder)

    def action_rename(self) -> None:
        """Ask for another name of the run under the cursor."""
        if self.chosen is not None:
            self.changes.rename(self.chosen.folder)

    def action_export(self) -> None:
        """Write the runs to a file."""
        self.changes.export(self._folders)

    def action_archive(self) -> None:
        """Put the runs aside, or bring them back."""
        self.changes.archive(self._folders)

    def action_undo(self) -> None:
        """Bring back what was put aside last."""
        self.changes.undo()

    def action_delete(self) -> None:
        """Ask, then delete."""
        self.changes.delete(self._folders)

    @property
    def _folders(self) -> list[RunFolder]:
        return [row.folder for row in self.acted_on]

    def _changed(self, moved: Sequence[RunFolder]) -> None:
        """Take in that runs were changed; some of them are no more where they were."""
        training = self.workbench.training
        paths = [folder.path for folder in moved]
        if training.shown is not None and training.shown.folder.path in paths:
            training.shown = None
        chosen = self.workbench.chosen_run
        if chosen is not None and chosen.path in paths:
            self.workbench.chosen_run = None
        if moved:
            self.table.unmark()
        self.update_run()
        self.refresh_bindings()
        self.reader.read()

    def _say(self, text: str, error: bool) -> None:
        notify(self, text, error=error)

    @on(RunsTable.Filled)
    @on(DataTable.RowHighlighted)
    def _row_changed(self) -> None:
        self._show_facts()
        self.refresh_bindings()

    def _show_preview(self) -> None:
        """Look into the run under the cursor once that rests on it, where there is room."""
        preview, row = self.query_one(RunPreview), self.chosen
        wanted = (row, bool(preview.display)) if row is not None else None
        if wanted == self._preview_of:
            return
        self._preview_of = wanted
        if self._preview_timer is not None:
            self._preview_timer.stop()
        if row is None or not preview.display:
            return

        def find() -> Iterator[Preview]:
            yield preview_of(self.reader.known.state(row.folder))

        def look() -> None:
            if row.known and row.standing != "unreadable":
                background_of(self)(find, preview.show, group="preview", exclusive=True)
            else:
                preview.show(None)

        self._preview_timer = self.set_timer(PREVIEW_SECONDS, look)

    def _show_facts(self) -> None:
        self._show_preview()
        row = self.chosen
        facts, panel = self.query_one("#facts Label", Label), self.query_one("#facts", Panel)
        if row is None:
            facts.show("")
            panel.set_subtitle("")
            return
        panel.set_title(row.name)
        tags = " ".join(f"#{tag}" for tag in row.about.tags)
        said = "  ".join(filter(None, (tags, safe(row.about.note, one_line=True))))
        panel.set_subtitle(formatting.shortened(said, max(10, self.app.size.width - 8)))
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
