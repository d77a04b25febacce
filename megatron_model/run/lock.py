"""Who trains a run: a lock held by the kernel, and beside it what is known of the one who holds it.

Only the kernel's lock counts. It falls with its process, whatever became of that: a number that
another process got since, or a machine that was started anew, cannot make a dead trainer look
alive. What is written in the file only tells people where to look.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from megatron_model.errors import RequestError
from megatron_model.text import safe

ELSEWHERE_SECONDS = 120.0
"""How long a trainer on another machine counts as alive after its last word."""
_LONGEST = 4096
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Holder(Struct, frozen=True):
    """The process that took the lock last and did not give it back in order."""

    host: str
    boot: str
    pid: int
    since: float

    @property
    def elsewhere(self) -> bool:
        """Whether it is, or was, on another machine than this one."""
        return self.host != socket.gethostname()


@contextlib.contextmanager
def hold(path: Path, seconds: float = 1.0) -> Iterator[bool]:
    """Try to take the lock for `seconds`; yields whether this process has it now."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        deadline = time.monotonic() + seconds
        # Somebody who only asks whether it is held shares it for an instant.
        while not (held := _try(descriptor, fcntl.LOCK_EX)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if held:
            _write(descriptor, _me())
        try:
            yield held
        finally:
            if held:
                _write(descriptor, None)
    finally:
        os.close(descriptor)


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        # Shared, so that two who ask at once do not take each other for the trainer.
        return not _try(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def holder(path: Path) -> Holder | None:
    """Return what the file says; None after an orderly end, or when it says nothing of use."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return msgspec.json.decode(os.read(descriptor, _LONGEST), type=Holder)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    finally:
        os.close(descriptor)


def check_elsewhere(path: Path, log: Path, name: str) -> None:
    """Refuse a run whose trainer on another machine was heard of a moment ago.

    Not every shared file system carries the kernel's locks from one machine to the other.

    Raises:
        RequestError: the lock file names another machine, and the run's log was just written.
    """
    found = holder(path)
    if found is None or not found.elsewhere or is_held(path):
        return
    with contextlib.suppress(OSError):
        age = time.time() - log.stat().st_mtime
        if abs(age) < ELSEWHERE_SECONDS:
            raise RequestError(
                f'The run "{name}" was trained {age:.0f} s ago on '
                f"{safe(found.host, one_line=True)} (process {found.pid}), and did not end there "
                f"in order; stop it there, or try again in {ELSEWHERE_SECONDS:.0f} s."
            )


def _me() -> Holder:
    boot = ""
    with contextlib.suppress(OSError):
        boot = _BOOT_ID.read_text().strip()
    return Holder(socket.gethostname(), boot, os.getpid(), time.time())


def _write(descriptor: int, content: Holder | None) -> None:
    # On a full disk the lock must do without: it is the kernel's, not the file's.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        if content is not None:
            os.pwrite(descriptor, msgspec.json.encode(content), 0)


def _try(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
