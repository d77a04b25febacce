"""The log of a run: appended line by line, never torn, and patient with a disk that is full."""

from __future__ import annotations

import errno
import os
from collections import deque
from pathlib import Path

from megatron_model.errors import RequestError
from megatron_model.events import Event, decode_event, encode_event
from megatron_model.text import safe

_TAIL = 1 << 20


class EventLog:
    """Appends events to a run's log; a line torn by a crash is cut off first.

    Raises:
        RequestError: the log cannot be opened for writing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: deque[bytes] = deque()
        self.problem: OSError | None = None
        """Why lines are waiting to be written, if some are."""
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            raise RequestError(f"Cannot write {safe(str(path))}: {error.strerror}.") from None
        size = os.fstat(self._descriptor).st_size
        whole = _whole_lines(self._descriptor, size)
        if whole < size:
            os.ftruncate(self._descriptor, whole)

    def record(self, event: Event, *, sync: bool = False) -> None:
        """Write one line; when that fails it waits, in order, and `problem` says why."""
        self._waiting.append(encode_event(event))
        if self.problem is not None:
            return
        try:
            self.retry(sync=sync)
        except OSError as error:
            self.problem = error

    def retry(self, *, sync: bool = False) -> None:
        """Write what waits; `sync` waits until it is on disk.

        Raises:
            OSError: it still cannot be written.
        """
        while self._waiting:
            self._append(self._waiting[0])
            self._waiting.popleft()
        if sync:
            os.fsync(self._descriptor)
        self.problem = None

    def _append(self, line: bytes) -> None:
        try:
            written = os.write(self._descriptor, line)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        if written < len(line):
            # The disk is full; a part of a line would spoil the next one too.
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))

    def close(self) -> None:
        """Close the log; what still waits is lost."""
        os.close(self._descriptor)


def last_event(path: Path) -> Event | None:
    """Return the last event in a log that can be read, without reading all of it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        size = os.fstat(descriptor).st_size
        data = os.pread(descriptor, _TAIL, max(0, size - _TAIL))
    except OSError:
        return None
    finally:
        os.close(descriptor)
    for line in reversed(data[: data.rfind(b"\n") + 1].splitlines()):
        event = decode_event(line)
        if event is not None:
            return event
    return None


def _whole_lines(descriptor: int, size: int) -> int:
    """Return the length of the file up to and including its last line feed."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
