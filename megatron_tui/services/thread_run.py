"""A run that a thread of this process trains, until a process of its own takes it over.

The thread only puts events into a hub; `poll`, called by the app, is the only one to fold them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from megatron_model.events.schema import Event, RunStarted, StepCompleted
from megatron_model.run.control import Command, Control
from megatron_model.run.folder import RunFolder
from megatron_model.run.handover import last_words
from megatron_model.util.errors import RequestError, RunFailedError
from megatron_model.util.process import yield_to_other_threads
from megatron_tui.services.feed import EventFeed
from megatron_tui.services.launch import StartProcess
from megatron_tui.services.run_handle import RunHandle, Standing
from megatron_tui.services.run_log import RunLog

RunTraining: TypeAlias = Callable[..., Iterator[Event]]
"""From a run folder and a control; ``take_over=True`` asks another process for the run first."""


class ThreadRun(RunHandle):
    """A run in training here.

    Args:
        folder: the run.
        run_training: trains it.
        start_process: starts the process that it is handed over to.
        idle: cleared while the thread is at work.
        say: gets a sentence about what went wrong without ending the run.
        take_over: ask the process that trains it now for the run first.
    """

    detached = False

    def __init__(
        self,
        folder: RunFolder,
        run_training: RunTraining,
        start_process: StartProcess,
        *,
        idle: threading.Event,
        say: Callable[[str], None],
        take_over: bool = False,
    ) -> None:
        super().__init__(RunLog.opened(folder), active=True)
        self.handing_over = False
        """Whether another process is about to go on with it in place of this one."""
        self.taking_over = take_over
        """Whether this process is about to go on with it in place of another one."""
        self.only_steps = False
        """Whether the last poll took nothing but steps: no hurry to draw them."""
        self.control = Control()
        self._hub = EventFeed()
        self._failure: str | None = None
        self._run_training = run_training
        self._start_process = start_process
        self._idle = idle
        self._say = say

    def start(self) -> None:
        """Let the thread begin."""
        self._idle.clear()
        threading.Thread(target=self._train, daemon=True, name="trainer").start()

    @property
    def standing(self) -> Standing:
        """What is happening to the run, in one word."""
        if self.active and self.handing_over and not self.stopping:
            return "detaching"
        return super().standing

    @property
    def goes_on_elsewhere(self) -> bool:
        """Whether another process has the run now that this one has let it go."""
        left = self.state.handed_over or self.taking_over
        return not self.active and left and self.path.exists()

    def hand_over(self, *, or_stop: bool = False) -> None:
        """Start a process that takes the run over, which is trained here until that is ready.

        `or_stop` says what happens when there comes none: save and end, or else train on here.
        Returns at once; safe in a signal handler.
        """
        if self.handing_over:
            return
        self.handing_over = True
        threading.Thread(
            target=self._hand_over, args=(or_stop,), daemon=True, name="hand-over"
        ).start()

    def poll(self) -> bool:
        """Take in what happened; return whether anything changed."""
        # Asked first: what the thread put before its end is then drained.
        ended = self._idle.is_set()
        self.only_steps = False
        read = self.log.take_whole()
        if self.reading and not ended:
            return False  # what happens waits in the hub until its past was read
        events, overflowed = self._hub.drain()
        if overflowed:
            # Nobody polled for long; the log has everything.
            self.log.reread()
            self.taking_over = False
        changed = self._catch_up(events) if self.taking_over else bool(events)
        self.only_steps = not ended and all(isinstance(event, StepCompleted) for event in events)
        for event in events:
            self.apply(event)
        if ended:
            self._end()
        return changed or read or ended

    def _send(self, command: Command) -> None:
        self.control.put(command)

    def _catch_up(self, events: list[Event]) -> bool:
        """Take in what the trainer before us wrote into the log, up to our own beginning."""
        begun = next((event for event in events if isinstance(event, RunStarted)), None)
        if begun is None:
            theirs = self.log.read_on() if self.log.due() else []
            for event in theirs:
                self.apply(event)
            return bool(theirs or events)
        for event in self.log.read_on():
            if event == begun:
                break
            self.apply(event)
        self.taking_over = False
        return True

    def _end(self) -> None:
        """The thread ended: this process does not train the run now; another one may."""
        self.active = self.stopping = self.handing_over = False
        if self.taking_over and self._failure is not None:
            self._say(self._failure)
        else:
            self.problem = self._failure

    def _train(self) -> None:
        options: dict[str, Any] = {"take_over": True} if self.taking_over else {}
        yield_to_other_threads()
        try:
            if self.reading:
                self.log.read_whole()  # before the trainer writes more into the log
            for event in self._run_training(self.folder, self.control, **options):
                self._hub.put(event)
        except (RequestError, RunFailedError) as error:
            self._failure = str(error)
        except BaseException as error:  # whatever it is, the screen must say it: the thread ends
            self._failure = f"{type(error).__name__}: {error}"
        finally:
            self._idle.set()

    def _hand_over(self, or_stop: bool) -> None:
        try:
            process = self._start_process(self.folder)
            while process.poll() is None:
                if self._idle.wait(0.05):
                    return
            if self._idle.is_set():
                return
            problem = last_words(self.folder) or "the new process ended at once"
        except RequestError as error:
            problem = str(error)
        self.handing_over = False
        if or_stop:
            self.control.put("stop")
        self._say(f"{self.name} goes on here: {problem}")
