"""The table of runs: a row for each, changed where its run changed, filled a part at a time."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from rich.text import Text as RichText
from textual.message import Message
from textual.widgets import DataTable

from megatron_tui.runs.listing import RunRow
from megatron_tui.shell.header import SIGNS
from megatron_tui.ui import formatting

MANY = 250
"""Rows that are put into the table at once: more would hold up the keys."""

COLUMNS = (("run", 22), ("status", 13), ("step", 16), ("best", 6), ("updated", 9))
"""Titles and widths; together they fit 80 columns."""

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
        self._name_width = 0
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

    def set_screen_width(self, width: int) -> None:
        """Give the names the room that a screen of this width has."""
        name_width = _name_width(width)
        if name_width == self._name_width:
            return
        row = self.cursor_row
        self.clear(columns=True)
        self._forget()
        self._name_width = name_width
        for title, own in COLUMNS:
            heading = RichText(title, justify="left" if title in ("run", "status") else "right")
            self.add_column(heading, width=name_width if title == "run" else own, key=title)
        if self._wanted:
            self.show(self.runs, self._now)
            self.move_cursor(row=row)

    def show(self, runs: list[RunRow], now: float) -> None:
        """Show these runs; a long list is filled a part at a time."""
        chosen = self.chosen
        self._now = now
        self._wanted = {str(row.folder.path): row for row in runs}
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
                self._write(key, row)
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

    def _write(self, key: str, row: RunRow) -> None:
        """Write a row that is in the table anew, where it says something else."""
        self._note(key, row)
        new = cells(row, self._now, self._name_width)
        for column, before, cell in zip(self.columns, self.get_row(key), new, strict=True):
            if cell != before:
                self.update_cell(key, column, cell)

    def _add(self, keys: list[str], chosen: RunRow | None) -> None:
        """Add rows that are not in the table, in their order; the rest when those are drawn."""
        for key in keys[:MANY]:
            if key in self._wanted and key not in self._in_table:
                row = self._wanted[key]
                self.add_row(*cells(row, self._now, self._name_width), key=key)
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
        self._ages.clear()


def _name_width(width: int) -> int:
    """Return how wide the names may be: a wide terminal has room for whole ones."""
    return COLUMNS[0][1] + max(0, min(30, width - 80))


def cells(row: RunRow, now: float, name_width: int) -> list[RichText]:
    """Return what the table says of a run, column by column."""
    sign, _ = SIGNS[row.standing]
    if not row.known or row.standing == "unreadable":
        name = formatting.shortened(row.name, name_width)
        return [RichText(name, style="bold"), RichText(f"{sign} {row.standing}"), *(_BLANK,) * 3]
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
