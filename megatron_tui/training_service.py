"""Own the thread that trains, and the run that is on show: its state is folded here, on one side.

The worker thread only puts events into a hub; `poll`, called by the app, is the only one to change
a `RunState`. A run trained by another process is followed through its log in the same way; so is
one on several devices, which is started in processes of its own.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from megatron_model.command_folder import CommandFolder
from megatron_model.control import Command, Control
from megatron_model.errors import RequestError
from megatron_model.events import Event, RunStarted, StepTaken
from megatron_model.handover import last_words, start_successor
from megatron_model.lending import WeightsRequest
from megatron_model.process import yield_to_other_threads
from megatron_model.run_folder import RunFolder
from megatron_model.run_state import RunState
from megatron_tui.hub import EventHub
from megatron_tui.launch import Launch, StartProcesses
from megatron_tui.open_run import OpenRun

RunTraining: TypeAlias = Callable[..., Iterator[Event]]
"""From a run folder and a control; ``take_over=True`` asks another process for the run first."""

TAIL_SECONDS = 1.0
LONG_LOG = 4_000_000
"""Bytes of a log that are read while a person waits."""


class TrainingService:
    """Starts, commands and follows runs; one run is trained here at a time, one is on show."""

    def __init__(
        self,
        run_training: RunTraining | None = None,
        now: Callable[[], float] = time.time,
        start_successor: StartProcesses = start_successor,
    ) -> None:
        self.now = now
        self.idle = threading.Event()
        """Set whenever no trainer thread is at work."""
        self.idle.set()
        self.training: OpenRun | None = None
        """The run this process trains, if it does."""
        self.shown: OpenRun | None = None
        """The run on the Training screen; the trained one or another."""
        self.launched: OpenRun | None = None
        """The run on several devices that was started here last, until it ends."""
        self._run_training = run_training
        self._control = Control()
        self._hub = EventHub()
        self._failure: str | None = None
        self._start_successor = start_successor
        self._successors: list[subprocess.Popen[bytes]] = []
        self._notice: str | None = None
        self.only_steps = False
        """Whether nothing but steps was taken since the poll before: no hurry to draw it."""
        self._read_logs: deque[tuple[OpenRun, RunState, int]] = deque()

    @property
    def busy(self) -> bool:
        """Whether something can still change by itself: `poll` is worth calling."""
        shown, own = self.shown, self.training or self.launched
        return own is not None or (shown is not None and (shown.active or shown.reading))

    def start(self, folder: RunFolder, *, take_over: bool = False) -> OpenRun:
        """Train the run in `folder` from its latest checkpoint, or from the beginning.

        With `take_over`, the process that trains it now is asked to let it go first. A run on
        several devices is started in processes of its own, and followed.

        Raises:
            RequestError: a run is in training already, here or (this one) elsewhere.
        """
        if not self.idle.is_set() or self.training is not None:
            name = self.training.name if self.training else "A run"
            raise RequestError(f"{name} is in training; stop it before another one starts.")
        if folder.is_active() and not take_over:
            raise RequestError(f"{folder.name} is being trained by another process.")
        devices = devices_of(folder)
        if devices > 1:
            return self._launch(folder, devices, take_over=take_over)
        run = OpenRun(folder, RunState(), here=True, active=True, arriving=take_over)
        self._begin_reading(run)
        self.training = self.shown = run
        self._control, self._hub, self._failure = Control(), EventHub(), None
        self.idle.clear()
        threading.Thread(
            target=self._train,
            args=(run, self._control, self._hub, take_over),
            daemon=True,
            name="trainer",
        ).start()
        return run

    def _launch(self, folder: RunFolder, devices: int, *, take_over: bool) -> OpenRun:
        run = OpenRun(folder, RunState())
        if take_over:
            raise RequestError(
                f"{run.name} trains on {devices} devices, in processes of its own, which the "
                "workbench cannot take the place of; it is commanded from here as it is."
            )
        if self.launched is not None and self.launched.launch is not None:
            raise RequestError(f"{self.launched.name} is starting; wait until it trains.")
        run.launch = Launch(folder, devices, self._start_successor, self.now())
        self._attach(run)
        run.launch.offset = log_size(folder) if run.reading else run.offset
        run.active = True
        self.shown = self.launched = run
        return run

    def run_of(self, folder: RunFolder) -> OpenRun | None:
        """Return the run in `folder` if it is trained here or was started here."""
        own = (self.training, self.launched)
        return next((run for run in own if run and run.folder.path == folder.path), None)

    def show(self, folder: RunFolder) -> OpenRun:
        """Put a run on show; its log is folded, and followed while another process trains it."""
        own = self.run_of(folder)
        if own is not None:
            self.shown = own
            return own
        self.shown = OpenRun(folder, RunState())
        self._attach(self.shown)
        return self.shown

    def _attach(self, run: OpenRun) -> None:
        """Read the run's log; it is followed from there while another process trains the run."""
        active = run.folder.is_active()
        self._begin_reading(run)
        if run.reading:
            threading.Thread(target=self._read, args=(run,), daemon=True, name="log").start()
        run.active = active or run.folder.is_alive(run.state)

    def _begin_reading(self, run: OpenRun) -> None:
        """Fold the run's log; of a long one only its two ends, and a thread has to `_read` it."""
        run.reading = log_size(run.folder) > LONG_LOG
        if run.reading:
            run.state = glance(run.folder)
        else:
            run.state, run.offset = run.folder.fold()

    def _read(self, run: OpenRun) -> None:
        self._read_logs.append((run, *run.folder.fold()))

    def _take_read(self) -> bool:
        """Take over the logs that were read meanwhile."""
        taken = False
        while self._read_logs:
            run, run_state, offset = self._read_logs.popleft()
            if run.reading:
                run.state, run.offset, run.reading = run_state, offset, False
                run.active = run.active or run.folder.is_alive(run.state)
                taken = True
        return taken

    def command(self, command: Command) -> None:
        """Ask whoever trains the run on show for something; it happens between two steps.

        Raises:
            RequestError: another process trains it, and its folder cannot be written.
        """
        run = self.shown
        if run is not None and command in ("pause", "resume"):
            run.pause_asked = command == "pause"
        if run is None or run.here or not run.active:
            self._command_here(command)
            return
        if run.launch is not None and command == "abort":
            command = "stop"  # there is nothing to lose yet
        CommandFolder(run.folder.path).send(command)
        run.stopping = run.stopping or command in ("stop", "abort")

    def end_launched(self) -> None:
        """Ask the processes of the run that was started here to save and end.

        Raises:
            RequestError: its folder cannot be written.
        """
        if self.launched is not None:
            CommandFolder(self.launched.folder.path).send("stop")
            self.launched.stopping = True

    def _command_here(self, command: Command) -> None:
        if self.training is not None:
            if command in ("stop", "abort"):
                self.training.stopping = True
            self._control.put(command)

    def ask_for_weights(self, request: WeightsRequest) -> None:
        """Have the run that is trained here copy its weights for `request`, between two steps."""
        if self.training is not None:
            self._control.ask_for_weights(request)

    def stop(self) -> None:
        """Ask the trainer to save and end; safe in a signal handler, and when nothing runs."""
        self._command_here("stop")

    @property
    def leaving(self) -> bool:
        """Whether another process is about to go on with the run that is trained here."""
        return self.training is not None and self.training.leaving

    def take_notice(self) -> str | None:
        """Return, once, what went wrong without ending the run."""
        notice, self._notice = self._notice, None
        return notice

    def leave(self) -> None:
        """Let a process of its own go on with the run, or stop it if that fails; returns at once.

        Safe in a signal handler, and when nothing runs.
        """
        # Whoever closed the terminal may end this process too before the other one is ready.
        self._command_here("save")
        self.hand_over(or_stop=True)

    def hand_over(self, *, or_stop: bool = False) -> None:
        """Start a process that goes on with the run, which is trained here until that is ready.

        `or_stop` says what happens when there comes none: save and end, or else train on here.
        """
        run = self.training
        if run is None or run.leaving:
            return
        run.leaving = True
        threading.Thread(
            target=self._see_off,
            args=(run, self._control, or_stop),
            daemon=True,
            name="hand-over",
        ).start()

    def _see_off(self, run: OpenRun, control: Control, or_stop: bool) -> None:
        try:
            successor = self._start_successor(run.folder)
            self._successors.append(successor)
            while successor.poll() is None:
                if self.idle.wait(0.05):
                    return
            if self.idle.is_set():
                return
            problem = last_words(run.folder) or "the new process ended at once"
        except RequestError as error:
            problem = str(error)
        run.leaving = False
        if or_stop:
            control.put("stop")
        self._notice = f"{run.name} goes on here: {problem}"

    def poll(self) -> bool:
        """Take in what happened; returns whether anything on show changed."""
        # Successors that ended are buried here.
        self._successors = [child for child in self._successors if child.poll() is None]
        self.only_steps = False
        changed = self._take_read()
        changed = self._poll_training() or changed
        followed = [self.shown]
        if self.launched is not self.shown:
            followed.append(self.launched)
        for run in followed:
            if run is not None and run.active and not (run.here or run.reading):
                changed = self._poll_log(run) or changed
        if self.launched is not None and not self.launched.active:
            self.launched = None
        return changed

    def _poll_training(self) -> bool:
        run = self.training
        if run is None:
            return False
        # Asked first: what the thread put before its end is then drained.
        ended = self.idle.is_set()
        if run.reading and not self._take_read() and not ended:
            return False  # what happens waits in the hub until its past was read
        events, overflowed = self._hub.drain()
        if overflowed:
            # The screen stood still for long; the log has everything.
            run.state = run.folder.state()
            run.arriving = False
        changed = self._catch_up(run, events) if run.arriving else bool(events)
        self.only_steps = not ended and all(isinstance(event, StepTaken) for event in events)
        for event in events:
            run.apply(event)
        if ended:
            self._let_go(run)
        return changed or ended

    def _catch_up(self, run: OpenRun, events: list[Event]) -> bool:
        """Take in what the trainer before us wrote into the log, up to our own beginning."""
        begun = next((event for event in events if isinstance(event, RunStarted)), None)
        if begun is None:
            return self._poll_log(run) or bool(events)
        theirs, _ = run.folder.read_events(run.offset)
        for event in theirs:
            if event == begun:
                break
            run.apply(event)
        run.arriving = False
        return True

    def _let_go(self, run: OpenRun) -> None:
        """Nobody trains the run in this process any more; another one may."""
        self.training = None
        arrived = not run.arriving
        run.here = run.active = run.stopping = run.leaving = run.arriving = False
        if not arrived and self._failure is not None:
            self._notice = self._failure
        else:
            run.problem = self._failure
        if run.folder.path.exists() and (run.state.handed_over or not arrived):
            self._attach(run)

    def _poll_log(self, run: OpenRun) -> bool:
        if time.monotonic() - run.looked_at < TAIL_SECONDS:
            return False
        run.looked_at = time.monotonic()
        ended = run.launch is not None and run.launch.ended  # asked before the log is read
        active = run.folder.is_active()
        events, run.offset = run.folder.read_events(run.offset)
        for event in events:
            run.apply(event)
        self._look_at_launch(run, ended)
        run.active = active or run.here or run.launch is not None or run.folder.is_alive(run.state)
        run.stopping = run.stopping and run.active
        return bool(events) or not run.active

    def _look_at_launch(self, run: OpenRun, ended: bool) -> None:
        """See whether the processes that come up train the run by now, or never will."""
        launch = run.launch
        if launch is None or not (ended or run.offset > launch.offset):
            return
        if run.offset <= launch.offset:
            run.problem = launch.why()
            if run is not self.shown:
                self._notice = f"{run.name} did not start: {run.problem}"
        launch.close()
        self._successors.append(launch.process)
        run.launch = None

    def _train(
        self, run: OpenRun, control: Control, hub: EventHub, take_over: bool = False
    ) -> None:
        options: dict[str, Any] = {"take_over": True} if take_over else {}
        yield_to_other_threads()
        try:
            if run.reading:
                self._read(run)  # before the trainer writes more into the log
            for event in (self._run_training or _load_runner())(run.folder, control, **options):
                hub.put(event)
        except RequestError as error:
            self._failure = str(error)
        except BaseException as error:  # whatever it is, the screen must say it: the thread ends
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self.idle.set()


def devices_of(folder: RunFolder) -> int:
    """Return on how many devices a run trains; whoever trains it says what is wrong with it."""
    try:
        return folder.config.training.devices
    except RequestError:
        return 1


def log_size(folder: RunFolder) -> int:
    """Return how long the log of a run is."""
    try:
        return folder.events_path.stat().st_size
    except OSError:
        return 0


def glance(folder: RunFolder) -> RunState:
    """Fold the beginning and the end of a long log: what the run is, and where it stands."""
    state, part = RunState(), LONG_LOG // 4
    for offset in (0, max(0, log_size(folder) - part)):
        for event in folder.read_events(offset, limit=part if offset else part // 10)[0]:
            state.apply(event)
    return state


def _load_runner() -> RunTraining:
    from megatron_model.runner import run_training  # torch loads here, not at start-up

    return run_training
