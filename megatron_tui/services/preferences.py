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
        import platformdirs

        return cls(platformdirs.user_state_path("megatron") / FILE)

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
        """Remember a choice; a disk that refuses is no reason to bother anybody."""
        if self._values.get(name) == value and name in self._values:
            return
        self._values[name] = value
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._write(self._path, name, value)

    def _read(self, path: Path) -> dict[str, object]:
        try:
            with path.open("rb") as file:
                data = json.loads(file.read(_LARGEST_FILE))
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
        temporary.write_text(json.dumps({**before, name: value}, indent=1), encoding="utf-8")
        os.replace(temporary, path)
