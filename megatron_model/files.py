"""Files that are whole or absent: written to a temporary name, brought to disk, renamed.

They are the user's own (0600, folders 0700), and a folder carries the checksums of its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

SUMS_FILE = "SHA256SUMS"
"""As ``sha256sum --check`` reads it."""


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600) -> None:
    """Replace `path` with `data`; a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    # A new file, never one that somebody put there, nor what a link points to.
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(temporary, flags, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that becomes `path` when the block ends well.

    Its files' checksums are added, and everything is brought to disk before the rename. A folder
    that is already at `path` is replaced: the old one is moved aside first and deleted last;
    `clear_leftovers` brings it back when the process died in between.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o700)
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


def is_unharmed(path: Path) -> bool:
    """Whether a file is what `whole_folder` wrote; true where no checksum says anything of it."""
    try:
        lines = (path.parent / SUMS_FILE).read_text(encoding="ascii").splitlines()
    except FileNotFoundError:
        return True  # from before there were checksums, or taken out of its folder
    except (OSError, ValueError):
        return False
    return f"{_checksum(path)}  {path.name}" in lines


def _write_sums(folder: Path) -> None:
    (folder / SUMS_FILE).unlink(missing_ok=True)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for path in files:
        path.chmod(0o600)
    sums = "".join(f"{_checksum(path)}  {path.name}\n" for path in files)
    (folder / SUMS_FILE).write_text(sums, encoding="ascii")
    (folder / SUMS_FILE).chmod(0o600)


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
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


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
