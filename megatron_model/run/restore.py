"""Bring a trainer back to the newest checkpoint of its run that can be read and is what was saved.

A damaged one is set aside, never deleted: a person may want to look at it.
"""

from __future__ import annotations

import logging
from pathlib import Path

from megatron_model.checkpoint import load_training, load_weights
from megatron_model.errors import RequestError
from megatron_model.run_folder import Checkpoint, RunFolder
from megatron_model.text import safe
from megatron_model.trainer import Trainer

_logger = logging.getLogger(__name__)


def restore(folder: RunFolder, trainer: Trainer) -> list[str]:
    """Load the newest checkpoint that is whole; return a sentence for each one passed over.

    Raises:
        RequestError: there are checkpoints, but none can be read.
    """
    unreadable: list[tuple[Checkpoint, str]] = []
    for checkpoint in reversed(folder.checkpoints()):
        try:
            trainer.load(load_weights(checkpoint.path), load_training(checkpoint.path))
        except (
            RequestError,
            KeyError,
            RuntimeError,
            TypeError,
            ValueError,
            AttributeError,
            OverflowError,
        ) as error:
            reason = f"{checkpoint.path.name}: {safe(str(error), one_line=True)[:300]}"
            _logger.warning("checkpoint passed over: %s", reason)
            unreadable.append((checkpoint, reason))
            continue
        # Left under its name a damaged one would pass for the newest, or the best.
        return [_set_aside(damaged.path, reason) for damaged, reason in unreadable]
    if unreadable:
        raise RequestError(f"No checkpoint of this run can be read ({unreadable[0][1]}).")
    return []


def _set_aside(path: Path, reason: str) -> str:
    aside = _free_path(path.with_name(f"damaged-{path.name}"))
    try:
        path.rename(aside)
    except OSError as error:
        raise RequestError(
            f"Cannot set the damaged {safe(str(path))} aside: {error.strerror}."
        ) from None
    return f"a damaged checkpoint was passed over and is now {aside.name} ({reason})"


def _free_path(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free
