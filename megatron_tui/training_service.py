"""Own the thread that trains, and the run that is on show: its state is folded here, on one side.

The worker thread only puts events into a hub; `poll`, called by the app, is the only one to change
a `RunState`. A run trained by another process is followed through its log in the same way.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from megatron_model.control import Command, Control
from megatron_model.errors import RequestError
from megatron_model.events import Event
from megatron_model.run_folder import RunFolder
from megatron_model.run_state import RunState
from megatron_model.text import safe
from megatron_tui.hub import EventHub

RunTraining: TypeAlias = Callable[[RunFolder, Control], Iterator[Event]]

Standing: TypeAlias = Literal[
    "new",
    "starting",
    "running",
    "paused",
    "stopping",
    "stopped",
    "finished",
    "failed",
    "interrupted",
]

TAIL_SECONDS = 1.0


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
    problem: str | None = None
    """Why the trainer ended without a word in the log, if it did."""
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
        if self.problem is not None:
            return "failed"
        if self.active:
            if self.state.status in ("new", "finished", "failed"):
                return "starting"
            return "paused" if self.state.status == "paused" else "running"
        if self.state.running:
            return "interrupted"
        if self.state.status == "finished":
            return "stopped" if self.state.finish_reason == "stopped" else "finished"
        return "failed" if self.state.status == "failed" else "new"

    @property
    def resumable(self) -> bool:
        """Whether training can go on from here."""
        return not self.active and self.standing != "finished"


class TrainingService:
    """Starts, commands and follows runs; one run is trained here at a time, one is on show."""

    def __init__(
        self, run_training: RunTraining | None = None, now: Callable[[], float] = time.time
    ) -> None:
        self.now = now
        self.idle = threading.Event()
        """Set whenever no trainer thread is at work."""
        self.idle.set()
        self.training: OpenRun | None = None
        """The run this process trains, if it does."""
        self.shown: OpenRun | None = None
        """The run on the Training screen; the trained one or another."""
        self._run_training = run_training
        self._control = Control()
        self._hub = EventHub()
        self._failure: str | None = None

    @property
    def busy(self) -> bool:
        """Whether something can still change by itself: `poll` is worth calling."""
        return self.training is not None or (self.shown is not None and self.shown.active)

    def start(self, folder: RunFolder) -> OpenRun:
        """Train the run in `folder` from its latest checkpoint, or from the beginning.

        Raises:
            RequestError: a run is in training already, here or (this one) elsewhere.
        """
        if not self.idle.is_set() or self.training is not None:
            name = self.training.name if self.training else "A run"
            raise RequestError(f"{name} is in training; stop it before another one starts.")
        if folder.is_active():
            raise RequestError(f"{folder.name} is being trained by another process.")
        events, offset = folder.read_events()
        run = OpenRun(folder, _fold(events), here=True, active=True, offset=offset)
        self.training = self.shown = run
        self._control, self._hub, self._failure = Control(), EventHub(), None
        self.idle.clear()
        threading.Thread(
            target=self._train, args=(folder, self._control, self._hub), daemon=True, name="trainer"
        ).start()
        return run

    def show(self, folder: RunFolder) -> OpenRun:
        """Put a run on show; its log is folded, and followed while another process trains it."""
        if self.training is not None and self.training.folder.path == folder.path:
            self.shown = self.training
            return self.training
        active = folder.is_active()
        events, offset = folder.read_events()
        self.shown = OpenRun(folder, _fold(events), active=active, offset=offset)
        return self.shown

    def command(self, command: Command) -> None:
        """Ask the trainer of this process for something; it happens between two steps."""
        if self.training is not None:
            if command == "stop":
                self.training.stopping = True
            self._control.put(command)

    def stop(self) -> None:
        """Ask the trainer to save and end; safe in a signal handler, and when nothing runs."""
        self.command("stop")

    def poll(self) -> bool:
        """Take in what happened; returns whether anything on show changed."""
        changed = self._poll_training()
        if self.shown is not None and self.shown.active and not self.shown.here:
            changed = self._poll_log(self.shown) or changed
        return changed

    def _poll_training(self) -> bool:
        run = self.training
        if run is None:
            return False
        ended = (
            self.idle.is_set()
        )  # asked first: what the thread put before its end is then drained
        events, overflowed = self._hub.drain()
        if overflowed:
            # The screen stood still for long; the log has everything.
            run.state = run.folder.state()
        for event in events:
            run.state.apply(event)
        if ended:
            run.here = run.active = run.stopping = False
            run.problem = self._failure
            self.training = None
        return bool(events) or ended

    def _poll_log(self, run: OpenRun) -> bool:
        if time.monotonic() - run.looked_at < TAIL_SECONDS:
            return False
        run.looked_at = time.monotonic()
        run.active = run.folder.is_active()
        events, run.offset = run.folder.read_events(run.offset)
        for event in events:
            run.state.apply(event)
        return bool(events) or not run.active

    def _train(self, folder: RunFolder, control: Control, hub: EventHub) -> None:
        try:
            for event in (self._run_training or _load_runner())(folder, control):
                hub.put(event)
        except RequestError as error:
            self._failure = str(error)
        except BaseException as error:  # whatever it is, the screen must say it: the thread ends
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self.idle.set()


def _load_runner() -> RunTraining:
    from megatron_model.runner import run_training  # torch loads here, not at start-up

    return run_training


def _fold(events: list[Event]) -> RunState:
    state = RunState()
    for event in events:
        state.apply(event)
    return state
