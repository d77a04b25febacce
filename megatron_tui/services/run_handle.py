"""A run as the workbench holds it: what it does, and what can be asked of its trainer.

There are two kinds: one that a thread of this process trains (thread_run.py), and one whose log is
followed, because processes of its own train it or nobody does now (process_run.py). Screens ask
the handle, never which of the two it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from megatron_model.events.schema import Event, RunPaused, RunResumed, RunStarted
from megatron_model.events.state import RunState
from megatron_model.run.control import Command
from megatron_model.run.folder import RunFolder
from megatron_model.util.text import safe
from megatron_tui.services.run_log import RunLog
from megatron_tui.ui import formatting

Standing: TypeAlias = Literal[
    "new",
    "starting",
    "running",
    "paused",
    "stopping",
    "detaching",
    "stopped",
    "finished",
    "failed",
    "interrupted",
    "unreadable",
    "reading",
]
"""The last two are of a list: its folder cannot be read, or was not yet."""


class RunHandle(ABC):
    """One run: its folder, what its log amounts to, and its trainer, if it has one."""

    detached: ClassVar[bool]
    """Whether it goes on without this process: no thread of ours trains it."""

    def __init__(self, log: RunLog, *, active: bool) -> None:
        self.log = log
        self.active = active
        """Whether a living process trains it."""
        self.stopping = False
        """Whether its trainer was asked to end."""
        self.problem: str | None = None
        """Why the trainer ended without telling the log, if it did."""
        self._pause_asked: bool | None = None
        """What was asked last, pause or go on, while the trainer has not answered."""

    @property
    def folder(self) -> RunFolder:
        """Where the run is."""
        return self.log.folder

    @property
    def state(self) -> RunState:
        """What its events amount to so far."""
        return self.log.state

    @property
    def path(self) -> Path:
        """What tells it from every other run."""
        return self.log.folder.path

    @property
    def name(self) -> str:
        """The run's name, harmless to show."""
        return safe(self.folder.name, one_line=True)

    @property
    def reading(self) -> bool:
        """Whether only parts of a long log have been read so far."""
        return self.log.reading

    @property
    def device_count(self) -> int:
        """How many devices train it together; 1 where that is not known."""
        return device_count(self.state)

    @property
    def standing(self) -> Standing:
        """What is happening to the run, in one word."""
        if self.stopping and self.active:
            return "stopping"
        if self.problem is not None:
            return "failed"
        if self.active:
            if self.state.handed_over or not self.state.running:
                return "starting"
            return "paused" if self.state.status == "paused" else "running"
        return "interrupted" if self.state.running else self.state.status

    @property
    def pausing(self) -> bool:
        """Whether the run is paused, or will be once its trainer has obeyed."""
        return self.standing == "paused" if self._pause_asked is None else self._pause_asked

    @property
    def can_command(self) -> bool:
        """Whether there is a trainer that still obeys."""
        return self.active and self.standing not in ("stopping", "detaching")

    @property
    def can_detach(self) -> bool:
        """Whether a process of its own could go on with it in place of this one."""
        return not self.detached and self.can_command

    @property
    def can_take_back(self) -> bool:
        """Whether a thread of this process could go on with it in place of another process."""
        return False

    @property
    def resumable(self) -> bool:
        """Whether training can go on from here."""
        return not self.active and self.standing != "finished"

    def activity(self, now: float) -> str:
        """Return what the run is doing at the time `now`, in a few words."""
        if self.standing == "stopping":
            return "saving, then stopping"
        if self.reading:
            return "reading the log"
        phase, share = self.state.phase, self.state.phase_progress
        if not self.active or phase is None:
            return self.standing
        return phase if share is None else f"{phase} {formatting.percent(share)}"

    def command(self, command: Command) -> None:
        """Ask the trainer for something; it happens between two steps. Without one, nothing does.

        Raises:
            RequestError: another process trains it, and its folder cannot be written.
        """
        if not self.active:
            return
        self._send(command)
        if command in ("pause", "resume"):
            self._pause_asked = command == "pause"
        self.stopping = self.stopping or command in ("stop", "abort")

    def apply(self, event: Event) -> None:
        """Fold one event."""
        self.state.apply(event)
        if isinstance(event, (RunStarted, RunPaused, RunResumed)):
            self._pause_asked = None

    @abstractmethod
    def poll(self) -> bool:
        """Take in what happened; return whether anything changed."""

    @abstractmethod
    def _send(self, command: Command) -> None:
        """Bring a command to the trainer there is."""


def device_count(state: RunState) -> int:
    """Return how many devices train a run together; 1 where that is not known."""
    if state.ranks is not None:
        return len(state.ranks.ranks)
    return state.started.devices if state.started is not None else 1
