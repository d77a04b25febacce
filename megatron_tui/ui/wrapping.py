"""Text cut into rows of a width: it grows at its end, at a cost that does not grow with it."""

from __future__ import annotations

from typing import NamedTuple

from rich.cells import cell_len

BREAK = "↵"
"""Stands for a line feed where each character is to be seen."""


class Row(NamedTuple):
    """One row, and the number of characters before it."""

    text: str
    start: int


class Wrapping:
    """Rows end behind a blank where there is one; a line feed always ends one.

    With `breaks`, a line feed is a character of its row; otherwise it counts, but is not in it.
    """

    def __init__(self, *, breaks: bool = False) -> None:
        self._breaks = breaks
        self._pieces: list[str] = []
        self._width = 0
        self.rows: list[Row] = []
        self.length = 0
        """Characters so far."""

    @property
    def text(self) -> str:
        """All of it."""
        if len(self._pieces) > 1:
            self._pieces = ["".join(self._pieces)]
        return self._pieces[0] if self._pieces else ""

    def append(self, piece: str) -> int:
        """Add text; return the first row that changed."""
        self._pieces.append(piece)
        self.length += len(piece)
        if not self._width:
            return 0  # not laid out yet
        tail = self.rows.pop() if self.rows else Row("", 0)
        changed = len(self.rows)
        self._wrap(tail.text + piece, tail.start)
        return changed

    def lay_out(self, width: int) -> None:
        """Wrap all of it anew, if the width changed."""
        if width and width != self._width:
            self._width = width
            self.rows = []
            self._wrap(self.text, 0)

    def row_of(self, index: int) -> int:
        """Return the row that a character is in."""
        low, high = 0, max(0, len(self.rows) - 1)
        while low < high:
            middle = (low + high + 1) // 2
            if self.rows[middle].start <= index:
                low = middle
            else:
                high = middle - 1
        return low

    def _wrap(self, text: str, start: int) -> None:
        *lines, last = text.split("\n")
        for line in lines:
            start = self._wrap_line(line + BREAK if self._breaks else line, start)
            start += not self._breaks  # the line feed
        self._wrap_line(last, start)

    def _wrap_line(self, line: str, start: int) -> int:
        at = 0
        while True:
            # The blank that ends a row may hang over the edge.
            chunk = line[at : at + self._width + 1]
            cut = self._cut(chunk)
            self.rows.append(Row(chunk[:cut], start + at))
            at += cut
            if at >= len(line) and cut == len(chunk):
                return start + len(line)

    def _cut(self, chunk: str) -> int:
        """Return how many characters of a row and one more go into the row."""
        width = self._width
        # Not by the sum: a wide character and one without a width add up to two narrow ones.
        if chunk.isascii() or all(cell_len(character) == 1 for character in chunk):
            return len(chunk) if len(chunk) <= width else chunk.rfind(" ") + 1 or width
        cells = 0
        for index, character in enumerate(chunk):
            # The selector of emoji has no width, but makes the character before it a wide one.
            cells += 1 if character == "\ufe0f" else cell_len(character)
            if cells > width:
                return max(1, index)
        return len(chunk)
