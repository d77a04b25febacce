"""Read a TOML file that a person or another program wrote: its tables, or one sentence on it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from megatron_model.errors import RequestError
from megatron_model.text import safe


def read_toml(path: Path) -> dict[str, Any]:
    """Return what the file says, as plain dictionaries and values.

    Raises:
        RequestError: it cannot be read, or is no TOML.
    """
    name = safe(str(path), one_line=True)
    try:
        return _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(f"Cannot read {name}: {error.strerror}.") from None
    except ValueError as error:  # also of a text that is not UTF-8
        what = safe(str(error), one_line=True)
    except RecursionError:
        what = "too deep a nesting"
    raise RequestError(f"{name} is not valid TOML: {what}.") from None


def _parse(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        # Ten times quicker than tomlkit: a list of runs reads as many of these files.
        import tomllib

        return tomllib.loads(text)
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    try:
        return dict(tomlkit.parse(text).unwrap())
    except TOMLKitError as error:
        raise ValueError(str(error)) from None
