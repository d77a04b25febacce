"""Who trains a run: a lock held by the kernel, and beside it what is known of the one who holds it.

Only the kernel's lock counts, where the file system has it. It falls with its process, whatever
became of that: a number that another process got since, or a machine that was restarted, cannot
make a dead trainer look alive. What is written in the file then only tells people where to look.

Some file systems have no such lock (Lustre mounted without ``flock``, some network mounts). There
what is written counts: whether the process it names lives. POSIX locks do not help: they are
missing in the same places, and fall as soon as their process closes any descriptor of the file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
from msgspec import Struct

from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

ELSEWHERE_SECONDS = 120.0
"""How long a trainer on another machine counts as alive after it was last heard of."""
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
        """Whether it is, or was, on another machine than this one.

        A container has a name of its own, but not a kernel: one that was restarted is no other
        machine, and the kernel's lock says whether the one before it is gone.
        """
        return self.host != socket.gethostname() and not (self.boot and self.boot == boot_id())

    @property
    def alive(self) -> bool:
        """Whether that very process lives here, and not only its number."""
        import psutil

        if self.host != socket.gethostname():
            return False
        try:
            return bool(psutil.Process(self.pid).create_time() <= self.since)
        except (psutil.Error, ValueError, OverflowError):
            return False


@contextlib.contextmanager
def hold(path: Path, seconds: float = 1.0) -> Iterator[bool]:
    """Try to take the lock for `seconds`; yields whether this process has it now."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    descriptor = os.open(path, flags, 0o600)
    try:
        deadline = time.monotonic() + seconds
        # Somebody who only asks whether it is held shares it for an instant.
        while (
            held := try_lock(descriptor, fcntl.LOCK_EX)
        ) is False and time.monotonic() < deadline:
            time.sleep(0.01)
        if held is None:
            held = not _is_alive(holder(path))
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
        free = try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    return _is_alive(holder(path)) if free is None else not free


def is_of_kernel(path: Path) -> bool:
    """Whether the file system has the kernel's lock, so that no two can train a run at once."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return try_lock(descriptor, fcntl.LOCK_SH) is not None
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
    if found is None or is_held(path):
        return
    # Without the kernel's lock nothing here knows of a process in another container.
    unknown = found.host != socket.gethostname() and not is_of_kernel(path)
    if not (found.elsewhere or unknown):
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
    return Holder(socket.gethostname(), boot_id(), os.getpid(), time.time())


def boot_id() -> str:
    """Return what names this start of this machine's kernel, empty where nothing does."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _is_alive(found: Holder | None) -> bool:
    return found is not None and found.alive


def _write(descriptor: int, content: Holder | None) -> None:
    # On a full disk the lock holds without this: it is the kernel's, not the file's.
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        if content is not None:
            os.pwrite(descriptor, msgspec.json.encode(content), 0)


def try_lock(descriptor: int, kind: int) -> bool | None:
    """Whether the lock was to be had; None where the file system has none."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    return True
