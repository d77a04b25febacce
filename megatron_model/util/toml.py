"""Read a TOML file that a person or another program wrote: its tables, or one sentence on it."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded
from megatron_model.util.text import safe

_STRINGS = re.compile(
    r'"""(?:\\.|[^\\])*?"""' + r"|'''.*?'''" + r'|"(?:\\.|[^"\\\n])*"' + r"|'[^'\n]*'|#[^\n]*",
    re.DOTALL,
)
"""What stands in quotes, and comments: a dot there is part of no key."""
_ENDS_OF_KEYS = re.compile(r"[=,\[\]{}\n]")
_DEEPEST = 16


def read_toml(path: Path) -> dict[str, Any]:
    """Return what the file says, as plain dictionaries and values.

    Raises:
        RequestError: it cannot be read, or is not TOML.
    """
    name = safe(str(path), one_line=True)
    try:
        text = read_bounded(path).decode("utf-8")
        _check_depth(text)
        return _parse(text)
    except OSError as error:
        raise RequestError(f"Cannot read {name}: {error.strerror}.") from None
    except ValueError as error:  # also of a text that is not UTF-8
        what = safe(str(error), one_line=True)
    except RecursionError:
        what = "too deep a nesting"
    raise RequestError(f"{name} is not valid TOML: {what}.") from None


def _check_depth(text: str) -> None:
    """Refuse keys of so many parts that they would take the memory of the machine."""
    for key in _ENDS_OF_KEYS.split(_STRINGS.sub("x", text)):
        if key.count(".") > _DEEPEST:
            raise ValueError(f"a key of {key.count('.') + 1:,} parts; it has at most {_DEEPEST}")


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
