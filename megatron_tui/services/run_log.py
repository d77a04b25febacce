"""The log of a run in the workbench: read at once, or behind the screen where it is long; followed.

The state that the log amounts to is only changed by the thread that polls.
"""

from __future__ import annotations

import time
from collections import deque

from megatron_model.events.schema import Event
from megatron_model.events.state import RunState
from megatron_model.run.folder import RunFolder

TAIL_SECONDS = 1.0
"""How often a log that another process writes is looked at."""
LONG_LOG = 4_000_000
"""Bytes of a log that are read while a person waits."""


class RunLog:
    """The state folded from a log, and how far it was read."""

    def __init__(self, folder: RunFolder, state: RunState | None = None) -> None:
        """Make the log of a run of which `state` is known; nothing is read."""
        self.folder = folder
        self.state = state or RunState()
        self.offset = 0
        """Bytes read so far."""
        self.reading = False
        """Whether `state` is only of the two ends of a long log, until somebody reads it all."""
        self.looked_at = 0.0
        self._whole: deque[tuple[RunState, int]] = deque()

    @classmethod
    def opened(cls, folder: RunFolder) -> RunLog:
        """Fold a run's log; of a long one only its two ends, and a thread has to `read_whole`."""
        log = cls(folder)
        log.reading = log_size(folder) > LONG_LOG
        if log.reading:
            log.state = glance(folder)
        else:
            log.state, log.offset = folder.fold()
        return log

    def read_whole(self) -> None:
        """Fold all of a long log, from a thread of its own; see `take_whole`."""
        self._whole.append(self.folder.fold())

    def take_whole(self) -> bool:
        """Take over what `read_whole` folded meanwhile; return whether there was something."""
        if not self._whole:
            return False
        self.state, self.offset = self._whole.popleft()
        self.reading = False
        return True

    def reread(self) -> None:
        """Fold all of it anew: something was missed."""
        self.state = self.folder.state()

    def due(self) -> bool:
        """Whether it is time for another look; it is then taken to happen."""
        if time.monotonic() - self.looked_at < TAIL_SECONDS:
            return False
        self.looked_at = time.monotonic()
        return True

    def read_on(self) -> list[Event]:
        """Return the events that were written since the last look; they are not folded."""
        events, self.offset = self.folder.read_events(self.offset)
        return events


def log_size(folder: RunFolder) -> int:
    """Return how many bytes long the log of a run is."""
    try:
        return folder.events_path.stat().st_size
    except OSError:
        return 0


def glance(folder: RunFolder) -> RunState:
    """Fold the beginning and the end of a long log: what the run is, and where it stands."""
    state, part = RunState(), LONG_LOG // 4
    for offset in (0, max(0, log_size(folder) - part)):
        for event in folder.read_events(offset, limit=part if offset else part // 10)[0]:
            state.apply(event)
    return state
