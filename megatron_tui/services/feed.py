"""What a worker thread brings to a screen, item by item: bounded, and the worker never waits."""

from __future__ import annotations

import threading
import time
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from megatron_tui.hub import CHARACTERS_LIMIT

Phase: TypeAlias = Literal["idle", "loading", "ready", "writing", "done", "stopped", "failed"]
T = TypeVar("T")


class Feed(Generic[T]):
    """The items of one job on their way; the worker puts, the screen drains and may cancel."""

    def __init__(self, limit: int = CHARACTERS_LIMIT) -> None:
        self.phase: Phase = "loading"
        self.error = ""
        self.models: tuple[Any, ...] = ()
        """What the job works with, once that is loaded."""
        self.lent_seconds: float | None = None
        """How long a run in training stood still for its weights, if those were asked for."""
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
        """Whether nobody wants any more."""
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
        """Take an item from the worker; False means that it was dropped: nobody fetches."""
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
