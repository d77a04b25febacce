"""Draw with ASCII characters on terminals that have no others: frames, signs, arrows."""

from __future__ import annotations

from functools import lru_cache

from rich.cells import cell_len
from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

_ALIKE = {
    **dict.fromkeys("─╌┄▔▁⎺⎽╴╶", "-"),
    **dict.fromkeys("━═", "="),
    **dict.fromkeys("│┃║▏▎▍▌▐▕", "|"),
    **dict.fromkeys("╭╮╰╯┌┐└┘├┤┬┴┼┏┓┗┛┡┩╋╸╺", "+"),
    **dict.fromkeys("█▇▆▅▄▃▂▊▋▉■", "#"),
    **dict.fromkeys("●•", "*"),
    **dict.fromkeys("∙·", "."),
    **dict.fromkeys("▸▶→›", ">"),
    **dict.fromkeys("◂◀←‹", "<"),
    **dict.fromkeys("▾▼↓", "v"),
    **dict.fromkeys("▴▲↑", "^"),
    **dict.fromkeys("○◌◦", "o"),
    "✓": "+",
    "✗": "x",
    "‖": "=",
    "…": "~",
    "–": "-",
    "—": "-",
    "×": "x",
    "↵": "$",
    "⇥": ">",
    "␣": "_",
    "°": "o",
}
_TABLE = str.maketrans(_ALIKE)


class AsciiFilter(LineFilter):
    """Takes every line just before it is sent; cells stay where they are."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        """Return the segments with other characters in place of those the terminal has not."""
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
