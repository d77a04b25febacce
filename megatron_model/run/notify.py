"""Start the user's own program when a run ends, whichever process trains it.

It is named by ``MEGATRON_NOTIFY``, or is the executable file ``on-run-end`` in the config
folder. It gets the run's name, how it ended and a sentence as arguments; nothing is awaited.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess

from megatron_model.events.describe import describe
from megatron_model.events.schema import Event, RunFailed, RunFinished
from megatron_model.util.text import safe
from megatron_model.util.user_folders import user_folder

VARIABLE = "MEGATRON_NOTIFY"
FILE = "on-run-end"

_logger = logging.getLogger(__name__)
_started: list[subprocess.Popen[bytes]] = []
"""Kept until they end, so that none is left a zombie."""


def hook() -> list[str]:
    """Return the command to start; empty if there is none."""
    named = os.environ.get(VARIABLE)
    if named is not None:
        try:
            return shlex.split(named)
        except ValueError:
            return []
    folder = user_folder("config")
    if folder is None:
        return []
    path = folder / FILE
    return [str(path)] if os.path.isfile(path) and os.access(path, os.X_OK) else []


def notify(name: str, event: Event) -> str:
    """Start the user's program if the run ended; returns why it could not start, or nothing."""
    if isinstance(event, RunFailed):
        outcome = "failed"
    elif isinstance(event, RunFinished):
        outcome = event.reason
    else:
        return ""
    words = describe(event)
    sentence = safe(words.text + words.at, one_line=True) if words else ""
    command = hook()
    if not command:
        return ""
    try:
        _started[:] = [child for child in _started if child.poll() is None]
        child = subprocess.Popen(
            [*command, safe(name, one_line=True), outcome, sentence],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _started.append(child)
    except OSError as error:
        problem = f"{safe(command[0], one_line=True)} could not be started: {error.strerror}."
        _logger.warning("the program for the end of a run did not start: %s", problem)
        return problem
    return ""
