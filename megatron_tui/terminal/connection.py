"""The line to the terminal: what is sent over it, how soon it is taken, how often to draw for it.

The app asks `due` before it draws what came from a run; keys are answered at once all the same.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable

RATES = (0.0, 4.0, 2.0, 1.0, 0.5)
"""Redraws a second to choose from; 0 leaves it to the line."""
FASTEST, SLOWEST = 0.25, 5.0
"""Seconds between redraws."""
PATIENCE = 2.0
"""So many times what the terminal takes for a picture passes before the next one."""
WINDOW = 4.0
"""Seconds over which the traffic is averaged."""
SLACK = 0.05
"""A timer may be early."""


class Connection:
    """Counts what is sent, times the terminal's answers, and says how often to draw."""

    def __init__(self, *, remote: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self.remote = remote
        """Whether the terminal is at the other end of a network."""
        self.rate = 0.0
        """The redraws a second that were chosen; 0 for as many as the line allows."""
        self._clock = clock
        self._lock = threading.Lock()
        self._sent: deque[tuple[float, int]] = deque()
        self._delay = 0.0
        self._asked: float | None = None
        self._drawn = -SLOWEST

    @classmethod
    def of_terminal(cls) -> Connection:
        """Return the line to the terminal of this process."""
        return cls(remote=bool(os.environ.get("SSH_CONNECTION")))

    def wrote(self, count: int, seconds: float) -> None:
        """Take in that so many bytes went out, and how long that took; from any thread."""
        with self._lock:
            self._sent.append((self._clock(), count))
            self._forget()
            if self._asked is None:
                self._note(seconds)

    def asks(self) -> bool:
        """Whether the terminal should be asked for an answer behind the picture just sent."""
        if not self.remote or self._asked is not None:
            return False
        self._asked = self._clock()
        return True

    def answered(self) -> None:
        """Take in that the terminal has come as far as the question."""
        with self._lock:
            if self._asked is not None:
                self._note(self._clock() - self._asked)
            self._asked = None

    @property
    def interval(self) -> float:
        """Seconds from one redraw to the next."""
        if self.rate:
            return 1.0 / self.rate
        if not self.remote:
            return FASTEST
        delay = self._delay
        if self._asked is not None:
            delay = max(delay, self._clock() - self._asked)
        return min(SLOWEST, max(FASTEST, PATIENCE * delay))

    @property
    def bytes_per_second(self) -> float:
        """The traffic of the last few seconds."""
        with self._lock:
            self._forget()
            return sum(count for _, count in self._sent) / WINDOW

    def due(self) -> bool:
        """Whether it is time to draw; if so, it is taken to be done."""
        now = self._clock()
        if now - self._drawn < self.interval - SLACK:
            return False
        self._drawn = now
        return True

    def next_rate(self) -> None:
        """Go on to the next rate; after the slowest the line decides again."""
        self.rate = RATES[(RATES.index(self.rate) + 1) % len(RATES)] if self.rate in RATES else 0.0

    def words(self) -> str:
        """Return rate and traffic, where they are of interest: over a network, or once chosen."""
        if not (self.remote or self.rate):
            return ""
        kilobytes = self.bytes_per_second / 1000
        traffic = f"{kilobytes:.0f} KB/s" if kilobytes >= 1 else "under 1 KB/s"
        often = 1 / self.interval
        # Rounded coarsely: the words themselves are sent over the line.
        return f"drawn {often:.0f}/s, {traffic}" if often > 0.9 else (
            f"drawn every {self.interval:.0f} s, {traffic}"
        )  # fmt: skip

    def _note(self, seconds: float) -> None:
        """Rise at once, fall by halves: one quick answer does not mean that the line is free."""
        self._delay = max(seconds, self._delay / 2)

    def _forget(self) -> None:
        while self._sent and self._sent[0][0] < self._clock() - WINDOW:
            self._sent.popleft()
