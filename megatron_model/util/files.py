"""Files that are whole or absent: written to a temporary name, brought to disk, renamed.

They are the user's own (0600, folders 0700), and a folder carries the checksums of its files. A
file system that knows no fsync of a folder, or no modes, has files all the same: those two are
luxuries.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from megatron_model.util.errors import RequestError
from megatron_model.util.fallback import UNSUPPORTED, do_without
from megatron_model.util.text import cut_to_bytes, safe

_LAST_BYTES = 4096
"""Of a log, among which its last line is looked for."""
SUMS_FILE = "SHA256SUMS"
"""As ``sha256sum --check`` reads it."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `data`; a crash leaves the old content or the new, never a part."""
    ending = f".{os.getpid()}.tmp"
    # Shortened: the name itself may be as long as names can be.
    temporary = path.with_name(f".{cut_to_bytes(path.name, 240 - len(ending))}{ending}")
    temporary.unlink(missing_ok=True)
    # A new file, never one that is already there, nor what a link points to.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            sync_file(file.fileno(), path)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_asked_for(path: Path, data: bytes) -> None:
    """Write a file that a person asked for by its name, with the mode that new files have here.

    Raises:
        RequestError: it cannot be written.
    """
    try:
        write_atomically(path, data, mode=0o666)
    except OSError as error:
        where = safe(str(path), one_line=True)
        raise RequestError(f"Cannot write {where}: {error.strerror or error}.") from None


def last_line(path: Path) -> bytes:
    """Return the last line of a log that is not empty; nothing where it cannot be read."""
    try:
        # Not blocking, and bounded: a pipe or a device may be in its place.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(path, flags), "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_BYTES))
            lines = [line for line in (log.read(_LAST_BYTES) or b"").splitlines() if line.strip()]
    except OSError:
        return b""
    return lines[-1].strip() if lines else b""


