"""What a worker thread brings to the screen, item by item: bounded, and the worker never waits.

The worker puts, the screen drains at its own rate. Nothing here knows of Textual or of torch.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Generic, Literal, TypeAlias, TypeVar

from megatron_model.events.schema import RECORDED, Event
from megatron_tui.services.model_cache import Model

EVENTS_LIMIT = 20_000
ITEMS_LIMIT = 1_000_000

Phase: TypeAlias = Literal["idle", "loading", "ready", "writing", "done", "stopped", "failed"]
T = TypeVar("T")


class EventFeed:
    """The events of a run; progress that is superseded does not queue up."""

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


class JobFeed(Generic[T]):
    """The items of one job of the generation service; the screen may cancel it."""

    def __init__(self, limit: int = ITEMS_LIMIT) -> None:
        self.phase: Phase = "loading"
        self.error = ""
        self.models: tuple[Model, ...] = ()
        """What the job works with, once that is loaded."""
        self.pause_seconds: float | None = None
        """How long training paused for its live weights to be copied, if they were asked for."""
        self.count = 0
        """Items put so far."""
        self._began = self._latest = 0.0
        self._limit = limit
        self._lock = threading.Lock()
        self._items: list[T] = []
        self._cancelled = threading.Event()

    @property
    def busy(self) -> bool:
        """Whether more may come."""
        return self.phase in ("loading", "writing")

    @property
    def cancelled(self) -> bool:
        """Whether the screen wants no more."""
        return self._cancelled.is_set()

    @property
    def seconds(self) -> float:
        """Time from the first item's beginning to the latest item."""
        return max(0.0, self._latest - self._began)

    def begin(self) -> None:
        """Start the clock: all is loaded."""
        self._began = self._latest = time.monotonic()
        self.phase = "writing"

    def put(self, item: T) -> bool:
        """Take an item from the worker; False if it was dropped: cancelled, or never drained."""
        if self._cancelled.is_set():
            return False
        with self._lock:
            if len(self._items) >= self._limit:
                return False
            self._items.append(item)
        self.count += 1
        self._latest = time.monotonic()
        return True

    def drain(self) -> list[T]:
        """Return what arrived since the last call."""
        with self._lock:
            items, self._items = self._items, []
        return items

    def cancel(self) -> None:
        """Want no more; the worker ends after the item it is at."""
        self._cancelled.set()
