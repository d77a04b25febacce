"""One line at the foot of a terminal that says, again and again, how far the training is.

What else is printed stands above it. It is drawn on stderr, in plain ASCII, and only where that is
a terminal which this process may write to now: not in the background, not one that takes nothing.
"""

from __future__ import annotations

import contextlib
import os
import select
import time

from megatron_model.events.describe import loss_text
from megatron_model.events.schema import (
    CorpusProgress,
    Event,
    MetricsReported,
    StepCompleted,
    WorkProgress,
)
from megatron_model.events.state import RunState
from megatron_model.util.text import duration_text

SECONDS = 0.1
"""Between two drawings."""
_FREQUENT = (StepCompleted, MetricsReported, WorkProgress, CorpusProgress)
_CLEAR_REST = "\x1b[K"


class LiveLine:
    """The line, and the state of the run that it tells of.

    Args:
        descriptor: where it is drawn.
        wanted: whether it may be drawn at all.
    """

    def __init__(self, descriptor: int = 2, *, wanted: bool = True) -> None:
        self._descriptor = descriptor
        self._possible = wanted and os.environ.get("TERM", "dumb") not in ("dumb", "")
        self._possible = self._possible and os.isatty(descriptor)
        self._state = RunState()
        self._step: StepCompleted | None = None
        """The last step, while it is not in the state."""
        self._next = 0.0
        self._drawn = False

    @property
    def on(self) -> bool:
        """Whether it can be drawn now: a terminal may hang up, a job go to the background."""
        if not (self._possible and os.isatty(self._descriptor)):
            return False
        try:
            return os.tcgetpgrp(self._descriptor) == os.getpgrp()
        except OSError:  # a terminal, but not the one that this process belongs to
            return True

    def take(self, event: Event) -> None:
        """Take in what happened, and draw the line where it is time to."""
        if not self._possible:
            return
        now = time.monotonic()
        # What comes rarely may be the last for long: a pause, say, or the beginning of a save.
        due = now >= self._next or not isinstance(event, _FREQUENT)
        if isinstance(event, StepCompleted) and not due:  # thousands a second: the last one counts
            self._step = event
            return
        if self._step is not None:
            self._state.apply(self._step)
            self._step = None
        self._state.apply(event)
        if due:
            self._next = now + SECONDS
            self._draw()

    def clear(self) -> None:
        """Take the line away, for another one to be printed in its place."""
        if self._drawn and self.on:
            self._write("\r" + _CLEAR_REST)
        self._drawn = False

    def _draw(self) -> None:
        if not self.on:
            return
        text = line_of_state(self._state, self._width() - 1)
        # One that was stopped by ctrl+s would hold up the training.
        if text and select.select([], [self._descriptor], [], 0)[1]:
            self._write("\r" + text + _CLEAR_REST)
            self._drawn = True

    def _width(self) -> int:
        with contextlib.suppress(OSError):
            return os.get_terminal_size(self._descriptor).columns or 80
        return 80

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._descriptor, text.encode("ascii", "replace"))


def line_of_state(state: RunState, width: int) -> str:
    """Return how far a run is, in as many words as there is room for; the first say most."""
    parts = []
    if (started := state.started) is not None:
        of = f" of {started.steps:,}" if not started.max_seconds else f", {state.progress:.0%}"
        parts.append(f"step {state.step:,}{of}")
    if state.phase not in (None, "training"):
        share = "" if state.phase_progress is None else f" {state.phase_progress:.0%}"
        parts.append(f"{state.phase}{share}")
    if state.train_loss.values:
        parts.append(f"loss {loss_text(state.train_loss.values[-1])}")
    if state.best_val_loss is not None:
        parts.append(f"best {loss_text(state.best_val_loss)}")
    if state.speed.values:
        parts.append(f"{state.speed.values[-1]:,.0f} characters/s")
    if (left := state.remaining_seconds) is not None:
        parts.append(f"{duration_text(left)} left")
    text = ""
    for part in parts:
        longer = f"{text}  {part}" if text else part
        if len(longer) > width:
            break
        text = longer
    return text
