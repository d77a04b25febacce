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
STRETCHES = 64
"""Of a longer one so many stretches are looked at first."""


class RunLog:
    """The state folded from a log, and how far it was read."""

    def __init__(self, folder: RunFolder, state: RunState | None = None) -> None:
        """Make the log of a run of which `state` is known; nothing is read."""
        self.folder = folder
        self.state = state or RunState()
        self.offset = 0
        """Bytes read so far."""
        self.reading = False
        """Whether `state` is only of parts of a long log, until somebody reads it all."""
        self.looked_at = 0.0
        self._whole: deque[tuple[RunState, int]] = deque()

    @classmethod
    def opened(cls, folder: RunFolder) -> RunLog:
        """Fold a run's log; of a long one only parts, and a thread has to `read_whole`."""
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
    """Fold some stretches of a long log: its beginning, its end, and others evenly between them.

    What the run is and where it stands, and its curves in outline: in a moment, however long it is.
    """
    state, last, read = RunState(), max(0, log_size(folder) - LONG_LOG // 4), 0
    for number in range(STRETCHES + 1):
        part = LONG_LOG // 2 // STRETCHES if number < STRETCHES else LONG_LOG // 4
        place = max(read, last * number // STRETCHES)  # a stretch has a whole line at least
        found, read = folder.read_events(place, limit=part)
        state.apply_all(found)
    return state
