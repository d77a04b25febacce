"""How far the host may run ahead of a card: two steps, so that no one else waits for longer.

A card takes a thousand launches before the host has to wait. What a thread that writes, a pause or
a stop asks of it would come behind all of them.
"""

from __future__ import annotations

from collections import deque

import torch

AHEAD = 2
"""Steps that are asked of the card at a time: one is computed while the next is prepared."""


class Pace:
    """Keeps the steps in order: `wait` before one is asked for, `mark` after."""

    def __init__(self) -> None:
        self._asked: deque[torch.cuda.Event] = deque()

    def wait(self) -> None:
        """Wait until there are fewer steps than `AHEAD` that the card has not done."""
        while len(self._asked) >= AHEAD:
            self._asked.popleft().synchronize()

    def mark(self) -> None:
        """Take note that a step was asked for."""
        # The host sleeps meanwhile, and lets other threads work.
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        event.record()
        self._asked.append(event)
