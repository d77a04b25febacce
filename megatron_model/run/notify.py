"""Tell a person that a run ended: a program of theirs is started, whoever trains and wherever.

The program is named by ``MEGATRON_NOTIFY``, or is the executable file ``on-run-end`` in the config
folder. It gets the run's name, how it ended and a sentence as arguments; nothing is awaited.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
from pathlib import Path

from megatron_model.events import Event, RunFailed, RunFinished
from megatron_model.text import safe

VARIABLE = "MEGATRON_NOTIFY"
FILE = "on-run-end"

_logger = logging.getLogger(__name__)
_started: list[subprocess.Popen[bytes]] = []
"""Kept until they ended, so that each is buried."""


def hook() -> list[str]:
    """Return the command to start; empty if there is none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        try:
            return shlex.split(named)
        except ValueError:
            return []
    import platformdirs

    path = Path(platformdirs.user_config_path("megatron")) / FILE
    return [str(path)] if os.path.isfile(path) and os.access(path, os.X_OK) else []


def notify(name: str, event: Event) -> str:
    """Start the person's program if the run ended; returns why it could not start, or nothing."""
    if isinstance(event, RunFailed):
        words = ("failed", safe(event.error, one_line=True))
    elif isinstance(event, RunFinished):
        words = (event.reason, f"{event.reason} at step {event.step:,}")
    else:
        return ""
    command = hook()
    if not command:
        return ""
    try:
        _started[:] = [child for child in _started if child.poll() is None]
        child = subprocess.Popen(
            [*command, safe(name, one_line=True), *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _started.append(child)
    except OSError as error:
        problem = f"{safe(command[0], one_line=True)} could not be started: {error.strerror}."
        _logger.warning("nobody was told that the run ended: %s", problem)
        return problem
    return ""
