"""What is laid over a finished drawing: reference lines, marks and the cursor. Pure.

Lines only fill blanks; of a curve only the cell of a mark is covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Span: TypeAlias = tuple[str, str]
"""Some characters of one row and the theme variable of their colour."""

REFERENCE = "chart-reference"
CURSOR = "chart-cursor"

_DASH = "╌"
_LINE = "│"


@dataclass(frozen=True)
class Reference:
    """A value worth comparing with: a line across the chart."""

    y: float
    label: str


@dataclass(frozen=True)
class Mark:
    """One point worth pointing at."""

    x: float
    y: float
    colour: str
    sign: str = "◆"


DOTS_ACROSS, DOTS_DOWN = 2, 4
"""Dots of a braille cell."""


@dataclass(frozen=True)
class Frame:
    """Where the curves are within a drawing of so many cells."""

    left: int
    columns: int
    rows: int
    x_limits: tuple[float, float]
    y_limits: tuple[float, float]

    def column(self, x: float) -> int | None:
        """Return the cell of `x` counted from the drawing's left edge."""
        place = _cell(x, self.x_limits, self.columns, DOTS_ACROSS)
        return None if place is None else self.left + place

    def row(self, y: float) -> int | None:
        """Return the row of `y` counted from the top."""
        place = _cell(y, self.y_limits, self.rows, DOTS_DOWN)
        return None if place is None else self.rows - 1 - place


def frame_of(
    rows: Sequence[Sequence[Span]],
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
    width: int,
) -> Frame:
    """Find the frame in a drawing: its left axis and the two rows of its lower one."""
    texts = ["".join(text for text, _ in row) for row in rows]
    left = next((text.index("┤") + 1 for text in texts if "┤" in text), 0)
    return Frame(left, max(1, width - left), max(1, len(rows) - 2), x_limits, y_limits)


def add_layers(
    rows: list[list[Span]],
    frame: Frame,
    references: Sequence[Reference],
    marks: Sequence[Mark],
    cursor: float | None,
    width: int,
) -> list[list[Span]]:
    """Return the drawing with marks on top, and reference lines and the cursor in its blanks.

    A reference above or below the chart is named in its corner. Letters that would be in the cell
    of another mark stand beside it.
    """
    if not references and not marks and cursor is None:
        return rows
    cells = [_cells(row, width) for row in rows]
    _put_marks(cells, frame, marks, width)
    above = [r.label for r in references if r.y > frame.y_limits[1]]
    below = [r.label for r in references if r.y < frame.y_limits[0]]
    if above:
        _write(cells[:2], "↑ " + ", ".join(above), REFERENCE, frame.left)
    if below:
        last = cells[max(0, frame.rows - 2) : frame.rows][::-1]
        _write(last, "↓ " + ", ".join(below), REFERENCE, frame.left)
    for reference in references:
        row = frame.row(reference.y)
        if row is None:
            continue
        near = [cells[r] for r in (row, row - 1, row + 1) if 0 <= r < frame.rows]
        _write(near, reference.label, REFERENCE, frame.left)
        for column in range(frame.left, width):
            beside = cells[row][max(frame.left, column - 1) : column + 2]
            blank = cells[row][column][0] == " " and not any(
                ink == REFERENCE and sign not in f" {_DASH}" for sign, ink in beside
            )
            if blank and (column - frame.left) % 2 == 0:
                cells[row][column] = (_DASH, REFERENCE)
    if cursor is not None and (column_ := frame.column(cursor)) is not None:
        for row_index in range(frame.rows):
            if cells[row_index][column_][0] in (" ", _DASH):
                cells[row_index][column_] = (_LINE, CURSOR)
    return [_runs(line) for line in cells]


def add_run(runs: list[Span], text: str, colour: str) -> None:
    """Append characters; a blank takes its neighbour's colour, which saves bytes."""
    if not text:
        return
    if runs:
        last_text, last_colour = runs[-1]
        if last_colour == colour or not text.strip(" "):
            runs[-1] = (last_text + text, last_colour)
            return
        if not last_text.strip(" "):
            runs[-1] = (last_text + text, colour)
            return
    runs.append((text, colour))


def _cell(value: float, limits: tuple[float, float], cells: int, dots: int) -> int | None:
    """Return the cell that a curve's dot of this value is in: plotext rounds to dots, not cells."""
    low, high = limits
    if not math.isfinite(value) or not low <= value <= high or high <= low:
        return None
    return math.floor(0.5 + (cells * dots - 1) * (value - low) / (high - low)) // dots


def _cells(row: Sequence[Span], width: int) -> list[tuple[str, str]]:
    cells = [(character, colour) for text, colour in row for character in text][:width]
    return cells + [(" ", "")] * (width - len(cells))


def _put_marks(
    cells: list[list[tuple[str, str]]], frame: Frame, marks: Sequence[Mark], width: int
) -> None:
    """Put marks where they belong, letters beside one that is there already."""
    taken: set[tuple[int, int]] = set()
    for mark in sorted(marks, key=lambda mark: mark.sign.isalpha()):
        row, column = frame.row(mark.y), frame.column(mark.x)
        if row is None or column is None:
            continue
        places = [(row, column)]
        if mark.sign.isalpha():
            around = [(r, c) for r in range(frame.rows) for c in range(frame.left, width)]
            # The next cell of the same row first; a row is as high as two cells are wide.
            around.sort(key=lambda p: (abs(p[1] - column) + 2 * abs(p[0] - row), -p[1], p[0]))
            places = [place for place in around if place not in taken][:1]
        for place in places:
            taken.add(place)
            cells[place[0]][place[1]] = (mark.sign, mark.colour)


def _write(rows: Sequence[list[tuple[str, str]]], text: str, colour: str, left: int) -> None:
    """Write into the first row with room for it, as far to the right as nothing is there yet."""
    for cells in rows:
        for end in range(len(cells), left + len(text), -1):
            start = end - len(text)
            around = cells[start - 1 : end + (end < len(cells))]
            if all(character == " " for character, _ in around):
                cells[start:end] = [(character, colour) for character in text]
                return


def _runs(cells: list[tuple[str, str]]) -> list[Span]:
    runs: list[Span] = []
    for character, colour in cells:
        add_run(runs, character, colour)
    return runs
