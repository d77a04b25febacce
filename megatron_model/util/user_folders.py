"""Where this user's runs, caches, logs and settings belong on this system, if they have a home.

A service, a container or a batch job may run as a user without one: no ``HOME`` and no entry in the
password file. Then there is no such folder, and the caller does without or says what to
set; a folder is never made up.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

_NAME = "megatron"


def user_folder(kind: Literal["data", "cache", "state", "config"]) -> Path | None:
    """Return this user's folder of a kind; None for a user without a home."""
    import platformdirs

    find = {
        "data": platformdirs.user_data_path,
        "cache": platformdirs.user_cache_path,
        "state": platformdirs.user_state_path,
        "config": platformdirs.user_config_path,
    }[kind]
    try:
        path = find(_NAME)
    except (RuntimeError, OSError):
        return None
    # An older platformdirs leaves the "~" that it cannot resolve.
    return path if path.is_absolute() else None


def home() -> Path | None:
    """Return this user's home; None for a user without one."""
    found = Path(os.path.expanduser("~"))
    return found if found.is_absolute() else None


def expanded(typed: str) -> Path:
    """Return a path that a person typed; a ``~`` that leads nowhere stays as it is."""
    return Path(os.path.expanduser(typed))
