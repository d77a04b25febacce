"""The runs of one session: at most one that is trained here, one that was launched, one on show."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from megatron_model.events.schema import Event
from megatron_model.planning.compile_choice import begin_compiling
from megatron_model.run.control import Command, Control
from megatron_model.run.folder import RunFolder, list_runs
from megatron_model.run.handover import start_successor
from megatron_model.run.live_weights import WeightsRequest
from megatron_model.util.errors import RequestError
from megatron_tui.services.launch import Launch, Process, StartProcess
from megatron_tui.services.process_run import ProcessRun
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.services.run_log import glance, log_size
from megatron_tui.services.thread_run import RunTraining, ThreadRun


class TrainingService:
    """Starts, commands and polls runs; what a run can do, its handle knows."""

    def __init__(
        self,
        run_training: RunTraining | None = None,
        now: Callable[[], float] = time.time,
        start_process: StartProcess = start_successor,
    ) -> None:
        self.now = now
        self.idle = threading.Event()
        """Set whenever no trainer thread is at work."""
        self.idle.set()
        self.training: ThreadRun | None = None
        """The run this process trains, if it does."""
        self.launched: ProcessRun | None = None
        """The run on several devices that was started here last, until it ends."""
        self.shown: RunHandle | None = None
        """The run on the Training screen; one of these or another."""
        self.only_steps = False
        """Whether the last poll took nothing but steps: no hurry to draw them."""
        self._run_training = run_training or _run_training
        self._start_process = start_process
        self._processes: list[Process] = []
        self._notices: deque[str] = deque()

    @property
    def own(self) -> RunHandle | None:
        """The run that was started in this session and is still in training."""
        return self.training or self.launched

    @property
    def busy(self) -> bool:
        """Whether something can still change by itself: `poll` is worth calling."""
        shown = self.shown
        return self.own is not None or (shown is not None and (shown.active or shown.reading))

    def start(self, folder: RunFolder, *, take_over: bool = False) -> RunHandle:
        """Train the run in `folder` from its latest checkpoint, or from the beginning.

        With `take_over`, the process that trains it now is asked to hand it over first. A run on
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
        run = ThreadRun(
            folder,
            self._run_training,
            self._start,
            idle=self.idle,
            say=self._notices.append,
            take_over=take_over,
        )
        self.training = self.shown = run
        run.start()
        return run

    def _launch(self, folder: RunFolder, devices: int, *, take_over: bool) -> ProcessRun:
        if take_over:
            raise RequestError(
                f"{folder.name} trains on {devices} devices, in processes of its own, which the "
                "workbench cannot take the place of; it is commanded from here as it is."
            )
        if self.launched is not None and self.launched.launch is not None:
            raise RequestError(f"{self.launched.name} is starting; wait until it trains.")
        launch = Launch(folder, devices, self._start, self.now())
        run = ProcessRun.opened(folder)
        launch.offset = log_size(folder) if run.reading else run.log.offset
        run.launch, run.active = launch, True
        self.shown = self.launched = run
        return run

    def run_of(self, folder: RunFolder) -> RunHandle | None:
        """Return the run in `folder` if it is trained here or was started here."""
        own = (self.training, self.launched)
        return next((run for run in own if run and run.path == folder.path), None)

    def show(self, folder: RunFolder) -> RunHandle:
        """Put a run on show; its log is folded, and followed while another process trains it."""
        self.shown = self.run_of(folder) or ProcessRun.opened(folder)
        return self.shown

    def command(self, command: Command) -> None:
        """Ask the trainer of the run on show for something; it happens between two steps.

        Raises:
            RequestError: another process trains it, and its folder cannot be written.
        """
        if self.shown is not None:
            self.shown.command(command)

    def ask_for_weights(self, request: WeightsRequest) -> None:
        """Have the run that is trained here copy its weights for `request`, between two steps."""
        if self.training is not None:
            self.training.control.ask_for_weights(request)

    def stop(self) -> None:
        """Ask the trainer here to save and end; safe in a signal handler, and when nothing runs."""
        if self.training is not None:
            self.training.command("stop")

    def hand_over(self) -> None:
        """Let a process of its own go on with the run that is trained here; returns at once."""
        if self.training is not None:
            self.training.hand_over()

    def hand_over_or_stop(self) -> None:
        """Let a process of its own go on with the run, or stop it if that fails; returns at once.

        Safe in a signal handler, and when nothing runs.
        """
        if self.training is not None:
            # What closed the terminal may end this process too before the other one is ready.
            self.training.command("save")
            self.training.hand_over(or_stop=True)

    def take_notice(self) -> str | None:
        """Return, once, what went wrong without ending a run; None when all of it was told."""
        return self._notices.popleft() if self._notices else None

    def poll(self) -> bool:
        """Take in what happened; returns whether anything changed."""
        for process in list(self._processes):
            if process.poll() is not None:  # it ended, and the kernel may forget it
                self._processes.remove(process)
        changed = False
        for run in dict.fromkeys((self.training, self.launched, self.shown)):
            changed = (run is not None and run.poll()) or changed
        self.only_steps = self.training is not None and self.training.only_steps
        if self.training is not None and not self.training.active:
            self._replace_thread_run(self.training)
        if self.launched is not None and not self.launched.active:
            if self.launched.problem and self.launched is not self.shown:
                self._notices.append(f"{self.launched.name} did not start: {self.launched.problem}")
            self.launched = None
        return changed

    def _replace_thread_run(self, run: ThreadRun) -> None:
        """Forget the run whose thread ended; where another process goes on with it, follow that."""
        self.training = None
        if run is self.shown and run.goes_on_elsewhere:
            self.shown = ProcessRun.opened(run.folder)

    def _start(self, folder: RunFolder) -> Process:
        process = self._start_process(folder)
        self._processes.append(process)
        return process


def devices_of(folder: RunFolder) -> int:
    """Return on how many devices a run trains; its trainer says what is wrong with its settings."""
    try:
        return folder.read_config().training.devices
    except RequestError:
        return 1


def running_run(runs_dir: Path) -> RunFolder | None:
    """Return the run that some process trains, the newest of several; reads the whole folder."""
    try:
        folders = list_runs(runs_dir)
        for folder in folders:
            if folder.is_active():
                return folder
        # Between two trainers nobody holds it: it was handed over a moment ago.
        return next((one for one in folders[:1] if one.is_alive(glance(one))), None)
    except (RequestError, OSError):
        return None


def _run_training(folder: RunFolder, control: Control, **options: Any) -> Iterator[Event]:
    begun = time.perf_counter()
    begin_compiling(options.get("config") or folder.read_config())
    from megatron_model.run.runner import run_training  # torch loads here, not at start-up

    return run_training(folder, control, begun=begun, **options)
