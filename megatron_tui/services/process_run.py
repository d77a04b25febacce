"""A run whose log is followed: processes of its own train it, or nobody does now.

It may have been started here, by another program, or long ago: while it is in training it is
commanded through its folder.
"""

from __future__ import annotations

import threading

from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import Command
from megatron_model.run.folder import RunFolder
from megatron_tui.services.launch import Launch
from megatron_tui.services.run_handle import RunHandle, Standing
from megatron_tui.services.run_log import RunLog


class ProcessRun(RunHandle):
    """A run that this process does not train.

    Args:
        log: its log.
        active: whether a living process trains it.
        launch: the start of its processes, until they train.
    """

    detached = True

    def __init__(self, log: RunLog, *, active: bool, launch: Launch | None = None) -> None:
        super().__init__(log, active=active or launch is not None)
        self.launch = launch

    @classmethod
    def opened(cls, folder: RunFolder) -> ProcessRun:
        """Read a run's log, a long one behind the screen; look whether somebody trains it."""
        active = folder.is_active()  # asked before the log is read: what it says last is then read
        run = cls(RunLog.opened(folder), active=active)
        run.active = active or folder.is_alive(run.state)
        if run.reading:
            threading.Thread(target=run.log.read_whole, daemon=True, name="log").start()
        return run

    @property
    def standing(self) -> Standing:
        """What is happening to the run, in one word."""
        if self.launch is not None and not self.stopping:
            return "starting"
        return super().standing

    @property
    def can_take_back(self) -> bool:
        """Whether a thread of this process could go on with it in place of another process."""
        # Several devices are trained by processes of their own, wherever they were started.
        return self.active and self.launch is None and self.device_count == 1

    def activity(self, now: float) -> str:
        """Return what the run is doing at the time `now`, in a few words."""
        if self.launch is None:
            return super().activity(now)
        return self.launch.phase(now) + ("; then it stops" if self.stopping else "")

    def poll(self) -> bool:
        """Take in what happened; return whether anything changed."""
        read = self.log.take_whole()
        if read:
            self.active = self.active or self.folder.is_alive(self.state)
        if self.reading or not self.active or not self.log.due():
            return read
        # Both asked before the log is read: what was said last is then read.
        ended = self.launch is not None and self.launch.ended
        held = self.folder.is_active()
        events = self.log.read_on()
        for event in events:
            self.apply(event)
        self._look_at_launch(ended)
        self.active = held or self.launch is not None or self.folder.is_alive(self.state)
        self.stopping = self.stopping and self.active
        return read or bool(events) or not self.active

    def _look_at_launch(self, ended: bool) -> None:
        """See whether the processes that come up train the run by now, or never will."""
        launch = self.launch
        begun = launch is not None and self.log.offset > launch.offset
        if launch is None or not (ended or begun):
            return
        if not begun:
            self.problem = launch.why()
            self.folder.discard_new()
        launch.close()
        self.launch = None

    def _send(self, command: Command) -> None:
        if self.launch is not None and command == "abort":
            command = "stop"  # there is nothing to lose yet
        CommandFolder(self.path).send(command)
