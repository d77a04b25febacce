"""Where the processes of one run on one machine leave each other short notes: a private folder.

Nothing listens on a port, so that only their user can write or read it.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from pathlib import Path


class Board:
    """Notes by name, each a file; used as torch's stores are.

    Args:
        folder: of this user alone, the same for every process.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def set(self, key: str, value: str) -> None:
        """Write a note, in place of an older one of that name."""
        temporary = self._write(key, value)
        os.replace(temporary, self._path(key))

    def compare_set(self, key: str, expected: str, value: str) -> None:
        """Write a note unless there is one already; `expected` is empty, as that is all we need."""
        assert not expected
        temporary = self._write(key, value)
        with contextlib.suppress(FileExistsError):
            os.link(temporary, self._path(key))
        temporary.unlink()

    def check(self, keys: Sequence[str]) -> bool:
        """Whether there are notes of all these names."""
        return all(self._path(key).exists() for key in keys)

    def get(self, key: str) -> bytes:
        """Return a note; an empty one where there is none."""
        try:
            return self._path(key).read_bytes()
        except FileNotFoundError:
            return b""

    def multi_get(self, keys: Sequence[str]) -> list[bytes]:
        """Return several notes."""
        return [self.get(key) for key in keys]

    def _path(self, key: str) -> Path:
        return self._folder / key.replace("/", "-")

    def _write(self, key: str, value: str) -> Path:
        name = f".{key.replace('/', '-')}.{os.getpid()}.{threading.get_native_id()}"
        temporary = self._folder / name
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(value)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return temporary
