"""Files that are whole or absent: written to a temporary name, brought to disk, renamed."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Replace `path` with `data`; a crash leaves the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
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

    Every file in it is brought to disk before the rename. A folder that is already at `path` is
    replaced: the old one is moved aside first and deleted last; `clear_leftovers` brings it back
    when the process died in between.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True, mode=0o700)
    try:
        yield temporary
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
