"""A run on show: its folder, what its events say, and whether somebody trains it now."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from megatron_model.events import Event, RunPaused, RunResumed, RunStarted
from megatron_model.run_folder import RunFolder
from megatron_model.run_state import RunState
from megatron_model.text import safe
from megatron_tui.launch import Launch

Standing: TypeAlias = Literal[
    "new",
    "starting",
    "running",
    "paused",
    "stopping",
    "leaving",
    "stopped",
    "finished",
    "failed",
    "interrupted",
]


@dataclass
class OpenRun:
    """A run on show: its folder, what its events say, and whether somebody trains it now."""

    folder: RunFolder
    state: RunState
    here: bool = False
    """Whether this process trains it."""
    active: bool = False
    """Whether any living process trains it."""
    stopping: bool = False
    leaving: bool = False
    """Whether another process is about to go on with it in place of this one."""
    arriving: bool = False
    """Whether this process is about to go on with it in place of another one."""
    launch: Launch | None = None
    """The start of its own processes, until they train."""
    problem: str | None = None
    """Why the trainer ended without a word in the log, if it did."""
    pause_asked: bool | None = None
    """What was asked last, pause or go on, while the trainer has not answered."""
    reading: bool = False
    """Whether only parts of a long log have been read so far."""
    offset: int = 0
    looked_at: float = field(default=0.0, repr=False)

    @property
    def name(self) -> str:
        """The run's name, harmless to show."""
        return safe(self.folder.name, one_line=True)

    @property
    def standing(self) -> Standing:
        """What is happening to the run, in one word."""
        if self.stopping and self.active:
            return "stopping"
        if self.leaving and self.active:
            return "leaving"
        if self.problem is not None:
            return "failed"
        if self.launch is not None:
            return "starting"
        if self.active:
            if self.state.handed_over or self.state.status in ("new", "finished", "failed"):
                return "starting"
            return "paused" if self.state.status == "paused" else "running"
        if self.state.running:
            return "interrupted"
        if self.state.status == "finished":
            return "stopped" if self.state.finish_reason == "stopped" else "finished"
        return "failed" if self.state.status == "failed" else "new"

    @property
    def pausing(self) -> bool:
        """Whether the run is paused, or will be once its trainer has obeyed."""
        return self.standing == "paused" if self.pause_asked is None else self.pause_asked

    def apply(self, event: Event) -> None:
        """Fold one event."""
        self.state.apply(event)
        if isinstance(event, (RunStarted, RunPaused, RunResumed)):
            self.pause_asked = None

    @property
    def resumable(self) -> bool:
        """Whether training can go on from here."""
        return not self.active and self.standing != "finished"
