"""The named configurations: `seed` is the original program, the others modern, by size."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec
from msgspec import Struct

from megatron_model.config.fields import ModelConfig, RunConfig, TrainingConfig
from megatron_model.util.errors import RequestError, nearest


class Preset(Struct, frozen=True):
    """A configuration with a name and the occasion it is for."""

    name: str
    description: str
    config: RunConfig


def modern_config(
    *,
    layers: int,
    embed_dim: int,
    heads: int,
    block_size: int,
    training: TrainingConfig,
    dropout: float = 0.0,
) -> RunConfig:
    """Return a configuration of the modern architecture, four times as wide in its feed-forward."""
    model = ModelConfig(
        architecture="modern",
        block_size=block_size,
        embed_dim=embed_dim,
        heads=heads,
        layers=layers,
        ff_dim=4 * embed_dim,
        dropout=dropout,
    )
    return RunConfig(model=model, training=training)


def muon_recipe(steps: int, batch_size: int, **changes: int | float) -> TrainingConfig:
    """Return the recipe of the modern presets, with what is given in place of its values."""
    recipe = TrainingConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer="muon",
        learning_rate=1e-2,
        muon_learning_rate=0.05,
        weight_decay=0.1,
        schedule="linear",
        cooldown=0.7,
        warmup_steps=10,
        start="pairs",
    )
    return msgspec.structs.replace(recipe, **changes)


PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "smoke",
            "Seconds on any machine: shows that everything works.",
            modern_config(
                layers=2,
                embed_dim=64,
                heads=2,
                block_size=64,
                training=muon_recipe(
                    200,
                    16,
                    log_every=10,
                    evaluate_every=50,
                    checkpoint_every=100,
                    sample_length=120,
                ),
            ),
        ),
        Preset(
            "cpu",
            "Minutes on two cores: readable text from a small model.",
            modern_config(
                layers=4,
                embed_dim=128,
                heads=4,
                block_size=256,
                training=muon_recipe(
                    1450,
                    12,
                    token_dropout=0.04,
                    log_every=10,
                    evaluate_every=250,
                    checkpoint_every=500,
                ),
            ),
        ),
        Preset(
            "small",
            "A GPU with 8 GB: 11 million parameters, for texts from 1 MB.",
            modern_config(
                layers=6,
                embed_dim=384,
                heads=6,
                block_size=256,
                training=muon_recipe(
                    3000, 64, log_every=20, evaluate_every=250, checkpoint_every=500
                ),
                dropout=0.2,
            ),
        ),
        Preset(
            "medium",
            "A GPU with 24 GB: 25 million parameters, for texts from 20 MB.",
            modern_config(
                layers=8,
                embed_dim=512,
                heads=8,
                block_size=512,
                training=muon_recipe(
                    10_000, 64, log_every=50, evaluate_every=500, checkpoint_every=1000
                ),
                dropout=0.1,
            ),
        ),
        Preset(
            "large",
            "A GPU with 80 GB: 85 million parameters, for texts from 200 MB.",
            modern_config(
                layers=12,
                embed_dim=768,
                heads=12,
                block_size=1024,
                training=muon_recipe(
                    20_000, 64, log_every=50, evaluate_every=500, checkpoint_every=1000
                ),
            ),
        ),
        Preset(
            "seed",
            "The original program: 16 layers of 512, AdamW, 20,000 steps; wants a large GPU.",
            RunConfig(),
        ),
    )
}


AUTO = "auto"
"""In place of a preset's name: chosen for text, machine and time; see `planning.sizing`."""
CPU_PRESET, ACCELERATOR_PRESET = "cpu", "small"


def default_preset(device: str) -> str:
    """Return the name of the preset to start from on a device: ``cpu``, ``cuda`` or ``mps``."""
    return CPU_PRESET if device == "cpu" else ACCELERATOR_PRESET


def get_preset(name: str) -> Preset:
    """Return the preset called `name`.

    Raises:
        RequestError: there is none; the nearest is named.
    """
    if name not in PRESETS:
        raise RequestError(
            f'Unknown preset "{name}"; there are {", ".join(PRESETS)} and {AUTO}.'
            + nearest(name, [*PRESETS, AUTO])
        )
    return PRESETS[name]


SHORT_LENGTH = 128
SHORT_SECONDS = 40.0
"""Budget up to which a run is too short for long blocks and regularisation to pay."""

SHORTEST_SECONDS = 10.0
"""Budget up to which a small model does better by twice the steps of half the size, each larger."""
SMALL_WIDTH = 128

MOST_EPOCHS = 25.0
"""Times a preset reads a corpus at most; beyond, a model gets worse at what it has not read."""

UNBLANKED_EPOCHS, BLANKED_PER_EPOCH, MOST_BLANKED = 1.5, 0.015, 0.2


def fitted(config: RunConfig, characters: int, chosen: Collection[str] = ()) -> RunConfig:
    """Return a configuration made from a preset, fitted to a corpus and to its time budget.

    A small text is read fewer times, and with more of it blanked; a short budget is spent on many
    short sequences. Measured on one text and its parts, confirmed on others. The classic
    architecture is left as it is.

    Args:
        config: a preset's, with what the user chose.
        characters: of the corpus as it is read; its bytes are others in almost any encoding.
        chosen: dotted keys that the user chose, which stay as they are.
    """
    if config.model.architecture == "classic":
        return config
    training = config.training
    changes: dict[str, object] = {}
    per_step = training.batch_size * config.sequence_length
    train_characters = max(1.0, characters * (1.0 - config.data.validation_fraction))
    steps = min(training.steps, math.ceil(MOST_EPOCHS * train_characters / per_step))
    if "training.steps" in chosen:
        steps = training.steps
    if steps < training.steps:
        share = steps / training.steps
        changes["steps"] = steps
        for name in ("evaluate_every", "checkpoint_every"):
            changes[name] = max(1, round(getattr(training, name) * share))
    epochs = steps * per_step / train_characters
    repeated = max(0.0, epochs - UNBLANKED_EPOCHS)
    changes["token_dropout"] = round(min(MOST_BLANKED, BLANKED_PER_EPOCH * repeated), 2)
    if 0.0 < training.max_seconds <= SHORT_SECONDS and config.sequence_length > SHORT_LENGTH:
        changes |= {
            "sequence_length": SHORT_LENGTH,
            "batch_size": max(1, per_step // SHORT_LENGTH),
            "cooldown": 0.4,
            "token_dropout": 0.0,
            "weight_decay": 0.0,
        }
        if training.max_seconds <= SHORTEST_SECONDS and config.model.embed_dim <= SMALL_WIDTH:
            changes |= {
                "batch_size": max(1, per_step // SHORT_LENGTH // 2),
                "learning_rate": 2.0 * training.learning_rate,
            }
    kept = {name: value for name, value in changes.items() if f"training.{name}" not in chosen}
    return msgspec.structs.replace(config, training=msgspec.structs.replace(training, **kept))
