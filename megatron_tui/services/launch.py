"""The start of a run in processes of its own, from the command to the first event in its log.

The process that is started stands for all of them (see megatron_model/distributed/launcher.py).
When it ends before they train, its last words are the reason; they are read from the run's
trainer.log, which is held open: a run that was refused takes its folder, and the log in it, away.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol, TypeAlias

from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import RunFolder
from megatron_model.run.handover import TRAINER_LOG, open_trainer_log
from megatron_model.util.errors import SAYS, RequestError
from megatron_model.util.text import safe


class Process(Protocol):
    """What is asked of a process that was started: whether it has ended."""

    def poll(self) -> int | None:
        """Return the exit status, once it has ended."""


StartProcess: TypeAlias = Callable[[RunFolder], Process]
"""Starts a process that goes on with a run; see megatron_model/run/handover.py."""

_LONGEST = 1 << 20


class Launch:
    """Processes that come up to train a run.

    Args:
        folder: the run.
        devices: how many of them train together.
        start: starts the process that stands for them.
        now: the time.

    Raises:
        RequestError: it cannot be started.
    """

    def __init__(
        self, folder: RunFolder, devices: int, start: StartProcess, now: float = 0.0
    ) -> None:
        self.devices = devices
        self.began = now
        self.offset = 0
        """How many bytes the run's log had before; what follows was written by these processes."""
        self._folder = folder
        # What was meant for a trainer that is gone is not for these.
        CommandFolder(folder.path).clear()
        try:
            os.close(open_trainer_log(folder))
            self._log = (folder.path / TRAINER_LOG).open("rb")
        except OSError as error:
            raise RequestError(
                f"Cannot write {safe(str(error.filename))}: {error.strerror}."
            ) from None
        self._log.seek(0, os.SEEK_END)
        try:
            self.process = start(folder)
        except RequestError:
            self._log.close()
            raise

    @property
    def ended(self) -> bool:
        """Whether the process that stands for all of them is gone."""
        return self.process.poll() is not None

    @property
    def holds(self) -> bool:
        """Whether one of them has the run: they are up, and get ready."""
        return self._folder.is_active()

    def phase(self, now: float) -> str:
        """Return what is happening, in words."""
        doing = "preparing in" if self.holds else "starting"
        seconds = max(0.0, now - self.began)
        return f"{doing} {self.devices} processes, {seconds:.0f}s"

    def why(self) -> str:
        """Return why they never trained: the refusal, or the last line they wrote."""
        output = self._log.read(_LONGEST).decode(errors="replace")
        lines = [line for line in output.splitlines() if line.strip()]
        refusals = [line.removeprefix(SAYS) for line in lines if line.startswith(SAYS)]
        words = safe((refusals or lines or [""])[-1], one_line=True)
        return words or f"The {self.devices} processes ended at once, without a word."

    def close(self) -> None:
        """Look no further."""
        self._log.close()
