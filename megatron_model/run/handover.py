"""Hand a run over: start the process that goes on with it once this one lets it go. No torch.

The successor gets everything ready while this process still trains, then asks it through the run's
folder to save and let go, and waits for the kernel's lock: the gap is a save and a load.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from megatron_model.errors import RequestError
from megatron_model.run_folder import RunFolder
from megatron_model.text import safe

TRAINER_LOG = "trainer.log"


def start_successor(folder: RunFolder) -> subprocess.Popen[bytes]:
    """Start the process that takes the run over, in a session of its own: no terminal, no parent.

    Raises:
        RequestError: the process or its log cannot be made.
    """
    command = [sys.executable, "-m", "megatron_model", "train", "--take-over", "--resume"]
    package_root = str(Path(__file__).parent.parent)
    # It works in /, from where a package that is not installed would not be found.
    paths = [package_root, os.environ.get("PYTHONPATH", "")]
    try:
        log = open_trainer_log(folder)
        try:
            return subprocess.Popen(
                [*command, str(folder.path.resolve())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
                start_new_session=True,
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
    return os.open(folder.path / TRAINER_LOG, flags, 0o600)


def last_words(folder: RunFolder) -> str:
    """Return the last line of the run's trainer.log: why a successor ended, if it did."""
    try:
        with (folder.path / TRAINER_LOG).open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 4096))
            lines = log.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return safe(lines[-1], one_line=True) if lines else ""
