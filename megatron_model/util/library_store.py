"""The libraries that this program compiles for itself: where they are kept, and which are loaded.

Loading a library executes it. So only a file is loaded that is, byte for byte, what was compiled
(one that was cut short would end the process by SIGBUS), from a folder that no other user can write
to. No torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import stat
import tempfile
from pathlib import Path
from typing import NamedTuple

from megatron_model.util.files import write_atomically
from megatron_model.util.text import safe
from megatron_model.util.user_folders import user_folder


class Place(NamedTuple):
    """Where new libraries are put."""

    folder: Path | None
    """None where there is no folder for them."""
    notice: str
    """What has to be said of it: nothing, if it is the user's cache."""


def library_name(kind: str, *parts: str) -> str:
    """Return a name that changes with these parts, the processor and the C library.

    A home folder may be shared by machines that differ.
    """
    text = "\n".join([*parts, *_machine()])
    return f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"


def find_library(name: str) -> Path | None:
    """Return where the library of this name is, whole; None where it has to be built first."""
    for folder in _folders():
        if not _distrust(folder) and is_whole(folder / name):
            return folder / name
    return None


def place() -> Place:
    """Return where to build: in the user's cache, or where that cannot be, in a private folder."""
    first, *others = _folders()
    problem = _unusable(first)
    if not problem:
        return Place(first, "")
    said = f"compiled code cannot be kept in {safe(str(first), one_line=True)}: {problem}"
    for folder in others:
        if not _unusable(folder):
            return Place(folder, f"{said}; it is kept in {safe(str(folder), one_line=True)}")
    return Place(None, said)


def is_whole(path: Path) -> bool:
    """Whether a library is what `install` put there, not another file."""
    try:
        about = path.lstat()
        digest, size = _sum_file(path).read_bytes()[:200].decode("ascii").split()
        if not stat.S_ISREG(about.st_mode) or about.st_size != int(size) or _others(about):
            return False
        return hashlib.sha256(path.read_bytes()).hexdigest() == digest
    except (OSError, ValueError):
        return False


def install(temporary: Path, path: Path) -> None:
    """Move a library that was just built to `path`, whole and on disk, with its checksum.

    Raises:
        OSError: it cannot be written.
    """
    with contextlib.suppress(OSError):  # some file systems know no modes
        temporary.chmod(0o700)
    with temporary.open("rb") as file:
        content = file.read()
        try:
            os.fsync(file.fileno())
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS):
                raise
    os.replace(temporary, path)
    line = f"{hashlib.sha256(content).hexdigest()} {len(content)}\n"
    write_atomically(_sum_file(path), line.encode())


def discard(path: Path) -> None:
    """Remove a library that cannot be used, so that it is built again when it is next needed."""
    for file in (_sum_file(path), path):
        with contextlib.suppress(OSError):
            file.unlink()


def open_library(path: Path) -> ctypes.CDLL:
    """Load a library; it releases Python's lock in every call.

    Raises:
        OSError: it is not what was built, or the system refuses to load it.
    """
    if reason := _distrust(path.parent):
        raise OSError(f"{safe(str(path.parent), one_line=True)}: {reason}")
    if not is_whole(path):
        raise OSError(f"{safe(path.name, one_line=True)} is damaged")
    return ctypes.CDLL(str(path))


def _folders() -> list[Path]:
    private = Path(tempfile.gettempdir()) / f"megatron-{os.geteuid()}"
    cache = user_folder("cache")
    # Without a home the name is one that `_unusable` refuses, and says why.
    return [cache / "compiled" if cache else Path("~/.cache"), private]


def _sum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _unusable(folder: Path) -> str:
    """Return why nothing can be built in a folder, which is made if need be; or nothing."""
    if not folder.is_absolute():
        return "there is no home folder"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        return error.strerror or str(error)
    if reason := _distrust(folder):
        return reason
    return "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written"


def _distrust(folder: Path) -> str:
    """Return why nothing can be loaded from a folder, or nothing."""
    try:
        about = folder.lstat()
        flags = os.statvfs(folder).f_flag
    except OSError as error:
        return error.strerror or str(error)
    if not stat.S_ISDIR(about.st_mode):
        return "it is not a folder"
    if reason := _others(about):
        return reason
    return (
        "no code can be loaded from there (noexec)" if flags & getattr(os, "ST_NOEXEC", 0) else ""
    )


def _others(about: os.stat_result) -> str:
    """Return in what way a file or folder is not this user's alone, or nothing."""
    if about.st_uid != os.geteuid():
        return "it belongs to another user"
    return "others may write to it" if about.st_mode & 0o022 else ""


@functools.cache
def _machine() -> tuple[str, ...]:
    """Return what machine code is good for: the processor, and the C library it is linked with."""
    found = [platform.system(), platform.machine(), platform.processor()]
    with contextlib.suppress(OSError):
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        lines = cpuinfo.splitlines()
        found += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.confstr("CS_GNU_LIBC_VERSION") or "")
    return tuple(found)
