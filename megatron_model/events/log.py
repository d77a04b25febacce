"""The log of a run: appended line by line, never torn, and written later where the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from megatron_model.events.schema import Event, decode_event, decode_events, encode_event
from megatron_model.util.errors import RequestError
from megatron_model.util.files import sync_file
from megatron_model.util.text import safe

LONGEST_LINE = 1 << 20
"""Bytes of a line; a longer one is not an event, and is skipped without being kept in memory."""
PIECE = 1 << 20
"""Bytes that are read at once: as many lines as make reading them in one go worth while."""


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
            found = os.fstat(self._descriptor)
            if stat.S_ISREG(found.st_mode):
                whole = _whole_lines(self._descriptor, found.st_size)
                if whole < found.st_size:
                    os.ftruncate(self._descriptor, whole)
        except OSError as error:
            raise RequestError(f"Cannot write {safe(str(path))}: {error.strerror}.") from None
        if not stat.S_ISREG(found.st_mode):
            os.close(self._descriptor)
            raise RequestError(f"Cannot write {safe(str(path))}: it is not a regular file.")

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
            sync_file(self._descriptor, self._path)
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

    @property
    def deleted(self) -> bool:
        """Whether the file was deleted meanwhile: what is written then is nowhere."""
        return os.fstat(self._descriptor).st_nlink == 0

    def close(self) -> None:
        """Close the log; what still waits is lost."""
        os.close(self._descriptor)


def read_events(path: Path, offset: int = 0, limit: int = -1) -> tuple[list[Event], int]:
    """Return the events in whole lines from byte `offset`, and the offset to go on from.

    About `limit` bytes are read at most, but one line at least. What cannot be read, or is not
    a regular file, has no events: a pipe or a device in place of a log must not block a reader.
    """
    events: list[Event] = []
    end = offset
    for found, end in read_pieces(path, offset, min(PIECE, limit) if limit > 0 else PIECE):
        events += found
        if limit > 0 and (found or end - offset >= limit):
            break
    return events, end


def read_pieces(
    path: Path, offset: int = 0, size: int | None = None
) -> Iterator[tuple[list[Event], int]]:
    """Yield the events of a log from byte `offset`, `size` bytes at a time, and where they end.

    What cannot be read has none.
    """
    with contextlib.suppress(OSError), _opened(path) as descriptor:
        while True:
            found, after = _read_piece(descriptor, offset, size or PIECE)
            if after == offset:
                return
            yield found, after
            offset = after


def check_readable(path: Path) -> None:
    """Do nothing where the log can be read, or was not begun yet.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    with contextlib.suppress(FileNotFoundError), _opened(path):
        pass


def last_event(path: Path) -> Event | None:
    """Return the last event in a log that can be read, without reading all of it."""
    try:
        with _opened(path) as descriptor:
            size = os.fstat(descriptor).st_size
            data = os.pread(descriptor, LONGEST_LINE, max(0, size - LONGEST_LINE))
    except OSError:
        return None
    for line in reversed(data[: data.rfind(b"\n") + 1].splitlines()):
        event = decode_event(line)
        if event is not None:
            return event
    return None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    """Open a log for reading.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file", str(path))
        yield descriptor
    finally:
        os.close(descriptor)


def _read_piece(descriptor: int, offset: int, size: int) -> tuple[list[Event], int]:
    """Return the events in the whole lines of `size` bytes, and where they end.

    Where not one line is whole yet, more is read, up to a line of the longest kind.
    """
    data = os.pread(descriptor, size, offset)
    end = data.rfind(b"\n") + 1
    if not end and size <= len(data) <= LONGEST_LINE:
        data += os.pread(descriptor, LONGEST_LINE + 1 - len(data), offset + len(data))
        end = data.find(b"\n") + 1
    if not end:
        # A line that is not whole waits for its end, unless it is too long to be an event.
        return [], _behind_line(descriptor, offset) if len(data) > LONGEST_LINE else offset
    lines = data[:end]
    if _has_endless_line(lines):
        lines = b"".join(x for x in lines.splitlines(keepends=True) if len(x) <= LONGEST_LINE)
    return decode_events(lines), offset + end


def _has_endless_line(lines: bytes) -> bool:
    """Whether a line is too long; looks from one stretch of that length to the next."""
    start = 0
    while start < len(lines):
        end = lines.rfind(b"\n", start, start + LONGEST_LINE)
        if end < 0:
            return True
        start = end + 1
    return False


def _behind_line(descriptor: int, offset: int) -> int:
    """Return where the line at `offset` ends, or the file where it does not."""
    while data := os.pread(descriptor, LONGEST_LINE, offset):
        found = data.find(b"\n")
        if found >= 0:
            return offset + found + 1
        offset += len(data)
    return offset


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
