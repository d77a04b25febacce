"""Training without a screen: what is printed, and what the signals and a lost terminal mean.

With cli.py and commands.py, all that prints in this package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

from megatron_model import events
from megatron_model.config import RunConfig
from megatron_model.control import Control
from megatron_model.events import RECORDED, Event, encode_event
from megatron_model.handover import open_trainer_log
from megatron_model.run_folder import FINAL_WEIGHTS_FILE, RunFolder
from megatron_model.text import safe

if TYPE_CHECKING:
    from megatron_model.distributed import Team

_MARK = os.environ.get("MEGATRON_LINE_MARK", "")
"""Begins each line for people, where they are to be told from those of torchrun."""


def follow(
    folder: RunFolder,
    config: RunConfig | None,
    *,
    json_lines: bool = False,
    take_over: bool = False,
    team: Team | None = None,
    control: Control | None = None,
) -> int:
    """Train the run in `folder`, print what happens, and return the exit status.

    A successor (`take_over`) prints no reports of steps: they are in the run's log, and its own
    would grow with every one of them.
    """
    control = control or Control()
    signals = _Signals(folder, control)
    signals.install()
    from megatron_model.runner import run_training

    status = 0
    for event in run_training(folder, control, config=config, take_over=take_over, team=team):
        if json_lines and isinstance(event, RECORDED):
            json_lines = _print_event(event)
        if isinstance(event, events.RunStarted):  # before it the request may still be refused
            signals.begun = True
            say(f"run {folder.name} in {folder.path}")
        line = "" if take_over and isinstance(event, events.StepFinished) else line_of(event)
        if line:
            say(line)
        if isinstance(event, events.RunFailed):
            status = 1
    if status == 0 and not isinstance(event, events.RunHandedOver):
        say(f"weights: {folder.path / FINAL_WEIGHTS_FILE}")
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
    """Whether writing to it can still work: a terminal that hung up is none any more."""
    try:
        os.write(descriptor, b"")
    except OSError:
        return False
    return True


def _print_event(event: Event) -> bool:
    try:
        sys.stdout.buffer.write(encode_event(event))
        sys.stdout.buffer.flush()
    except OSError:
        # Whoever read along has gone; that is no reason to lose the run.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return False
    return True


def say(text: str) -> None:
    """Print one line for people on stderr, which may be gone: that is no reason to lose the run."""
    with contextlib.suppress(OSError):
        # One line, but with its columns: `safe` would fold their spaces too.
        line = _MARK + safe(text).replace("\n", " ") + "\n"
        sys.stderr.write(line)  # whole: several processes write here
        sys.stderr.flush()


def line_of(event: Event) -> str:
    """Return one line for people about an event, or nothing."""
    match event:
        case events.RunStarted():
            verb = f"resumed at step {event.step:,}" if event.step else "started"
            return (
                f"{verb}: {event.parameters:,} parameters on {event.device} in {event.precision}, "
                f"{event.characters:,} characters, {event.vocabulary_size} of them different"
            )
        case events.StepFinished():
            return (
                f"step {event.step:>7,}  loss {event.train_loss:.4f}  "
                f"{event.tokens_per_second:,.0f} characters/s  {event.elapsed_seconds:.1f} s"
            )
        case events.Evaluated():
            return (
                f"step {event.step:>7,}  validation {event.val_loss:.4f} "
                f"({event.bits_per_character:.4f} bits per character)"
            )
        case events.CheckpointSaved():
            return f"step {event.step:>7,}  saved {event.path}"
        case events.Noticed():
            return f"step {event.step:>7,}  {event.text}"
        case events.Alerted():
            return f"step {event.step:>7,}  {event.text}"
        case events.RunPaused():
            return f"step {event.step:>7,}  paused"
        case events.RunResumed():
            return f"step {event.step:>7,}  training goes on"
        case events.RunHandedOver():
            return f"handed over at step {event.step:,}: another process goes on with it"
        case events.RunFinished():
            return f"{event.reason} at step {event.step:,} after {event.elapsed_seconds:.1f} s"
        case events.RunFailed():
            return f"failed at step {event.step:,}: {event.error}"
        case _:
            return ""
