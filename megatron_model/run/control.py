"""What may be asked of a running trainer, from any thread."""

from __future__ import annotations

import contextlib
import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    from megatron_model.lending import WeightsRequest


@dataclass(frozen=True)
class Change:
    """Another value for a setting of the run in training; see live_settings.py."""

    key: str
    value: int | float


Command: TypeAlias = (
    Literal["pause", "resume", "save", "evaluate", "sample", "stop", "abort", "release"] | Change
)
"""``stop`` saves and ends, ``abort`` ends at once; what was not saved is lost.
``release`` saves and lets the run go, for another process that waits to train it."""


class Control:
    """Commands for one trainer: screens and signal handlers put them in, the runner takes them.

    `put` never blocks and may be called from a signal handler: `SimpleQueue` is reentrant, where
    the locks of `threading` would wait for the very thread that the signal interrupted. Only one
    thread takes and waits.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._awaited: Command | None = None
        self._borrowers: queue.SimpleQueue[WeightsRequest] = queue.SimpleQueue()

    def ask_for_weights(self, request: WeightsRequest) -> None:
        """Ask for a copy of the weights, which is made between two steps."""
        self._borrowers.put(request)

    def take_borrower(self) -> WeightsRequest | None:
        """Return whoever has waited longest for the weights."""
        try:
            return self._borrowers.get_nowait()
        except queue.Empty:
            return None

    def put(self, command: Command) -> None:
        """Ask for something; it happens between two steps."""
        self._queue.put(command)

    def take(self) -> Command | None:
        """Return the oldest command that was not taken yet, or None."""
        if self._awaited is not None:
            command, self._awaited = self._awaited, None
            return command
        try:
            return self._queue.get_nowait()
        except queue.Empty:
            return None

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until there is a command, or `timeout` seconds have passed."""
        if self._awaited is None:
            with contextlib.suppress(queue.Empty):
                self._awaited = self._queue.get(timeout=timeout)
