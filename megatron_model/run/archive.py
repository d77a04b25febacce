"""Put runs aside in place of deleting them, and bring them back. No torch.

They lie in a folder beside the runs, whose name begins with a dot and that has no run.toml: every
list of runs, earlier versions' too, passes it over.
"""

from __future__ import annotations

from pathlib import Path

from megatron_model.run.folder import RunFolder, free_name
from megatron_model.run.rename import check_idle, move_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

ARCHIVE = ".archive"


def archive_of(runs_dir: Path) -> Path:
    """Return where the runs of a folder are put aside."""
    return runs_dir / ARCHIVE


def is_archived(folder: RunFolder) -> bool:
    """Whether a run was put aside."""
    return folder.path.absolute().parent.name == ARCHIVE


def runs_dir_of(folder: RunFolder) -> Path:
    """Return the folder of runs that a run belongs to, put aside or not."""
    parent = folder.path.absolute().parent
    return parent.parent if is_archived(folder) else parent


def archive_run(folder: RunFolder) -> RunFolder:
    """Put a run aside; one of a name that was put aside before gets a number.

    Raises:
        RequestError: it is in training, or cannot be moved.
    """
    if is_archived(folder):
        raise RequestError(f'The run "{safe(folder.name)}" is put aside already.')
    check_idle(folder)  # before a folder is made for it
    archive = archive_of(folder.path.absolute().parent)
    try:
        archive.mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise RequestError(f"Cannot make {safe(str(archive))}: {error.strerror}.") from None
    return move_run(folder, archive / free_name(archive, folder.name))


def bring_back(folder: RunFolder) -> RunFolder:
    """Put a run back among the others.

    Raises:
        RequestError: it was not put aside, a run has its name by now, or it cannot be moved.
    """
    if not is_archived(folder):
        raise RequestError(f'The run "{safe(folder.name)}" was not put aside.')
    return move_run(folder, runs_dir_of(folder) / folder.name)
