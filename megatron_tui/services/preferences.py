"""What a person chose, remembered from one session to the next: theme, smoothing, last corpus.

A small JSON file in the user's state folder. It is never needed: a file that cannot be read or
written costs a notice, not the session.
"""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from megatron_model.util.fallback import do_without
from megatron_model.util.files import read_bounded
from megatron_model.util.text import safe
from megatron_model.util.user_folders import user_folder

Value: TypeAlias = "str | int | float | bool | list[str]"
V = TypeVar("V", bound="str | int | float | bool | list[str]")

FILE = "preferences.json"
_LARGEST_FILE = 1 << 20


class Preferences:
    """Values by dotted names such as ``training.smoothing``; without a path, of this session only.

    ``get(name, default)`` returns the remembered value if it has the type of the default, so a
    reader never meets another type; ``set(name, value)`` remembers it at once.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.problem = ""
        """Why nothing was remembered, in one sentence; shown once at the start."""
        self._values: dict[str, object] = {}
        if path is not None:
            self._values = self._read(path)

    @classmethod
    def of_user(cls) -> Preferences:
        """Return those of the person at the keyboard."""
        folder = user_folder("state")
        return cls(folder and folder / FILE)

    def get(self, name: str, default: V) -> V:
        """Return what was chosen, or `default` if nothing of its type was."""
        value: Any = self._values.get(name)
        if isinstance(default, float) and type(value) is int:
            value = float(value)  # JSON has no need to tell 1.0 from 1
        if type(value) is not type(default):
            return default
        if isinstance(value, list) and not all(isinstance(item, str) for item in value):
            return default
        return value

    def set(self, name: str, value: Value) -> None:
        """Remember a choice; that a disk refuses is said once."""
        if self._values.get(name) == value and name in self._values:
            return
        self._values[name] = value
        if self._path is not None:
            try:
                self._write(self._path, name, value)
            except OSError as error:
                do_without(
                    f"Cannot write {safe(str(self._path))}: {error.strerror}; what is chosen is "
                    "remembered for this session only."
                )

    def _read(self, path: Path) -> dict[str, object]:
        try:
            data = json.loads(read_bounded(path, _LARGEST_FILE))
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.problem = f"Cannot read {path}: {error.strerror}; what was chosen is forgotten."
            return {}
        except (ValueError, RecursionError):
            data = None
        if not isinstance(data, dict):
            self.problem = f"{path} is damaged; what was chosen before is forgotten."
            return {}
        return data

    def _write(self, path: Path, name: str, value: Value) -> None:
        # Another workbench may have written meanwhile: only the one value is ours to change.
        before = Preferences(path)._values
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(json.dumps({**before, name: value}, indent=1), encoding="utf-8")
            os.replace(temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise
