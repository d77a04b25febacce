"""Training without a screen: what is printed, and what the signals and a lost terminal mean.

With parser.py, output.py, live_line.py and the verbs, all that prints in this package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Collection, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from megatron_model.cli.live_line import LiveLine
from megatron_model.config.fields import RunConfig
from megatron_model.events import schema as events
from megatron_model.events.describe import line_of
from megatron_model.events.schema import RECORDED, Event, encode_event
from megatron_model.run.control import Control
from megatron_model.run.folder import FINAL_WEIGHTS_FILE, RunFolder
from megatron_model.run.handover import open_trainer_log
from megatron_model.util import streams
from megatron_model.util.text import safe

if TYPE_CHECKING:
    from megatron_model.run.runner import MakeLearner

_MARK = os.environ.get("MEGATRON_LINE_MARK", "")
"""Begins each line for people, where they are to be told from what libraries print."""


def follow(
    folder: RunFolder,
    config: RunConfig | None,
    *,
    json_lines: bool = False,
    take_over: bool = False,
    control: Control | None = None,
    make_learner: MakeLearner | None = None,
    begun: float | None = None,
) -> int:
    """Train the run in `folder`, print what happens, and return the exit status.

    Its time counts from when it was asked for, `begun` by `time.perf_counter`.

    A process that takes over prints no reports of steps: they are in events.jsonl, and trainer.log
    would grow with each of them. On a terminal one line that is written over and over has them.
    """
    control = control or Control()
    signals = _Signals(folder, control)
    signals.install()
    from megatron_model.run.runner import run_training

    status = 0
    mixed = json_lines and sys.stdout.isatty()  # their lines would break into ours
    alone = make_learner is None and not _MARK  # others of the run's processes print here too
    live = LiveLine(wanted=alone and not (take_over or mixed))
    events_of_run = run_training(
        folder,
        control,
        config=config,
        take_over=take_over,
        make_learner=make_learner,
        begun=begun,
    )
    try:
        for event in events_of_run:
            if json_lines and isinstance(event, RECORDED):
                json_lines = _print_event(event)
            lines = []
            if isinstance(event, events.RunStarted):  # before it the request may still be refused
                signals.begun = True
                lines.append(f"run {folder.name} in {folder.path}")
            if not (isinstance(event, events.MetricsReported) and (take_over or live.on)):
                lines.append(line_of(event))
            for line in filter(None, lines):
                live.clear()
                say(line)
            live.take(event)
            if isinstance(event, events.RunFailed):
                status = 1
    finally:
        live.clear()
    if status == 0 and not isinstance(event, events.RunHandedOver):
        weights = folder.path / FINAL_WEIGHTS_FILE  # not there where the run was stopped at once
        say(f"weights: {weights}" if weights.exists() else "nothing was saved")
    if signals.first:
        signals.finish()
    return 128 + signals.first if signals.first and status == 0 else status


class _Signals:
    """SIGINT and SIGTERM finish the step and save; the loss of the terminal is not even that."""

    def __init__(self, folder: RunFolder, control: Control) -> None:
        self._folder = folder
        self._control = control
        self.first = 0
        """The signal that ends the run, if one came."""
        self.begun = False
        """Whether there is something to save."""

    def install(self) -> None:
        """Take the signals; main thread only."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, self._go_on_alone)

    def finish(self) -> None:
        """Let no further signal change the exit status: what there was to save is saved."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        # However often: the save that the first one asked for is never broken by another.
        if self.first and not self.begun:
            raise KeyboardInterrupt
        self.first = self.first or number
        self._control.put("stop")

    def _go_on_alone(self, _number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(OSError):
            log = open_trainer_log(self._folder)
            for descriptor in (1, 2):
                if os.isatty(descriptor) or not _open(descriptor):
                    os.dup2(log, descriptor)
            os.close(log)
            nothing = os.open(os.devnull, os.O_RDONLY)
            os.dup2(nothing, 0)
            os.close(nothing)


def _open(descriptor: int) -> bool:
    """Whether it can still be written to: a terminal that hung up cannot."""
    try:
        os.write(descriptor, b"")
    except OSError:
        return False
    return True


def _print_event(event: Event) -> bool:
    try:
        sys.stdout.buffer.write(encode_event(event))
        sys.stdout.buffer.flush()
    except (OSError, ValueError):
        # The reader is gone; that is no reason to lose the run.
        streams.give_up(1)
        return False
    return True


def say(text: str) -> None:
    """Print one line for people on stderr, which may be gone: that is no reason to lose the run."""
    # One line, but with its columns: `safe` would fold their spaces too.
    streams.say(_MARK + safe(text).replace("\n", " "))


def print_table(lines: Sequence[Sequence[str]], left: Collection[str] = ()) -> None:
    """Print lines of cells below each other, the first one their titles.

    `left`: the titles of the columns whose cells stand at the left; numbers stand at the right.
    """
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if title in left else cell.rjust(width)
            for cell, width, title in zip(line, widths, lines[0], strict=True)
        ]
        print("  ".join(cells).rstrip())
