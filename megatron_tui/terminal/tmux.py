"""Put copied text into the paste buffer of tmux as well, where the workbench runs in tmux."""

from __future__ import annotations

import os
import subprocess

SECONDS = 2.0
MOST_BYTES = 1 << 20


def copy_to_tmux(text: str) -> bool:
    """Load a text into tmux's buffer; whether it is there now.

    The terminal may refuse what programs copy; tmux's own buffer is pasted with its own key.
    """
    data = text.encode("utf-8", "replace")
    if not os.environ.get("TMUX") or len(data) > MOST_BYTES:
        return False
    try:
        done = subprocess.run(
            ["tmux", "load-buffer", "-"], input=data, capture_output=True, timeout=SECONDS
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