def free_bytes(path: Path) -> int | None:
    """Return what is free on the disk of a file or folder, which need not be there yet."""
    path = path.absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` when the block ends well.

    The folder it is in is made, the one above that is not: a run that was deleted stays deleted.

    Its files' checksums are added, and everything is brought to disk before the rename. A folder
    that is already at `path` is replaced: the old one is moved aside first and deleted last;
    `clear_leftovers` brings it back when the process died in between.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    path.parent.mkdir(exist_ok=True, mode=0o700)
    temporary.mkdir(mode=0o700)
    try:
        yield temporary
        _write_sums(temporary)
        for file in temporary.iterdir():
            _sync(file)
        sync_folder(temporary)
        if path.exists():
            aside = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.rename(path, aside)
            try:
                os.rename(temporary, path)
            except BaseException:
                os.rename(aside, path)
                raise
            shutil.rmtree(aside, ignore_errors=True)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def read_bounded(path: Path, limit: int = 1 << 20, *, links: bool = True) -> bytes:
    """Return what a small file says; a pipe is read too, but nothing that has no end.

    Args:
        path: of a regular file, a pipe, or a link to one.
        limit: bytes; a longer file is refused.
        links: whether a link is followed.

    Raises:
        OSError: it cannot be read, is another kind of file, or is longer; the reason in words.
    """
    # Not blocking: opening a pipe without a writer would wait.
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if links else os.O_NOFOLLOW)
    descriptor = os.open(path, flags)
    try:
        kind = os.fstat(descriptor).st_mode
        if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind)):
            problem = "it is a folder" if stat.S_ISDIR(kind) else "it is not a file, but a device"
            raise OSError(errno.EINVAL, problem, str(path))
        os.set_blocking(descriptor, True)  # who writes into a pipe may need a moment
        with open(descriptor, "rb", closefd=False) as file:
            data = file.read(limit + 1)
    finally:
        os.close(descriptor)
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"it is longer than {limit:,} bytes", str(path))
    return data


_harmed: dict[Path, tuple[int, ...]] = {}
"""The damaged files that were found, and what they looked like from outside."""


def is_unharmed(path: Path) -> bool:
    """Whether nothing shows that a file is other than what `whole_folder` wrote."""
    return not why_harmed(path)


def why_harmed(path: Path) -> str:
    """Return what shows that a file is not what `whole_folder` wrote; empty where nothing does.

    Without a checksum it may still be too short for what it says is in it.
    """
    looks = _looks(path)
    reason = _other_than_sum(path)
    if reason:
        _harmed[path] = looks
    else:
        _harmed.pop(path, None)
    return reason


def seen_harmed(path: Path) -> bool:
    """Whether `is_unharmed` found this file damaged before, and it is still the same one.

    Unlike that it costs next to nothing.
    """
    return path in _harmed and _harmed[path] == _looks(path)


def _looks(path: Path) -> tuple[int, ...]:
    try:
        about = path.stat()
    except OSError:
        return ()
    return about.st_ino, about.st_size, about.st_mtime_ns


def _other_than_sum(path: Path) -> str:
    try:
        lines = read_bounded(path.parent / SUMS_FILE).decode("ascii").splitlines()
    except FileNotFoundError:  # from before there were checksums, or taken out of its folder
        return _other_than_header(path)
    except (OSError, ValueError):
        lines = []
    return "" if f"{_checksum(path)}  {path.name}" in lines else "its checksum differs"


def _other_than_header(path: Path) -> str:
    if path.suffix != ".safetensors" or not path.is_file():
        return ""
    from safetensors import SafetensorError, safe_open  # not where only small files are written

    try:
        with safe_open(path, framework="numpy"):
            return ""
    except (OSError, SafetensorError) as error:
        return f"its header does not fit it: {error}"


def _write_sums(folder: Path) -> None:
    (folder / SUMS_FILE).unlink(missing_ok=True)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        _make_private(path)
    sums = "".join(f"{_checksum(path)}  {path.name}\n" for path in files)
    (folder / SUMS_FILE).write_text(sums, encoding="ascii")
    _make_private(folder / SUMS_FILE)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    if not path.is_file():  # a device has no end, a pipe may have no writer
        return ""
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.hexdigest()


def clear_leftovers(folder: Path) -> None:
    """Undo half a replacement, and remove what else `whole_folder` left when it was killed."""
    for aside in folder.glob(".*.old"):
        path = folder / aside.name[1:].rsplit(".", 2)[0]
        if not path.exists():
            os.rename(aside, path)
    for leftover in folder.glob(".*"):
        shutil.rmtree(leftover, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Bring a folder's entries to disk, so that a rename survives a power cut."""
    _sync(path)


def sync_file(descriptor: int, path: Path) -> None:
    """Bring an open file, which lies at `path`, to disk, where the file system can do that.

    Raises:
        OSError: it can, and failed: what was written may be lost.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise OSError(error.errno, error.strerror, str(path)) from None
        _without_sync(path, error)


def _sync(path: Path) -> None:
    try:
        # A folder that may be written to but not listed cannot be opened; nor can one on CIFS.
        descriptor = os.open(path, os.O_RDONLY)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        _without_sync(path, error)
        return
    try:
        sync_file(descriptor, path)
    finally:
        os.close(descriptor)


def _without_sync(path: Path, error: OSError) -> None:
    what = "folders" if path.is_dir() else "files"
    do_without(
        f"The file system of the run cannot bring {what} to disk at once ({error.strerror}); "
        "a power cut may cost the newest checkpoint."
    )


def _make_private(path: Path) -> None:
    try:
        path.chmod(0o600)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise
        do_without(
            f"The file system of the run does not let files be made private ({error.strerror}); "
            "who may read the checkpoints is decided by how it is mounted."
        )


def bytes_in(folder: Path) -> int:
    """Return how many bytes the files in a folder have; links are not followed.

    What cannot be read, or goes meanwhile, does not count.
    """
    total, waiting = 0, [str(folder)]
    while waiting:
        with contextlib.suppress(OSError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        total += entry.stat(follow_symlinks=False).st_size
    return total
