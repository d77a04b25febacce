"""Hand a run over: start the successor, the process that takes it over. No torch.

The successor gets everything ready while this process still trains, then asks it through the run's
folder to hand over, and waits for the lock: training pauses for one save and one load.
"""

from __future__ import annotations

import os
import subprocess

from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.python_child import start_python
from megatron_model.util.text import safe

TRAINER_LOG = "trainer.log"


def start_successor(folder: RunFolder) -> subprocess.Popen[bytes]:
    """Start the process that takes the run over, in a session of its own: no terminal, no parent.

    Raises:
        RequestError: the process or its log cannot be made.
    """
    options = ["--take-over", "--resume", str(folder.path.resolve())]
    try:
        log = open_trainer_log(folder)
        try:
            return start_python(
                "megatron_model",
                "train",
                *options,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        finally:
            os.close(log)
    except OSError as error:
        raise RequestError(
            f"Cannot start a process for {safe(folder.name, one_line=True)}: "
            f"{error.strerror or error}."
        ) from None


def open_trainer_log(folder: RunFolder) -> int:
    """Return a descriptor to append to the run's trainer.log."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    flags |= os.O_NONBLOCK  # a pipe in its place must not block
    return os.open(folder.path / TRAINER_LOG, flags, 0o600)


def last_words(folder: RunFolder) -> str:
    """Return the last line of the run's trainer.log: why a successor ended, if it did."""
    try:
        # Not blocking, and bounded: a pipe or a device may be in its place.
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(folder.path / TRAINER_LOG, flags), "rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 4096))
            lines = (log.read(4096) or b"").decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return safe(lines[-1], one_line=True) if lines else ""
