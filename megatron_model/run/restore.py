"""Bring a trainer back to the newest checkpoint of its run that can be read and is what was saved.

A damaged one, or one of another run, is set aside, never deleted: a person may want to look at it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from megatron_model.run.checkpoint import load_training, load_weights
from megatron_model.run.folder import TRAINING_FILE, Checkpoint, RunFolder, why_not_of
from megatron_model.training.trainer import Trainer
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

_logger = logging.getLogger(__name__)


def restore(folder: RunFolder, trainer: Trainer) -> list[str]:
    """Load the newest checkpoint that is whole; return a sentence for each one skipped.

    Raises:
        RequestError: there are checkpoints, but none can be read.
    """
    unreadable: list[tuple[Checkpoint, str]] = []
    identity = folder.read_identity()
    for checkpoint in reversed(folder.checkpoints()):
        try:
            if why := why_not_of(checkpoint, identity):
                raise RequestError(why)
            if checkpoint.step == 0 and not (checkpoint.path / TRAINING_FILE).exists():
                # Another model's weights, which the run begins with; see learn_on.py. A run that
                # diverged soon afterwards has weights that are better.
                if trainer.step == 0:
                    trainer.begin_with(load_weights(checkpoint.path))
            else:
                trainer.load(load_weights(checkpoint.path), load_training(checkpoint.path))
        except RequestError as error:
            reason = f"{checkpoint.path.name}: {safe(str(error), one_line=True)[:300]}"
            _logger.warning("checkpoint skipped: %s", reason)
            unreadable.append((checkpoint, reason))
            continue
        # Left under its name a damaged one would pass for the newest, or the best.
        return [_set_aside(one, reason, identity) for one, reason in unreadable]
    if unreadable:
        raise RequestError(f"No checkpoint of this run can be read ({unreadable[0][1]}).")
    return []


def _set_aside(checkpoint: Checkpoint, reason: str, identity: str) -> str:
    path, foreign = checkpoint.path, why_not_of(checkpoint, identity)
    kind = "foreign" if foreign else "damaged"
    aside = _free_path(path.with_name(f"{kind}-{path.name}"))
    try:
        path.rename(aside)
    except OSError as error:
        raise RequestError(
            f"Cannot set the {kind} {safe(str(path))} aside: {error.strerror}."
        ) from None
    return f"a {kind} checkpoint was skipped and is now {aside.name} ({reason})"


def _free_path(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free
