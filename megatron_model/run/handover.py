"""Hand a run over: start the successor, the process that takes it over. No torch.

The successor gets everything ready while this process still trains, then asks it through the run's
folder to hand over, and waits for the lock: training pauses for one save and one load.
"""

from __future__ import annotations

import subprocess

from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import last_line
from megatron_model.util.python_child import open_log, start_with_log
from megatron_model.util.text import safe

TRAINER_LOG = "trainer.log"


def start_successor(folder: RunFolder) -> subprocess.Popen[bytes]:
    """Start the process that takes the run over, in a session of its own: no terminal, no parent.

    Raises:
        RequestError: the process or its log cannot be made.
    """
    options = ["--take-over", "--resume", str(folder.path.resolve())]
    try:
        return start_with_log(folder.path / TRAINER_LOG, "megatron_model", "train", *options)
    except OSError as error:
        raise RequestError(
            f"Cannot start a process for {safe(folder.name, one_line=True)}: "
            f"{error.strerror or error}."
        ) from None


def open_trainer_log(folder: RunFolder) -> int:
    """Return a descriptor to append to the run's trainer.log."""
    return open_log(folder.path / TRAINER_LOG)


def last_words(folder: RunFolder) -> str:
    """Return the last line of the run's trainer.log: why a successor ended, if it did."""
    return safe(last_line(folder.path / TRAINER_LOG).decode(errors="replace"), one_line=True)
