"""The queue on the Runs screen: what runs from it, what waits, and the keys for both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import ClassVar

from rich.text import Text as RichText
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable

from megatron_model.queue import Queue, start_keeper
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_tui.services.queue import QueueRow, moment, read_queue
from megatron_tui.services.workbench import Workbench
from megatron_tui.terminal.keyboard import irreversible
from megatron_tui.ui import formatting
from megatron_tui.ui.background import background_of
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Panel

REFRESH_SECONDS = 2.0

SIGNS = {"running": "●", "waiting": "○", "held": "‖", "failed": "✗", "damaged": "?"}
"""How each state looks that is shown; what is done is among the runs."""

COLUMNS = (("run", 24), ("state", 9), ("begins", 9), ("ends", 9), ("", 0))
"""Titles and widths; the last one takes the rest."""


class QueueTable(DataTable[RichText]):
    """A row for each entry; the keys act on the one under the cursor."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("K,shift+up", "sooner", "Sooner", tooltip="Have it begin sooner", id="queue.up"),
        Binding("J,shift+down", "later", "Later", tooltip="Have it begin later", id="queue.down"),
        Binding("space", "hold", "Hold", tooltip="Hold it back, or release it", id="queue.hold"),
        Binding("r", "retry", "Retry", tooltip="Try it again", id="queue.retry"),
        Binding("D", "remove", "Remove", tooltip="Take it out of the queue", id="queue.remove"),
    ]

    def __init__(self, queue: Queue, act: Callable[[Callable[[], object]], None]) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False)
        self._queue = queue
        self._act = act
        self._rows: list[QueueRow] = []
        self._cells: list[list[RichText]] = []
        """What stands in each row."""

    @property
    def rows_shown(self) -> list[QueueRow]:
        """The entries on show, in their order."""
        return self._rows

    @property
    def chosen(self) -> QueueRow | None:
        """The entry under the cursor."""
        return self._rows[self.cursor_row] if 0 <= self.cursor_row < len(self._rows) else None

    def on_mount(self) -> None:
        """Make the columns."""
        for title, width in COLUMNS:
            self.add_column(RichText(title), width=width or None, key=title or "note")

    def show(self, rows: list[QueueRow], now: float) -> None:
        """Show these; the cursor stays on its entry."""
        cells = [_cells(row, now) for row in rows]
        chosen, before = self.chosen, [row.entry.id for row in self._rows]
        self._rows = rows
        if cells == self._cells and before == [row.entry.id for row in rows]:
            return  # nothing that can be seen: nothing is sent
        self._cells = cells
        self.clear()
        for row, line in zip(rows, cells, strict=True):
            self.add_row(*line, key=str(row.entry.id))
        numbers = [row.entry.id for row in rows]
        if chosen is not None and chosen.entry.id in numbers:
            self.move_cursor(row=numbers.index(chosen.entry.id))
        self.screen.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done with the entry under the cursor."""
        entry = None if self.chosen is None else self.chosen.entry
        if action in ("sooner", "later", "hold"):
            return entry is not None and entry.waits
        if action == "retry":
            return entry is not None and entry.state == "failed"
        if action == "remove":
            return entry is not None and entry.state != "running"
        return True

    def on_data_table_row_highlighted(self) -> None:
        """Another entry may be fit for other things."""
        self.screen.refresh_bindings()

    def action_sooner(self) -> None:
        """Change places with the entry before."""
        self._move(-1)

    def action_later(self) -> None:
        """Change places with the entry behind."""
        self._move(1)

    def _move(self, change: int) -> None:
        if self.chosen is None or not self.chosen.entry.waits:
            return
        number = self.chosen.entry.id
        line = [row.entry.id for row in self._rows if row.entry.waits]
        place = max(1, line.index(number) + 1 + change)
        self._act(lambda: self._queue.move(number, place))

    def action_hold(self) -> None:
        """Hold the entry back, or let it go on waiting for its turn."""
        if self.chosen is None:
            return
        entry = self.chosen.entry

        def turn() -> None:
            if entry.state == "held":
                self._queue.release(entry.id)
                start_keeper(self._queue)
            else:
                self._queue.hold(entry.id)

        self._act(turn)

    def action_retry(self) -> None:
        """Put the entry behind those that wait."""
        if self.chosen is None:
            return
        number = self.chosen.entry.id

        def retry() -> None:
            self._queue.retry(number)
            start_keeper(self._queue)

        self._act(retry)

    @irreversible
    def action_remove(self) -> None:
        """Take the entry out; what it trained stays."""
        if self.chosen is not None:
            number = self.chosen.entry.id
            self._act(lambda: self._queue.remove(number))


class QueuePanel(Panel):
    """The table in its frame: there while something runs from the queue, waits or failed."""

    EXPLANATION: ClassVar[str] = (
        "Runs that wait for their turn, one at a time on a device; a keeper of their own trains "
        "them, also when the workbench is closed. A on Setup adds the run as it stands. When each "
        "begins and ends follows from its time budget, or from the pace of earlier runs of its "
        "shape; a dash where neither is known."
    )

    def __init__(self, workbench: Workbench) -> None:
        super().__init__("queue", id="queue-panel")
        self._queue = Queue(workbench.runs_dir)
        self._reading = False
        self._again = False
        self._problem = ""
        """Why the queue cannot be read, if that is so."""
        self.table = QueueTable(self._queue, self._act)

    def compose(self) -> ComposeResult:
        """One table."""
        yield self.table

    def on_mount(self) -> None:
        """Look at the queue, now and from time to time."""
        self._in_background = background_of(self)
        self.set_interval(REFRESH_SECONDS, self._tick)
        self.read()

    def _tick(self) -> None:
        if self.screen.is_current:
            self.read()

    def read(self) -> None:
        """Look at the queue behind the screen."""
        if self._reading:
            self._again = True
            return
        self._reading, self._again = True, False
        now = time.time()

        def find() -> Iterator[list[QueueRow] | RequestError]:
            try:
                yield read_queue(self._queue, now)
            except RequestError as error:
                yield error

        self._in_background(find, self._take, self._done, group="queue")

    def _take(self, found: list[QueueRow] | RequestError) -> None:
        problem = isinstance(found, RequestError)
        rows = [] if isinstance(found, RequestError) else found
        shown = [row for row in rows if row.entry.state in SIGNS]
        self.set_class(bool(shown) or problem, "-some")
        self._problem = str(found) if isinstance(found, RequestError) else ""
        waiting = sum(row.entry.waits for row in shown)
        self.set_title(f"queue: {waiting} waiting" if waiting else "queue")
        self.table.show(shown, time.time())
        self._say_problem()

    @on(DataTable.RowHighlighted)
    def _say_problem(self) -> None:
        """Say at the lower edge what is wrong with the entry under the cursor, or with all."""
        chosen = self.table.chosen
        self.set_subtitle(self._problem or ("" if chosen is None else chosen.entry.problem))

    def _done(self) -> None:
        self._reading = False
        if self._again:
            self.read()

    def _act(self, do: Callable[[], object]) -> None:
        """Do something with the queue, or say why not, and look at it again."""
        try:
            do()
        except RequestError as error:
            notify(self, str(error), error=True)
        self.read()


def _cells(row: QueueRow, now: float) -> list[RichText]:
    entry = row.entry
    title = safe(entry.title, one_line=True) or f"entry {entry.id}"
    begins, ends = moment(row.begins, now), moment(row.ends, now)
    if entry.state == "waiting" and row.begins is not None and row.begins <= now + 1:
        begins = "next"
    note = entry.problem or (entry.config.data.corpus if entry.waits else "")
    if not entry.problem and "/" in note:
        note = note.rpartition("/")[2]
    return [
        RichText(formatting.shortened(title, COLUMNS[0][1]), style="bold"),
        RichText(f"{SIGNS[entry.state]} {entry.state}"),
        RichText(begins if entry.state == "waiting" else ""),
        RichText(ends if entry.state in ("waiting", "running") else ""),
        RichText(safe(note, one_line=True)),
    ]
