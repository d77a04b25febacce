"""Keep the terminal clean: native prints go to a log, glyphs it cannot show to lookalikes."""

from __future__ import annotations

import codecs
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_GROUPS = {
    "-": "─–",
    "=": "━",
    "|": "│┃▉▊▋▌▍▎▏‖",
    "+": "╭╮╰╯┌┐└┘├┤┬┴┼",
    "o": "○◌",
    "*": "●◆•",
    "v": "✓▾",
    "x": "✗×",
    ">": "▸❯",
    "<": "◂",
    "^": "▴",
    ".": "…",
    "#": "■█▇▆▅▄▃▂▁",
}
_LOOKALIKES = {ord(glyph): plain for plain, glyphs in _GROUPS.items() for glyph in glyphs}


class MeteredFile(io.FileIO):
    """A file that tells how much went into it, and how long it took to take that."""

    def __init__(self, descriptor: int, wrote: Callable[[int, float], None]) -> None:
        super().__init__(descriptor, "w")
        self._wrote = wrote

    def write(self, data: Any) -> int:
        """Write, and tell of it."""
        begun = time.monotonic()
        count = super().write(data)
        self._wrote(count, time.monotonic() - begun)
        return count


def isolate_native_output(log: Path, wrote: Callable[[int, float], None]) -> None:
    """Give Textual a private copy of the terminal and point file descriptors 1 and 2 to `log`.

    CUDA, OpenMP and libc write there past Python; on the terminal they would tear the screen.
    `wrote` hears of every write to the terminal, from the thread that does it. Call once, before
    the app runs.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    codecs.register_error("lookalike", lookalike)
    terminal = os.dup(2)
    encoding = sys.stderr.encoding or "utf-8"
    stream = io.TextIOWrapper(
        io.BufferedWriter(MeteredFile(terminal, wrote)),
        encoding=encoding,
        errors="lookalike",
        line_buffering=True,
    )
    # Textual draws on the one, asks the other for the terminal's size, and prints a crash to the
    # third after it put the terminal back.
    sys.__stderr__ = sys.__stdout__ = sys.stderr = stream  # type: ignore[misc]
    noise = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    os.close(noise)


def lookalike(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding other than UTF-8 cannot write; a handler for `codecs`.

    Cell for cell: frames become ``+-|``, the dots of a curve ``.``, ``:`` or ``*`` by their number,
    the rest ``?``.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_LOOKALIKES)
    return "".join(_ascii(character) for character in text), error.end


def _ascii(character: str) -> str:
    if character.isascii():
        return character
    dots = ord(character) - 0x2800
    if 0 <= dots < 256:
        return " .:*****"[min(7, dots.bit_count())]
    return "?"
