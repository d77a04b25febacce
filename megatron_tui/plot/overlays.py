"""What is laid over a finished drawing: reference lines, marks, the cursor, and plain ASCII. Pure.

Lines only fill blanks; of a curve only the cell of a mark is covered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

Run: TypeAlias = tuple[str, str]
"""Some characters of one row and the theme variable of their colour."""

REFERENCE = "chart-reference"
CURSOR = "chart-cursor"

_DASH = "╌"
_LINE = "│"
_ASCII = str.maketrans("┤│└┬─┼├┴╌◆↑↓", "+|++-+++-X^v")


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
    rows: Sequence[Sequence[Run]],
    x_limits: tuple[float, float],
    y_limits: tuple[float, float],
    width: int,
) -> Frame:
    """Find the frame in a drawing: its left axis and the two rows of its lower one."""
    texts = ["".join(text for text, _ in row) for row in rows]
    left = next((text.index("┤") + 1 for text in texts if "┤" in text), 0)
    return Frame(left, max(1, width - left), max(1, len(rows) - 2), x_limits, y_limits)


def add_layers(
    rows: list[list[Run]],
    frame: Frame,
    references: Sequence[Reference],
    marks: Sequence[Mark],
    cursor: float | None,
    width: int,
) -> list[list[Run]]:
    """Return the drawing with reference lines and the cursor in its blanks, and marks on top.

    A reference above or below the chart is named in its corner.
    """
    if not references and not marks and cursor is None:
        return rows
    cells = [_cells(row, width) for row in rows]
    above = [r.label for r in references if r.y > frame.y_limits[1]]
    below = [r.label for r in references if r.y < frame.y_limits[0]]
    if above:
        _write(cells[0], "↑ " + ", ".join(above), REFERENCE, frame.left)
    if below:
        _write(cells[frame.rows - 1], "↓ " + ", ".join(below), REFERENCE, frame.left)
    for reference in references:
        row = frame.row(reference.y)
        if row is None:
            continue
        _write(cells[row], f" {reference.label}", REFERENCE, frame.left)
        for column in range(frame.left, width):
            blank = cells[row][column][0] == " " and cells[row][column][1] != REFERENCE
            if blank and (column - frame.left) % 2 == 0:
                cells[row][column] = (_DASH, REFERENCE)
    if cursor is not None and (column_ := frame.column(cursor)) is not None:
        for row_index in range(frame.rows):
            if cells[row_index][column_][0] in (" ", _DASH):
                cells[row_index][column_] = (_LINE, CURSOR)
    for mark in marks:
        row, at = frame.row(mark.y), frame.column(mark.x)
        if row is not None and at is not None:
            cells[row][at] = (mark.sign, mark.colour)
    return [_runs(line) for line in cells]


def to_ascii(rows: list[list[Run]]) -> list[list[Run]]:
    """Return the drawing in characters that every terminal has."""
    return [
        [(text.translate(_ASCII).encode("ascii", "replace").decode(), ink) for text, ink in row]
        for row in rows
    ]


def add_run(runs: list[Run], text: str, colour: str) -> None:
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


def _cells(row: Sequence[Run], width: int) -> list[tuple[str, str]]:
    cells = [(character, colour) for text, colour in row for character in text][:width]
    return cells + [(" ", "")] * (width - len(cells))


def _write(cells: list[tuple[str, str]], text: str, colour: str, left: int) -> None:
    """Write at the right end, only if nothing is there already."""
    start = len(cells) - len(text)
    if start < left or any(character != " " for character, _ in cells[start:]):
        return
    cells[start:] = [(character, colour) for character in text]


def _runs(cells: list[tuple[str, str]]) -> list[Run]:
    runs: list[Run] = []
    for character, colour in cells:
        add_run(runs, character, colour)
    return runs
