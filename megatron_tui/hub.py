"""Hand events and text from a worker thread to the screen: bounded, and the worker never waits.

The worker puts, the screen drains at its own rate. Nothing here knows of Textual or of models.
"""

from __future__ import annotations

import threading
from collections import deque

from megatron_model.events import RECORDED, Event

EVENTS_LIMIT = 20_000
CHARACTERS_LIMIT = 1_000_000


class EventHub:
    """Events on their way to the screen; progress that is superseded does not queue up."""

    def __init__(self, limit: int = EVENTS_LIMIT) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._events: deque[Event] = deque()
        self._overflowed = False

    def put(self, event: Event) -> None:
        """Take an event from the worker."""
        with self._lock:
            newest = self._events[-1] if self._events else None
            if type(newest) is type(event) and not isinstance(event, RECORDED):
                self._events[-1] = event
                return
            if len(self._events) >= self._limit:
                self._events.popleft()
                self._overflowed = True
            self._events.append(event)

    def drain(self) -> tuple[list[Event], bool]:
        """Return what arrived since the last call, and whether older events had to be dropped.

        Dropped events are still in the run's log: the caller reads them there.
        """
        with self._lock:
            events, overflowed = list(self._events), self._overflowed
            self._events.clear()
            self._overflowed = False
        return events, overflowed


class TextHub:
    """Characters on their way to the screen; past the limit the worker is told that it is full."""

    def __init__(self, limit: int = CHARACTERS_LIMIT) -> None:
        self._lock = threading.Lock()
        self._limit = limit
        self._pieces: list[str] = []
        self._waiting = 0

    def put(self, piece: str) -> bool:
        """Take a piece of text; False means that it was dropped: nobody fetches."""
        with self._lock:
            if self._waiting + len(piece) > self._limit:
                return False
            self._pieces.append(piece)
            self._waiting += len(piece)
            return True

    def drain(self) -> str:
        """Return the text that arrived since the last call."""
        with self._lock:
            text = "".join(self._pieces)
            self._pieces.clear()
            self._waiting = 0
        return text
