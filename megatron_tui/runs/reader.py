"""Read the runs of a folder in the background: what is known at once, the rest as it is read."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from megatron_model.run.folder import RunFolder
from megatron_model.run.query import Query
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_tui.runs.listing import KnownRuns, RunRow, look_of, read_row
from megatron_tui.services.training import TrainingService
from megatron_tui.ui.background import InBackground

SHOW_SECONDS = 0.3
"""How soon what was read so far is shown while the rest is read."""
SHOW_LESS = 1.5
"""Each time it takes so many times longer until it is shown again: a long list is long to show."""
WHOLE_SECONDS = 60.0
"""How often all runs are looked at where none was added or removed: one may be resumed elsewhere.

In between only the runs in training are, so that a screen nobody touches costs next to nothing."""
REST = 100.0
"""After a look at all runs there is a pause of at least so many times its length."""


class Order(NamedTuple):
    """What runs are sorted by."""

    value: Callable[[RunRow], Any]
    """None of a run that has none: it comes last, whichever way the others are."""
    falling: bool = False
    """Whether the largest comes first, unless the order is turned round."""


ORDERS: dict[str, Order] = {
    "newest": Order(lambda row: 0),
    "best": Order(lambda row: _number(row.best_val_loss)),
    "step": Order(lambda row: row.step if row.known else None, falling=True),
    "speed": Order(lambda row: _number(row.speed), falling=True),
    "model": Order(lambda row: row.parameters),
    "corpus": Order(lambda row: row.corpus.casefold() or None),
    "time": Order(lambda row: row.seconds, falling=True),
    "disk": Order(lambda row: row.size, falling=True),
    "updated": Order(lambda row: row.last_time or None, falling=True),
    "run": Order(lambda row: row.name.casefold()),
    "status": Order(lambda row: row.standing if row.known else None),
}
"""In which orders runs are shown, by column; of equals the newest comes first."""


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def in_order(rows: list[RunRow], order: str, *, turned: bool) -> list[RunRow]:
    """Return rows, the newest first, in another order."""
    value, falling = ORDERS[order]
    values = [(value(row), row) for row in rows]
    known = [each for each in values if each[0] is not None]
    if order == "newest":
        known = known[::-1] if turned else known
    else:
        known.sort(key=lambda each: each[0], reverse=falling != turned)
    return [row for _, row in known] + [row for each, row in values if each is None]


class Look(NamedTuple):
    """What a look at the runs found."""

    rows: list[RunRow]
    whole: bool = True
    """Whether these are all the runs that are to be shown, or only those that changed."""


class RunsReader:
    """Looks at the runs, one look at a time.

    Args:
        runs_dir: where the runs are.
        training: knows the runs of this session.
        in_background: where the looking happens.
        show: called with the rows as they become known, the newest run first.
        change: called with rows that changed, where the others did not.
        ended: called at the end of a look, with why the folder cannot be read, or nothing.
    """

    def __init__(
        self,
        runs_dir: Path,
        training: TrainingService,
        in_background: InBackground,
        *,
        show: Callable[[list[RunRow]], object],
        change: Callable[[list[RunRow]], object],
        ended: Callable[[str], object],
    ) -> None:
        self.runs_dir, self._training = runs_dir, training
        self._in_background = in_background
        self._show, self._change, self._ended = show, change, ended
        self.known = KnownRuns()
        self._again = False
        """Whether another look was asked for while one was going on."""
        self._problem = ""
        self._rows: list[RunRow] = []
        """Those that are meant, as they were found last, the newest first."""
        self._active: list[RunRow] = []
        """The runs in training, as they were shown last."""
        self._rested = 0.0
        """From when on there may be another look at all of them that was not asked for."""
        self.reading = False
        self.query: Query | None = None
        """Which runs are shown; all where there is none."""
        self.order = "newest"
        """One of `ORDERS`."""
        self.turned = False
        """Whether that order is turned round."""
        self.found = 0
        """Of how many runs those are that were shown last."""

    def read(self, *, whole: bool = True) -> None:
        """Look at the runs: once more after a look that is going on.

        Without `whole` only at those in training, where none was added or removed.
        """
        self._again = self.reading
        if not self.reading:
            self.reading = True
            self._in_background(lambda: self._look(whole), self._take, self._end, group="runs")

    def sort(self) -> None:
        """Show what is known in the present order, without a look at the disk."""
        if self.reading:
            self.read()  # in its order, when this look is at its end
        else:
            self._show(in_order(self._rows, self.order, turned=self.turned))

    def read_again(self) -> None:
        """Look again after a while; at all of them seldom, the more so where that takes long."""
        if not self.reading:
            self.read(whole=time.monotonic() >= self._rested)

    def _take(self, look: Look) -> None:
        (self._show if look.whole else self._change)(look.rows)

    def _look(self, whole: bool) -> Iterator[Look]:
        self._problem = ""
        try:
            if whole or not self.known.are_all_of(self.runs_dir):
                yield from self._look_at_all()
            else:
                yield from self._look_at_active()
        except RequestError as error:
            self._problem = safe(str(error), one_line=True)
            self._active, self._rows = [], []
            self._rested = 0.0  # the next look is at all of them, and says the same
            yield Look([])

    def _look_at_all(self) -> Iterator[Look]:
        """Yield what is known of the runs, and the rest as it is read, the newest first."""
        began = shown = time.monotonic()
        pause = SHOW_SECONDS
        folders = self.known.list_all(self.runs_dir)
        rows = [self.known.seen(folder) for folder in folders]
        if not all(row.known for row in rows):
            yield Look(self._meant(rows))
        for index, folder in enumerate(folders):
            rows[index] = self._row(folder)
            if time.monotonic() - shown > pause:
                yield Look(self._meant(rows))
                shown, pause = time.monotonic(), pause * SHOW_LESS
        self._active = [row for row in rows if row.active]
        yield Look(self._meant(rows))
        now = time.monotonic()
        self._rested = now + max(WHOLE_SECONDS, REST * (now - began))

    def _meant(self, rows: list[RunRow]) -> list[RunRow]:
        """Return the rows to show, in order; of a run that was not read nothing is known yet."""
        self.found = len(rows)
        query, now = self.query, time.time()
        if query is not None:
            rows = [row for row in rows if row.known and query(look_of(row, now))]
        self._rows = list(rows)
        return in_order(rows, self.order, turned=self.turned)

    def _look_at_active(self) -> Iterator[Look]:
        """Read the runs in training; yield those of which there is something new."""
        rows = [self._row(row.folder) for row in self._active]
        new_rows = {row.folder.path: row for row in rows}
        self._rows = [new_rows.get(row.folder.path, row) for row in self._rows]
        changed = [new for new, old in zip(rows, self._active, strict=True) if new != old]
        self._active = [row for row in rows if row.active]
        if changed:
            yield Look(changed, whole=False)

    def _row(self, folder: RunFolder) -> RunRow:
        return read_row(folder, self._training.run_of(folder), self.known)

    def _end(self) -> None:
        self.reading = False
        self._ended(self._problem)
        if self._again:
            self.read()
