"""Make a new run that goes on from a checkpoint of another one, with other settings. No torch."""

from __future__ import annotations

import json
import shutil

import tomlkit

from megatron_model.config import RunConfig, differences
from megatron_model.errors import RequestError
from megatron_model.files import SUMS_FILE, is_unharmed, whole_folder, write_atomically
from megatron_model.run_folder import RUN_FILE, TRAINING_FILE, Checkpoint, RunFolder
from megatron_model.text import safe

FIXED = ("model.", "data.", "training.optimizer")
"""Beginnings of the settings that a checkpoint depends on; dropout is no part of it."""


def forkable(key: str) -> bool:
    """Whether a fork may give this setting another value than its parent has."""
    return key == "model.dropout" or not key.startswith(FIXED)


def nearest_checkpoint(folder: RunFolder, step: float | None = None) -> Checkpoint | None:
    """Return the checkpoint nearest to `step`, the latest one without it; None if there is none."""
    checkpoints = folder.checkpoints()
    if step is None:
        return checkpoints[-1] if checkpoints else None
    return min(checkpoints, key=lambda checkpoint: abs(checkpoint.step - step), default=None)


def fork_run(parent: RunFolder, checkpoint: Checkpoint, name: str, config: RunConfig) -> RunFolder:
    """Return a new run beside `parent` whose weights and optimizer start from `checkpoint`.

    Raises:
        RequestError: the name or a setting cannot be taken, or the folder cannot be written.
    """
    for key in differences(config, parent.config):
        if not forkable(key):
            raise RequestError(f"{key} is part of what the checkpoint is; a fork keeps it.")
    if config.training.steps <= checkpoint.step and not config.training.max_seconds:
        raise RequestError(
            f"training.steps is {config.training.steps:,}, but the checkpoint already has "
            f"{checkpoint.step:,}; set more."
        )
    folder = RunFolder.create(parent.path.parent, name, config)
    try:
        _copy(checkpoint, folder)
        _note_parent(folder, parent, checkpoint)
    except (OSError, ValueError) as error:
        shutil.rmtree(folder.path, ignore_errors=True)
        raise RequestError(f"Cannot copy the checkpoint: {safe(str(error))}.") from None
    return folder


def _copy(checkpoint: Checkpoint, folder: RunFolder) -> None:
    for file in checkpoint.path.iterdir():
        if file.name != SUMS_FILE and not is_unharmed(
            file
        ):  # the copy would get checksums of the damage
            raise ValueError(f"{file.name} is damaged")
    with whole_folder(folder.checkpoint_path(checkpoint.step)) as copy:
        shutil.copytree(checkpoint.path, copy, dirs_exist_ok=True)
        path = copy / TRAINING_FILE
        numbers = json.loads(path.read_text(encoding="utf-8"))
        # The parent's best checkpoint stays with the parent: the child beats its own beginning.
        numbers["best_val_loss"] = numbers.get("val_loss")
        path.write_text(json.dumps(numbers, indent=2), encoding="utf-8")


def _note_parent(folder: RunFolder, parent: RunFolder, checkpoint: Checkpoint) -> None:
    path = folder.path / RUN_FILE
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    about = document["run"]
    assert isinstance(about, dict)
    about["parent"] = parent.name
    about["parent_step"] = checkpoint.step
    about["corpus_fingerprint"] = parent.corpus_fingerprint
    write_atomically(path, tomlkit.dumps(document).encode())
