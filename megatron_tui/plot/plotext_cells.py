"""What plotext is made to do otherwise: curves that share a cell show the dots of both.

plotext draws one curve after the other, and a later one replaces the braille sign of an earlier
one. It has no option for that; so the method that puts a sign into a cell is wrapped.
"""

from __future__ import annotations

from typing import Any

_BRAILLE = frozenset(map(chr, range(0x2800, 0x2900)))


def join_dots(figure: Any) -> None:
    """Let cells of the empty figure show all their dots, in the colour of the newest curve."""
    matrix = figure.monitor.matrix
    put = matrix.set_marker

    def join(column: int, row: int, marker: str) -> None:
        before = matrix.get_marker(column, row)
        if before in _BRAILLE and marker in _BRAILLE:
            marker = chr(ord(before) | ord(marker))
        put(column, row, marker)

    matrix.set_marker = join
