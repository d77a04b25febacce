"""Start the keeper of a queue where none is at work. No torch."""

from __future__ import annotations

import os
import subprocess

from megatron_model.queue.folder import Queue
from megatron_model.util.errors import RequestError
from megatron_model.util.python_child import start_python


def start_keeper(queue: Queue) -> subprocess.Popen[bytes] | None:
    """Start a keeper in a session of its own, which outlives this process; None if there is one.

    Of two that are started at once the second ends by itself.

    Raises:
        RequestError: it cannot be started.
    """
    if queue.kept:
        return None
    # Its own words only: a line a run.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    try:
        log = os.open(queue.path / "keeper.log", flags, 0o600)
        try:
            return start_python(
                "megatron_model",
                "queue",
                f"--runs-dir={queue.runs_dir}",
                "keep",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        finally:
            os.close(log)
    except OSError as error:
        raise RequestError(
            f"Cannot start the keeper of the queue: {error.strerror or error}."
        ) from None
