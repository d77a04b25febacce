"""What may be asked of a running trainer, from any thread."""

from __future__ import annotations

import threading
from collections import deque
from typing import Literal, TypeAlias

Command: TypeAlias = Literal["pause", "resume", "save", "evaluate", "sample", "stop"]


class Control:
    """Commands for one trainer: screens and signal handlers put them in, the runner takes them out.

    `put` never blocks and may be called from a signal handler; `deque` appends are atomic and the
    event is only a wake-up for a paused runner.
    """

    def __init__(self) -> None:
        self._commands: deque[Command] = deque()
        self._wake = threading.Event()

    def put(self, command: Command) -> None:
        """Ask for something; it happens between two steps."""
        self._commands.append(command)
        self._wake.set()

    def take(self) -> Command | None:
        """Return the oldest command that was not taken yet, or None."""
        try:
            return self._commands.popleft()
        except IndexError:
            return None

    def wait(self, timeout: float | None = None) -> None:
        """Sleep until there is a command, or `timeout` seconds have passed."""
        if not self._commands:
            self._wake.wait(timeout)
        self._wake.clear()
