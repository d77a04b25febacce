"""End well when the terminal goes or the process is told to: save, restore the terminal, leave.

Textual handles neither SIGTERM nor SIGHUP, and its event loop can be blocked by a stalled terminal;
so the handler is Python's own, and a watchdog thread leaves even when the screen cannot.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import threading
from types import FrameType
from typing import Any, Protocol

from textual.app import App

SAVE_GRACE_SECONDS = 60.0
SCREEN_GRACE_SECONDS = 3.0

# Leave the alternate screen, show the cursor, switch off mouse reports and bracketed paste.
_RESTORE = (
    b"\x1b[<u\x1b[?1049l\x1b[?25h\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?1006l\x1b[?2004l\x1b[0m"
)


class Stoppable(Protocol):
    """A worker that can be told to save and stop, and whose end can be waited for."""

    idle: threading.Event

    def stop(self) -> None:
        """Ask for the end; returns at once."""


class Lifeline:
    """SIGTERM and SIGHUP for an app with a trainer."""

    def __init__(self, trainer: Stoppable) -> None:
        self._trainer = trainer
        self._signal = 0
        self._app: App[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.screen_closed = threading.Event()
        """Set by whoever ran the app, once it returned."""
        self._cooked: list[Any] | None = None
        with contextlib.suppress(termios.error, ValueError, OSError, AttributeError):
            # Taken before the app puts the terminal into raw mode.
            self._cooked = termios.tcgetattr(sys.__stdin__.fileno())  # type: ignore[union-attr]

    def install(self, app: App[Any]) -> None:
        """Take the signals; call from the main thread with the app's loop running."""
        self._app, self._loop = app, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._signal:
            return
        self._signal = number
        self._trainer.stop()
        threading.Thread(target=self._watch, daemon=True, name="lifeline").start()
        if self._loop is not None and self._app is not None:
            app = self._app
            self._loop.call_soon_threadsafe(lambda: app.exit(return_code=128 + number))

    def _watch(self) -> None:
        self._trainer.idle.wait(SAVE_GRACE_SECONDS)
        if self.screen_closed.wait(SCREEN_GRACE_SECONDS):
            return
        with contextlib.suppress(OSError, ValueError, AttributeError):
            descriptor = sys.__stderr__.fileno()  # type: ignore[union-attr]
            os.set_blocking(descriptor, False)
            os.write(descriptor, _RESTORE)
        if self._cooked is not None:
            with contextlib.suppress(termios.error, OSError):
                termios.tcsetattr(0, termios.TCSANOW, self._cooked)
        os._exit(128 + self._signal)
