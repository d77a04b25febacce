"""What a run that begins with a model's weights takes of its settings, made gentler. No torch."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from msgspec import structs

from megatron_model.config.fields import DataConfig, RunConfig, TrainingConfig, differences
from megatron_model.run.folder import CHECKPOINTS, RUN_FILE
from megatron_model.util.errors import RequestError

RATE_FACTOR = 0.3
"""Share of the peak rates of a run from scratch; see `gentler`."""
WARM_UP_STEPS = 10
MADE_GENTLER = ("learning_rate", "muon_learning_rate", "warmup_steps", "schedule", "start")
"""Settings of training that `gentler` may change."""

_OF_MACHINE = (
    "device",
    "devices",
    "sharding",
    "rank_timeout",
    "precision",
    "compile",
    "threads",
    "max_seconds",
)
"""Settings of training that belong to where and how long a model was trained, not to how."""


def recipe_of(model: RunConfig) -> RunConfig:
    """Return what a run that goes on from a model takes of its settings: its shape, its recipe."""
    here = {name: getattr(TrainingConfig(), name) for name in _OF_MACHINE}
    return RunConfig(
        model=model.model, training=structs.replace(model.training, **here), data=DataConfig()
    )


def gentler(config: RunConfig, chosen: Collection[str] = ()) -> RunConfig:
    """Return the settings of a run, made gentle enough not to undo what its weights know.

    Lower peak rates, a short warm-up for the fresh optimizer, and a rate that falls to zero.
    Tried with a modern model of the Python reference (1.256 nats) on 40,000 other characters, of
    the same text and of Python's source, after 200 steps: from scratch 1.330 and 1.505; from the
    model with the whole rates 1.282 and 1.490, half of them 1.244 and 1.489, three tenths 1.211 and
    1.454, a tenth 1.196 and 1.475. The warm-up, of 0 to 10 steps, changed little.

    `chosen` are dotted keys that stay as they are.
    """
    training = config.training
    changes = {
        "learning_rate": training.learning_rate * RATE_FACTOR,
        "muon_learning_rate": training.muon_learning_rate * RATE_FACTOR,
        "warmup_steps": min(WARM_UP_STEPS, training.steps // 10),
        "schedule": "linear",
        "start": "random",  # the weights are there
    }
    kept = {name: value for name, value in changes.items() if f"training.{name}" not in chosen}
    return structs.replace(config, training=structs.replace(training, **kept))


def check_shape(config: RunConfig, model: RunConfig) -> None:
    """Refuse a shape that is not the model's.

    Raises:
        RequestError: it names the first setting that differs.
    """
    for key, (theirs, ours) in differences(config, model).items():
        if key.startswith("model.") and key != "model.dropout":
            raise RequestError(
                f"{key} is {theirs} in the model that the run begins with, and cannot be {ours}; "
                "leave it out."
            )


def joint_vocabulary(text: str, model: str) -> str:
    """Return the characters of a text, and behind them what else a model knows."""
    there = set(text)
    return text + "".join(character for character in model if character not in there)


def name_of(model: Path) -> str:
    """Return what a model file is called: as the run it is in, or as the file itself."""
    path = model.absolute()
    run = path.parent.parent.parent
    in_run = path.parent.parent.name == CHECKPOINTS and (run / RUN_FILE).is_file()
    return run.name if in_run else path.stem
