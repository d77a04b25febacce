"""The settings that a run in training can take another value for, and their check. No torch."""

from __future__ import annotations

import math

from megatron_model.config import RunConfig, get_setting, with_settings
from megatron_model.errors import RequestError

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
    """Return the configuration with which a run goes on after `step` steps and `seconds`.

    Raises:
        RequestError: the setting cannot change in this run, or not to this value.
    """
    if key not in changeable(config):
        raise RequestError(f"{key} cannot change while this run trains.")
    kind = type(get_setting(config, key))
    if not math.isfinite(value):
        raise RequestError(f"{key} must be a finite number.")
    new = with_settings(config, {key: kind(value)})
    if key == "training.steps" and new.training.steps <= step:
        raise RequestError(f"{key} must be more than the {step:,} steps that are done.")
    if key == "training.max_seconds" and new.training.max_seconds <= seconds:
        raise RequestError(f"{key} must be more than the {seconds:.0f} seconds that have passed.")
    return new
