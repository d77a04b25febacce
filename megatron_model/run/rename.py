"""Give a run another name or place: its folder, which no process may be training in. No torch."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError

from megatron_model.events.log import last_event
from megatron_model.events.schema import RunHandedOver
from megatron_model.run.folder import HAND_OVER_SECONDS, RUN_FILE, RunFolder, check_run_name
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded, write_atomically
from megatron_model.util.text import safe


def rename_run(folder: RunFolder, name: str) -> RunFolder:
    """Return the run under its new name, in the same place.

    Forks of it keep the old name in what they say of their parent.

    Raises:
        RequestError: the name is unusable or taken, the run is in training, or it cannot be moved.
    """
    check_run_name(name)
    return move_run(folder, Path(os.path.abspath(folder.path)).with_name(name))


def move_run(folder: RunFolder, target: Path) -> RunFolder:
    """Return the run at another place, in a folder that is there and on the same disk.

    Raises:
        RequestError: the place is taken, the run is in training, or it cannot be moved.
    """
    check_idle(folder)
    path, name = Path(os.path.abspath(folder.path)), target.name
    if path.is_symlink():
        raise RequestError(f'"{safe(folder.name)}" is a link; move what it points to by hand.')
    if os.path.lexists(target):
        raise RequestError(
            f'"{safe(name)}" exists in {safe(str(target.parent))}; choose another name.'
        )
    with folder.lock():  # so that nobody begins to train it meanwhile
        try:
            os.rename(path, target)
        except OSError as error:
            raise RequestError(f"Cannot move {safe(str(path))}: {error.strerror}.") from None
        # What the file says of the name is for people: the folder's is what counts.
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, TOMLKitError):
            document = tomlkit.parse(read_bounded(target / RUN_FILE).decode("utf-8"))
            document["run"]["name"] = name
            corpus = Path(str(document.get("data", {}).get("corpus", "")))
            if corpus.is_relative_to(path):  # a text that the run was given as such
                document["data"]["corpus"] = str(target / corpus.relative_to(path))
            write_atomically(target / RUN_FILE, tomlkit.dumps(document).encode())
    return RunFolder(target)


def check_idle(folder: RunFolder) -> None:
    """Do nothing where no process trains a run, or is about to.

    Raises:
        RequestError: one does.
    """
    last = last_event(folder.events_path)
    between = isinstance(last, RunHandedOver) and abs(time.time() - last.time) < HAND_OVER_SECONDS
    if between or folder.is_active():
        raise RequestError(f'The run "{safe(folder.name)}" is in training; stop it first.')
