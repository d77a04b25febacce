"""Read a TOML file that a person or another program wrote: its tables, or one sentence on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_model.errors import RequestError
from megatron_model.text import safe


def read_toml(path: Path) -> dict[str, Any]:
    """Return what the file says, as plain dictionaries and values.

    Raises:
        RequestError: it cannot be read, or is no TOML.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError

    name = safe(str(path), one_line=True)
    try:
        return dict(tomlkit.parse(path.read_text(encoding="utf-8")).unwrap())
    except OSError as error:
        raise RequestError(f"Cannot read {name}: {error.strerror}.") from None
    except (TOMLKitError, UnicodeDecodeError) as error:
        what = safe(str(error), one_line=True)
    except RecursionError:
        what = "too deep a nesting"
    raise RequestError(f"{name} is not valid TOML: {what}.") from None
