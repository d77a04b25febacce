"""Commands to the trainer of a run from another process: one small file each, in the run's folder.

A file is written whole (temporary name, then renamed), and taken and deleted by the trainer between
two steps. Only the user who trains is obeyed: what another one put there is refused and reported.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import stat
import time
from pathlib import Path
from typing import Literal

import msgspec
from msgspec import Struct

from megatron_model.run.control import Command
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

COMMANDS = "commands"
POLL_SECONDS = 0.2
_LONGEST = 4096
_MANY = 100
"""Files looked at in one go; a flood of them must not hold up training."""

_numbers = itertools.count()


HAND_OVER: Literal["release"] = "release"
"""What a file says for ``hand_over``, as it did before that had this name."""


class _Order(Struct, frozen=True):
    command: Command | Literal["release"]
    time: float
    uid: int


class CommandFolder:
    """The commands of one run; making the object touches nothing."""

    def __init__(self, run: Path) -> None:
        self.path = run / COMMANDS
        self._refused: set[str] = set()
        """Names that could not be deleted, so that each is reported once."""

    def send(self, command: Command) -> None:
        """Ask the trainer of the run for something.

        Raises:
            RequestError: the folder cannot be written.
        """
        word: Command | Literal["release"] = HAND_OVER if command == "hand_over" else command
        order = msgspec.json.encode(_Order(word, time.time(), os.geteuid()))
        name = f"{time.time_ns():020d}-{os.getpid()}-{next(_numbers):06d}.json"
        temporary = f".{name}.tmp"
        try:
            self.path.mkdir(mode=0o700, exist_ok=True)
            folder = self._open()
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
                try:
                    os.write(descriptor, order)
                finally:
                    os.close(descriptor)
                os.rename(temporary, name, src_dir_fd=folder, dst_dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise RequestError(
                f"Cannot command the run: {safe(str(self.path))}: {error.strerror}."
            ) from None

    def take(self) -> tuple[list[Command], list[str]]:
        """Return the commands that arrived, oldest first, and a sentence for each one refused."""
        commands: list[Command] = []
        refusals: list[str] = []
        try:
            folder = self._open()
        except OSError:
            return commands, refusals
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
            for name in names[:_MANY]:
                if name in self._refused:
                    continue
                try:
                    word = _read(folder, name).command
                    commands.append("hand_over" if word == HAND_OVER else word)
                except (OSError, ValueError) as error:
                    reason = safe(str(error), one_line=True)
                    refusals.append(f"a command was refused: {reason} ({safe(name)[:60]})")
                if not _remove(folder, name):
                    self._refused.add(name)
        finally:
            os.close(folder)
        return commands, refusals

    def clear(self, *kept: Command) -> None:
        """Drop commands to a trainer that is gone, except those that are `kept`."""
        left = [command for command in self.take()[0] if command in kept]
        for command in left:
            with contextlib.suppress(RequestError):
                self.send(command)

    def _open(self) -> int:
        return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _read(folder: int, name: str) -> _Order:
    # Not blocking: it may be a pipe.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("it is not a file")
        if status.st_uid != os.geteuid():
            raise ValueError(f"it is from another user (number {status.st_uid})")
        order = msgspec.json.decode(os.read(descriptor, _LONGEST), type=_Order)
        if order.uid != os.geteuid():
            raise ValueError("it is from another user")
        return order
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ValueError("it is not a command") from None
    finally:
        os.close(descriptor)


def _remove(folder: int, name: str) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except OSError:
        return False
    return True
