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

from megatron_model.util.fallback import do_without
from megatron_model.util.text import safe
from megatron_tui.terminal.ascii import lookalike
from megatron_tui.textual_patches.streams import draw_on


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


def isolate_native_output(log: Path | None, wrote: Callable[[int, float], None]) -> None:
    """Give Textual a private copy of the terminal and point file descriptors 1 and 2 to `log`.

    CUDA, OpenMP and libc write there past Python; on the terminal they would tear the screen.
    `wrote` hears of every write to the terminal, from the thread that does it. Without a log, or
    where it cannot be written, what they write is dropped. Call once, before the app runs.
    """
    noise = _open_log(log)
    codecs.register_error("lookalike", lookalike)
    terminal = os.dup(2)
    encoding = sys.stderr.encoding or "utf-8"
    stream = io.TextIOWrapper(
        io.BufferedWriter(MeteredFile(terminal, wrote)),
        encoding=encoding,
        errors="lookalike",
        line_buffering=True,
    )
    draw_on(stream)
    os.dup2(noise, 1)
    os.dup2(noise, 2)
    os.close(noise)


def _open_log(log: Path | None) -> int:
    if log is not None:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o600)
        except OSError as error:
            do_without(
                f"Cannot write {safe(str(log))}: {error.strerror}; there is no log of this session."
            )
    return os.open(os.devnull, os.O_WRONLY)


def terminal_descriptor() -> int:
    """Return the file descriptor of the terminal, for a program that is to have it."""
    stream = sys.__stderr__
    try:
        return 2 if stream is None else stream.fileno()
    except (OSError, ValueError):
        return 2
