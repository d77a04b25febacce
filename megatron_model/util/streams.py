"""The standard streams: stdout for what was asked, stderr for people; either may be gone.

A process may be started with a descriptor closed (``2>&-``). Then Python has no such stream, and
the next file that is opened gets its number: a run's log would take what a library prints. So each
of the three is opened before anything else is.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Any, TextIO


class OutputLostError(OSError):
    """What was asked for cannot be written to stdout; the message is one sentence."""


class _Stdout(io.FileIO):
    """Descriptor 1; that it cannot be written is told from every other file's trouble."""

    def __init__(self) -> None:
        super().__init__(1, "w", closefd=False)

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLostError(
                f"Cannot write to stdout: {error.strerror}; what was asked for is not complete."
            ) from None


def open_streams() -> None:
    """Give this process the streams that it was started without; once, before all else.

    A stderr that is missing drops what it gets; a stdout that is missing cannot be written.
    """
    for descriptor, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            # The lowest number that is free is this one. Read-only, so that writing fails.
            os.set_inheritable(os.open(os.devnull, flags), True)
    if sys.stdin is None:
        sys.stdin = sys.__stdin__ = io.TextIOWrapper(  # type: ignore[misc]
            io.BufferedReader(io.FileIO(0, closefd=False)), "utf-8"
        )
    if sys.stderr is None:
        sys.stderr = sys.__stderr__ = io.TextIOWrapper(  # type: ignore[misc]
            io.BufferedWriter(io.FileIO(2, "w", closefd=False)), "utf-8", "backslashreplace"
        )
    if sys.stdout is None or sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _own_stdout(sys.stdout)  # type: ignore[misc]


def _own_stdout(before: TextIO | None) -> io.TextIOWrapper:
    stream = io.BufferedWriter(_Stdout())
    if not isinstance(before, io.TextIOWrapper):
        return io.TextIOWrapper(stream, "utf-8")
    with contextlib.suppress(OSError):
        before.flush()
    return io.TextIOWrapper(
        stream,
        before.encoding,
        before.errors,
        line_buffering=before.line_buffering,
        write_through=before.write_through,
    )


def give_up(descriptor: int) -> None:
    """Drop what is written to stdout or stderr from now on, and what is in its buffer."""
    with contextlib.suppress(OSError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, descriptor)
        os.close(nothing)


def say(line: str) -> None:
    """Write a line to stderr, which may be gone: that is not an error."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(line + "\n")  # whole: several processes write here
        sys.stderr.flush()
