"""The table of runs: a row for each, changed where its run changed, filled a part at a time."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rich.text import Text as RichText
from textual.message import Message
from textual.widgets import DataTable

from megatron_tui.runs.listing import RunRow
from megatron_tui.shell.header import SIGNS
from megatron_tui.ui import formatting
from megatron_tui.ui.spark import spark

MANY = 250
"""Rows that are put into the table, or written anew, at once: more would hold up the keys."""

MARK = "◆ "
"""Stands before the name of a run that is marked."""


class Column(NamedTuple):
    """One column: its name, its title, its least width, and from what width of the screen on."""

    name: str
    title: str
    width: int
    since: int = 0


COLUMNS = (
    Column("run", "run", 17),
    Column("status", "status", 13),
    Column("curve", "curve", 8),
    Column("best", "best", 6),
    Column("step", "step", 7),
    Column("speed", "speed", 5, 120),
    Column("model", "params", 6, 120),
    Column("corpus", "corpus", 8, 120),
    Column("time", "time", 7, 120),
    Column("disk", "disk", 8, 120),
    Column("updated", "when", 8),
)
"""Together they fit: those of the narrow screen 80 cells, all of them 120."""
TO_THE_LEFT = ("run", "status", "curve", "corpus")
FRAME = 5
"""Cells of a screen beside the table: the frame of its panel, and the bar to scroll it by."""
ROOM = (("run", 22), ("step", 16), ("curve", 14), ("corpus", 20), ("run", 40), ("corpus", 32))
"""What gets the cells that are left, one after the other, and up to which width."""

_BLANK = RichText("")


@dataclass(frozen=True)
class ShownRow:
    """A row as it stands in the table."""

    run: RunRow
    until: float
    """When its age reads differently, in Unix seconds."""


class RunsTable(DataTable[RichText]):
    """The runs in the order they are given; the cursor stays on its run."""

    class Filled(Message):
        """Other rows are in the table."""

    def __init__(self) -> None:
        super().__init__(cursor_type="row", zebra_stripes=False)
        self._wanted: dict[str, RunRow] = {}
        """All rows by their folder, in their order; some may not be in the table yet."""
        self._in_table: dict[str, ShownRow] = {}
        """The rows of the table by their folder, in its order."""
        self._ages: list[tuple[float, str]] = []
        """A heap of when the age of a row reads differently; some rows changed or went since."""
        self._to_write: dict[str, None] = {}
        """Rows of the table that say something else by now, in their order."""
        self._writing = False
        """Whether more of them will be written once those before are drawn."""
        self._widths: dict[str, int] = {}
        self._marked: set[str] = set()
        self._now = 0.0

    @property
    def runs(self) -> list[RunRow]:
        """All the runs."""
        return list(self._wanted.values())

    @property
    def shown(self) -> list[RunRow]:
        """Those that are in the table so far."""
        return [row.run for row in self._in_table.values()]

    @property
    def chosen(self) -> RunRow | None:
        """The run under the cursor."""
        return self.shown[self.cursor_row] if 0 <= self.cursor_row < len(self._in_table) else None

    @property
    def marked(self) -> list[RunRow]:
        """The runs that are marked, in their order."""
        if not self._marked:
            return []
        return [row for key, row in self._wanted.items() if key in self._marked]

    def mark(self) -> None:
        """Mark the run under the cursor, or unmark it, and go on to the next."""
        row = self.chosen
        if row is None:
            return
        key = str(row.folder.path)
        self._marked ^= {key}
        self._write(key, row)
        self.move_cursor(row=self.cursor_row + 1)

    def unmark(self) -> None:
        """Mark no run."""
        before, self._marked = self._marked, set()
        for key in before & self._in_table.keys():
            self._write(key, self._in_table[key].run)

    def set_screen_width(self, width: int) -> None:
        """Give the names the room that a screen of this width has."""
        widths = column_widths(width)
        if widths == self._widths:
            return
        row = self.cursor_row
        self.clear(columns=True)
        self._forget()
        self._widths = widths
        for column in COLUMNS:
            if column.name in widths:
                justify: Literal["left", "right"] = (
                    "left" if column.name in TO_THE_LEFT else "right"
                )
                heading = RichText(column.title, justify=justify)
                self.add_column(heading, width=widths[column.name], key=column.name)
        if self._wanted:
            self.show(self.runs, self._now)
            self.move_cursor(row=row)

    def show(self, runs: list[RunRow], now: float) -> None:
        """Show these runs; a long list is filled a part at a time."""
        chosen = self.chosen
        self._now = now
        self._wanted = {str(row.folder.path): row for row in runs}
        self._marked &= self._wanted.keys()
        gone = [key for key in self._in_table if key not in self._wanted]
        if len(gone) > MANY:
            self.clear()
            self._forget()
        for key in gone if self._in_table else ():
            self.remove_row(key)
            del self._in_table[key]
        for key, row in self._wanted.items():
            shown = self._in_table.get(key)
            if shown is not None and (shown.until <= now or shown.run != row):
                self._to_write[key] = None
        if not self._writing:
            self._write_part()
        self._add([key for key in self._wanted if key not in self._in_table], chosen)

    def change(self, runs: list[RunRow], now: float) -> None:
        """Show what changed of these runs; the others stay as they are."""
        self._now = now
        for row in runs:
            key = str(row.folder.path)
            if key in self._wanted:
                self._wanted[key] = row
            if key in self._in_table:
                self._write(key, row)
        self.post_message(self.Filled())

    def grow_older(self, now: float) -> None:
        """Write the ages that read differently now."""
        self._now = now
        while self._ages and self._ages[0][0] <= now:
            _, key = heapq.heappop(self._ages)
            shown = self._in_table.get(key)
            if shown is not None and shown.until <= now:
                self._write(key, shown.run)

    def _write_part(self) -> None:
        """Write some of the rows that say something else; the rest when those are drawn."""
        self._writing = False
        if not self.is_attached:
            return
        for key in list(self._to_write)[:MANY]:
            del self._to_write[key]
            if key in self._wanted and key in self._in_table:
                self._write(key, self._wanted[key])
        if self._to_write:
            self._writing = True
            self.call_after_refresh(self._write_part)

    def _write(self, key: str, row: RunRow) -> None:
        """Write a row that is in the table anew, where it says something else."""
        self._note(key, row)
        new = self._cells(key, row)
        for column, before, cell in zip(self.columns, self.get_row(key), new, strict=True):
            if cell != before:
                self.update_cell(key, column, cell)

    def _add(self, keys: list[str], chosen: RunRow | None) -> None:
        """Add rows that are not in the table, in their order; the rest when those are drawn."""
        for key in keys[:MANY]:
            if key in self._wanted and key not in self._in_table:
                row = self._wanted[key]
                self.add_row(*self._cells(key, row), key=key)
                self._note(key, row)
        order = [key for key in self._wanted if key in self._in_table]
        if order != list(self._in_table):
            self._in_table = {key: self._in_table[key] for key in order}
            places = {id(self.get_cell(key, "run")): place for place, key in enumerate(order)}
            self.sort("run", key=lambda cell: places[id(cell)])
        if chosen is not None and str(chosen.folder.path) in self._in_table:
            self.move_cursor(row=self.get_row_index(str(chosen.folder.path)))
        self.post_message(self.Filled())
        if len(keys) > MANY:
            self.call_after_refresh(self._add_rest, keys[MANY:])

    def _add_rest(self, keys: list[str]) -> None:
        if self.is_attached:
            self._add(keys, self.chosen)

    def _cells(self, key: str, row: RunRow) -> list[RichText]:
        return cells(row, self._now, self._widths, marked=key in self._marked)

    def _note(self, key: str, row: RunRow) -> None:
        """Take down what the table says of a run, and until when it is so."""
        until = math.inf
        if row.last_time:
            age = max(0.0, self._now - row.last_time)
            until = max(self._now, row.last_time) + formatting.age_lasts(age)
            heapq.heappush(self._ages, (until, key))
        self._in_table[key] = ShownRow(row, until)

    def _forget(self) -> None:
        self._in_table.clear()
        self._to_write.clear()
        self._ages.clear()


def column_widths(screen: int) -> dict[str, int]:
    """Return the columns that a screen of this width has, and how wide each is."""
    widths = {column.name: column.width for column in COLUMNS if screen >= column.since}
    left = screen - FRAME - sum(width + 2 for width in widths.values())
    for name, most in ROOM:
        more = max(0, min(left, most - widths.get(name, most)))
        if more:
            widths[name] += more
            left -= more
    return widths


def cells(
    row: RunRow, now: float, widths: Mapping[str, int], *, marked: bool = False
) -> list[RichText]:
    """Return what the table says of a run, column by column."""
    sign, _ = SIGNS[row.standing]
    mark = MARK if marked else ""
    name = mark + formatting.shortened(row.name, widths["run"] - len(mark))
    found = {
        "run": RichText(name, style="bold"),
        "status": RichText(f"{sign} {row.standing}"),
    }
    if row.known and row.standing != "unreadable":
        of = f" of {row.steps:,}" if row.steps else ""
        if row.budget:
            of = f" in {formatting.duration(row.budget)}"
        step = f"{row.step:,}{of}"
        if len(step) > widths["step"]:
            step = f"{row.step:,}"
        if len(step) > widths["step"]:
            step = formatting.count(row.step)
        numbers = {
            "step": step,
            "best": formatting.loss(row.best_val_loss),
            "speed": formatting.count(row.speed),
            "model": formatting.count(row.parameters),
            "time": formatting.duration(row.seconds),
            "disk": formatting.size(row.size),
            "updated": row.age(now),
        }
        found |= {key: RichText(text, justify="right") for key, text in numbers.items()}
        found["curve"] = RichText(spark(row.curve, widths["curve"]))
        if "corpus" in widths:
            found["corpus"] = RichText(formatting.shortened(row.corpus, widths["corpus"]))
    return [found.get(name, _BLANK) for name in widths]
