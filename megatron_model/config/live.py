"""The settings that a run in training can take another value for, and their check. No torch."""

from __future__ import annotations

import math

from megatron_model.config.fields import RunConfig, get_setting, with_settings
from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural

CHANGEABLE = (
    "training.learning_rate",
    "training.muon_learning_rate",
    "training.steps",
    "training.max_seconds",
)


def changeable(config: RunConfig) -> tuple[str, ...]:
    """Return the settings whose change has an effect on this run."""
    training = config.training
    unused = {
        "training.muon_learning_rate" if training.optimizer == "adamw" else "",
        "training.steps" if training.max_seconds else "training.max_seconds",
    }
    return tuple(key for key in CHANGEABLE if key not in unused)


def changed(config: RunConfig, key: str, value: float, *, step: int, seconds: float) -> RunConfig:
    """Return the configuration for the rest of a run, after `step` steps and `seconds`.

    Raises:
        RequestError: the setting cannot change in this run, or not to this value.
    """
    can = changeable(config)
    if key not in can:
        raise RequestError(
            f"{key} cannot change while this run trains; {', '.join(can[:-1])} and {can[-1]} can."
        )
    kind = type(get_setting(config, key))
    if not math.isfinite(value):
        raise RequestError(f"{key} must be a finite number.")
    new = with_settings(config, {key: kind(value)})
    if key in ("training.steps", "training.max_seconds"):
        check_left(new, step=step, seconds=seconds)
    return new


def check_left(config: RunConfig, *, step: int, seconds: float, loss: float | None = None) -> None:
    """Refuse settings that leave a run of this length no step to take.

    Args:
        config: for the rest of the run.
        step: steps that are done.
        seconds: of the time budget that are spent, or kept for the last evaluation.
        loss: the validation loss that is reached, if that is known.

    Raises:
        RequestError: nothing is left.
    """
    training = config.training
    if training.target_loss and loss is not None and loss <= training.target_loss:
        raise RequestError(
            f"training.target_loss is {training.target_loss:g}; it must be less than the "
            f"{loss:.4f} already reached, or 0."
        )
    if training.max_seconds and training.max_seconds <= seconds:
        raise RequestError(
            f"training.max_seconds is {training.max_seconds:g}; it must be more than the "
            f"{seconds:.1f} seconds that have passed."
        )
    if not training.max_seconds and training.steps <= step:
        raise RequestError(
            f"training.steps is {training.steps:,}; it must be more than the "
            f"{plural(step, 'step')} already trained."
        )
