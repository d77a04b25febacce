"""The characters of the workbench in ASCII: frames, signs, arrows, the dots of curves.

For terminals that have no others: `AsciiFilter` takes what the app draws where its fonts lack them,
`lookalike` what an encoding cannot write.
"""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_ALIKE = {
    "-": "─╌┄▔▁⎺⎽╴╶–—",
    "=": "━═‖",
    "|": "│┃║▏▎▍▌▐▕",
    "+": "╭╮╰╯┌┐└┘├┤┬┴┼┏┓┗┛┡┩╋╸╺✓",
    "#": "█▇▆▅▄▃▂▊▋▉■",
    "*": "●•",
    ".": "∙·",
    ">": "▸▶→›❯⇥",
    "<": "◂◀←‹",
    "v": "▾▼↓",
    "^": "▴▲↑",
    "o": "○◌◦°",
    "x": "✗×",
    "X": "◆",
    "~": "…",
    "$": "↵",
    "_": "␣",
}
_BRAILLE = range(0x2800, 0x2900)
_BY_DOTS = " .:******"
"""What stands for a braille cell, by the number of its dots."""
_TABLE = {ord(glyph): plain for plain, glyphs in _ALIKE.items() for glyph in glyphs} | {
    cell: _BY_DOTS[bin(cell - _BRAILLE.start).count("1")] for cell in _BRAILLE
}


class AsciiFilter(LineFilter):
    """Takes every line just before it is sent; each cell stays where it is."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments with other characters in place of those the terminal lacks."""
        return [
            segment
            if segment.control or segment.text.isascii()
            else Segment(as_ascii(segment.text), segment.style)
            for segment in segments
        ]


@lru_cache(2048)
def as_ascii(text: str) -> str:
    """Return `text` in ASCII characters, as wide as before."""
    text = text.translate(_TABLE)
    if text.isascii():
        return text
    return "".join(char if char.isascii() else "?" * cell_len(char) for char in text)


def lookalike(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding other than UTF-8 cannot write; a handler for `codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return as_ascii(error.object[error.start : error.end]), error.end
