"""The commands that a trainer obeys, and the queue by which any thread gives them."""

from __future__ import annotations

import contextlib
import queue
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeGuard, get_args

if TYPE_CHECKING:
    from megatron_model.run.live_weights import WeightsRequest


@dataclass(frozen=True)
class Change:
    """Another value for a setting of the run in training; see config/live.py."""

    key: str
    value: int | float


Request: TypeAlias = Literal["pause", "resume", "save", "evaluate", "sample", "stop"]
"""What `tell` sends. It is meant for the run, whichever process trains it by then."""
Ending: TypeAlias = Literal["stop", "abort", "hand_over"]
"""What ends a session: ``stop`` saves first, ``abort`` does not, ``hand_over`` saves for the
process that waits to train the run."""
Command: TypeAlias = Request | Ending | Change

REQUESTS: tuple[Request, ...] = get_args(Request)
ENDINGS: tuple[Ending, ...] = get_args(Ending)


def is_ending(command: Command | None) -> TypeGuard[Ending]:
    """Whether a command ends the session of the trainer that obeys it."""
    return command in ENDINGS


class Control:
    """Commands for one trainer: screens and signal handlers put them in, the runner takes them.

    `put` never blocks and may be called from a signal handler: `SimpleQueue` is reentrant, where
    the locks of `threading` would wait for the very thread that the signal interrupted. Only one
    thread takes and waits.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._awaited: Command | None = None
        self._weights_requests: queue.SimpleQueue[WeightsRequest] = queue.SimpleQueue()

    def ask_for_weights(self, request: WeightsRequest) -> None:
        """Ask for a copy of the weights, which is made between two steps."""
        self._weights_requests.put(request)

    def take_weights_request(self) -> WeightsRequest | None:
        """Return the request for the weights that has waited longest."""
        try:
            return self._weights_requests.get_nowait()
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
