"""Start the keeper of a queue where none is at work. No torch."""

from __future__ import annotations

import subprocess

from megatron_model.queue.folder import Queue
from megatron_model.util.errors import RequestError
from megatron_model.util.python_child import start_with_log


def start_keeper(queue: Queue) -> subprocess.Popen[bytes] | None:
    """Start a keeper in a session of its own, which outlives this process; None if there is one.

    Of two that are started at once the second ends by itself.

    Raises:
        RequestError: it cannot be started.
    """
    if queue.kept:
        return None
    try:
        # Its own words only: a line a run.
        return start_with_log(
            queue.path / "keeper.log",
            "megatron_model",
            "queue",
            f"--runs-dir={queue.runs_dir}",
            "keep",
        )
    except OSError as error:
        raise RequestError(
            f"Cannot start the keeper of the queue: {error.strerror or error}."
        ) from None
