"""End well when the terminal goes or the process is told to: the run is saved or handed over.

SIGTERM saves and ends. A terminal that hangs up, or stops accepting output, ends the screen alone:
a process of its own goes on with the run. Textual handles neither signal, and its event loop can
be blocked by a stalled terminal; so the handlers are Python's own, and threads watch the terminal.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Protocol

from textual.app import App

SAVE_GRACE_SECONDS = 60.0
SCREEN_GRACE_SECONDS = 3.0
STALL_SECONDS = float(os.environ.get("MEGATRON_STALL_SECONDS", "60"))
"""How long the terminal may block the screen before the screen is given up."""

# Leave the alternate screen, show the cursor, switch off mouse reports and bracketed paste.
_RESTORE = (
    b"\x1b[<u\x1b[?1049l\x1b[?25h\x1b[?1003l\x1b[?1002l\x1b[?1000l\x1b[?1006l\x1b[?2004l\x1b[0m"
)


class Stoppable(Protocol):
    """A worker that can be told to stop or to hand over, and whose end can be waited for."""

    idle: threading.Event

    def hand_over_or_stop(self) -> None:
        """Ask for another process to go on with the work; returns at once."""

    def stop(self) -> None:
        """Ask for the end; returns at once."""


class TerminalSignals:
    """SIGTERM, SIGHUP and a dead or stalled terminal, for an app with a trainer."""

    def __init__(self, trainer: Stoppable) -> None:
        self._trainer = trainer
        self._signal = 0
        self._beats = 0
        self._aside = False
        """Whether another program has the terminal."""
        self._app: App[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.screen_closed = threading.Event()
        """Set once the app has returned."""
        self._cooked: list[Any] | None = None
        with contextlib.suppress(termios.error, ValueError, OSError, AttributeError):
            # Taken before the app puts the terminal into raw mode.
            self._cooked = termios.tcgetattr(sys.__stdin__.fileno())  # type: ignore[union-attr]

    @property
    def ended_by(self) -> int:
        """The signal that ended the screen, or that stands for the loss of its terminal; or 0."""
        return self._signal

    def install(self, app: App[Any]) -> None:
        """Take the signals; call from the main thread with the app's loop running."""
        self._app, self._loop = app, asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        app.set_interval(1.0, self._beat)
        for watch in (self._watch_line, self._watch_screen):
            threading.Thread(target=watch, daemon=True, name="terminal watch").start()

    @contextlib.contextmanager
    def standing_aside(self) -> Iterator[None]:
        """While another program has the terminal, a screen that is blocked is not given up."""
        self._aside = True
        try:
            yield
        finally:
            self._aside = False

    def _beat(self) -> None:
        self._beats += 1

    def _watch_line(self) -> None:
        """Notice a terminal that hung up where the signal does not come through (nohup)."""
        if not sys.platform.startswith("linux"):
            return
        poll = select.poll()
        poll.register(0, 0)  # hang-ups are reported unasked
        while not poll.poll(2000):
            if self.screen_closed.is_set():
                return
        self._end(signal.SIGHUP)

    def _watch_screen(self) -> None:
        """Notice an event loop that is blocked by a terminal which stopped accepting output.

        Counted in turns of this thread, not by the clock: a laptop that slept did not stall.
        """
        seen, stalled = -1, 0.0
        while stalled < STALL_SECONDS:
            if self.screen_closed.wait(1.0):
                return
            stalled = stalled + 1.0 if self._beats == seen and not self._aside else 0.0
            seen = self._beats
        self._end(signal.SIGHUP)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._end(number)

    def _end(self, number: int) -> None:
        if self._signal:
            if number == signal.SIGTERM != self._signal:
                self._trainer.stop()
            return
        self._signal = number
        if number == signal.SIGTERM:
            self._trainer.stop()
        else:
            self._trainer.hand_over_or_stop()
        threading.Thread(target=self._watch, daemon=True, name="last save").start()
        if self._loop is not None and self._app is not None:
            app = self._app
            with contextlib.suppress(RuntimeError):  # the loop is closed: the screen is gone
                self._loop.call_soon_threadsafe(lambda: app.exit(return_code=128 + number))

    def _watch(self) -> None:
        end = time.monotonic() + SAVE_GRACE_SECONDS
        # A successor asks for the run when it is ready, or the run is stopped: no limit needed.
        while not self._trainer.idle.wait(0.5) and (
            self._signal == signal.SIGHUP or time.monotonic() < end
        ):
            pass
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
