"""How many of the cores other processes keep busy. No torch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import NamedTuple

SHORTEST_SECONDS = 0.2
"""The kernel counts in hundredths of a second: over less time it would be a guess."""


class _Counted(NamedTuple):
    moment: float
    busy: float
    """Seconds that the cores of this process were busy, with whatever."""
    own: float
    """Seconds that this process computed."""


class OthersMeter:
    """Counts, from one call to the next, what other processes use of this one's cores."""

    def __init__(
        self, read: Callable[[], tuple[float, float]] | None = None, there: int = 0
    ) -> None:
        self._read = read or _read
        self.there = there or len(_allowed() or range(os.cpu_count() or 1))
        """Cores that this process shares with the others: a container may give it time of few."""
        self._before = self._count()

    def cores(self) -> float | None:
        """Return how many cores others kept busy since the last call; None: not to be told."""
        now = self._count()
        before = self._before
        if now is None or before is None:
            return None
        elapsed = now.moment - before.moment
        if elapsed < SHORTEST_SECONDS:
            return None
        self._before = now
        return max(0.0, (now.busy - before.busy) - (now.own - before.own)) / elapsed

    def _count(self) -> _Counted | None:
        with contextlib.suppress(OSError, NotImplementedError, RuntimeError):
            busy, own = self._read()
            return _Counted(time.monotonic(), busy, own)
        return None


def _allowed() -> set[int] | None:
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def _read() -> tuple[float, float]:
    """Return the seconds that the cores were busy, and those that this process computed."""
    import psutil

    allowed, busy = _allowed(), 0.0
    for core, times in enumerate(psutil.cpu_times(percpu=True)):
        if allowed is None or core in allowed:
            idle = times.idle + getattr(times, "iowait", 0.0)
            # A guest's time is counted among the user's, too.
            twice = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
            busy += sum(times) - idle - twice
    own = psutil.Process().cpu_times()
    return busy, own.user + own.system
