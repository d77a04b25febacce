"""Make a new run that starts from a checkpoint of another one, with other settings. No torch."""

from __future__ import annotations

import json
import shutil

import tomlkit
from msgspec import structs

from megatron_model.config.fields import RunConfig, differences
from megatron_model.config.live import check_left
from megatron_model.run.archive import runs_dir_of
from megatron_model.run.folder import (
    RUN_FILE,
    TRAINING_FILE,
    Checkpoint,
    RunFolder,
    free_name,
)
from megatron_model.util.errors import RequestError
from megatron_model.util.files import (
    SUMS_FILE,
    is_unharmed,
    read_bounded,
    whole_folder,
    write_atomically,
)
from megatron_model.util.text import safe

FIXED = ("model.", "data.", "training.optimizer")
"""Beginnings of the settings that a checkpoint depends on; dropout is no part of it."""


def forkable(key: str) -> bool:
    """Whether a fork may give this setting another value than its parent has."""
    return key == "model.dropout" or not key.startswith(FIXED)


def nearest_checkpoint(folder: RunFolder, step: float | None = None) -> Checkpoint | None:
    """Return the checkpoint nearest to `step`, the latest one without it; None if there is none."""
    checkpoints = folder.readable_checkpoints()
    if step is None:
        return checkpoints[0] if checkpoints else None
    return min(checkpoints, key=lambda checkpoint: abs(checkpoint.step - step), default=None)


def spent_seconds(checkpoint: Checkpoint) -> float:
    """Return the seconds of a time budget used up at a checkpoint: training and one evaluation."""
    try:
        numbers = json.loads((checkpoint.path / TRAINING_FILE).read_text(encoding="utf-8"))
        return float(numbers["elapsed_seconds"]) + float(numbers.get("evaluation_seconds", 0.0))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return 0.0  # loading the checkpoint says what is wrong with it


def fork_name(parent: RunFolder, step: int) -> str:
    """Return a free name for a fork."""
    return free_name(runs_dir_of(parent), parent.name.partition("-at-")[0], f"-at-{step}")


def fork_run(parent: RunFolder, checkpoint: Checkpoint, name: str, config: RunConfig) -> RunFolder:
    """Return a new run beside `parent` whose weights and optimizer start from `checkpoint`.

    Raises:
        RequestError: the name or a setting cannot be taken, or the folder cannot be written.
    """
    for key in differences(config, parent.read_config()):
        if not forkable(key):
            raise RequestError(f"{key} is part of what the checkpoint is; a fork keeps it.")
    check_left(
        config,
        step=checkpoint.step,
        seconds=spent_seconds(checkpoint),
        loss=checkpoint.val_loss,
    )
    folder = RunFolder.create(runs_dir_of(parent), name, config)
    try:
        _copy(checkpoint, folder)
        _note_parent(folder, parent, checkpoint)
    except (OSError, ValueError) as error:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise RequestError(f"Cannot copy the checkpoint: {safe(str(error))}.") from None
    return folder


def _copy(checkpoint: Checkpoint, folder: RunFolder) -> None:
    files = [path for path in checkpoint.path.iterdir() if path.is_file()]  # no devices, no pipes
    for file in files:
        if file.name != SUMS_FILE and not is_unharmed(
            file
        ):  # the copy would get checksums of the damage
            raise ValueError(f"{file.name} is damaged")
    with whole_folder(folder.checkpoint_path(checkpoint.step)) as copy:
        for file in files:
            shutil.copy2(file, copy)
        path = copy / TRAINING_FILE
        numbers = json.loads(read_bounded(path))
        # The parent's best checkpoint stays with the parent: the child beats its own beginning.
        numbers["best_val_loss"] = numbers["last_better"] = numbers.get("val_loss")
        numbers["waited"] = 0
        numbers["run"] = folder.read_identity()
        path.write_text(json.dumps(numbers, indent=2), encoding="utf-8")


def _note_parent(folder: RunFolder, parent: RunFolder, checkpoint: Checkpoint) -> None:
    path = folder.path / RUN_FILE
    document = tomlkit.parse(read_bounded(path).decode("utf-8"))
    about = document["run"]
    assert isinstance(about, dict)
    about["parent"] = parent.name
    about["parent_step"] = checkpoint.step
    if (origin := parent.read_origin()) is not None:  # whose vocabulary is that of the checkpoint
        about["origin"] = {k: v for k, v in structs.asdict(origin).items() if v is not None}
    about["corpus_fingerprint"] = parent.read_corpus_fingerprint()
    write_atomically(path, tomlkit.dumps(document).encode())
