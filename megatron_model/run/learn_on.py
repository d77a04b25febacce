"""Learning on: a new run begins with the weights of a trained model and reads another text.

The vocabulary is that of the text, and behind it what else the model knows: old characters keep
their weights, and no token of the text changes. The optimizer is fresh, its rates are gentler.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import torch
from msgspec import structs
from torch import Tensor

from megatron_model.config.fields import DataConfig, RunConfig, TrainingConfig, differences
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.run.checkpoint import LoadedModel, ModelState, copies_on_host, write_start
from megatron_model.run.folder import CHECKPOINTS, RUN_FILE, Origin, RunFolder
from megatron_model.util.errors import RequestError

RATE_FACTOR = 0.3
"""Share of the peak rates of a run from scratch; see `gentler`."""
WARM_UP_STEPS = 10
NOISE = 0.1
"""Spread of the weights of a new character around the mean, in shares of the old ones' spread."""

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


def widened(weights: dict[str, Tensor], old: str, new: str, seed: int) -> dict[str, Tensor]:
    """Return a model's weights for another vocabulary.

    A character of both keeps its row in the embedding and in the head. One that is new gets the
    mean of the rows that there were, and a little noise that tells it from others.

    Args:
        weights: of either architecture, by name.
        old: the characters of their rows, in order.
        new: the characters of the rows that are wanted.
        seed: of the noise.
    """
    place = {character: row for row, character in enumerate(old)}
    kept = torch.tensor([place.get(character, -1) for character in new])
    generator = torch.Generator().manual_seed(seed)
    result = {}
    for name, value in weights.items():
        if name.partition(".")[0] in ("token_embedding", "head"):
            noise = torch.randn(len(new), *value.shape[1:], generator=generator)
            spread = value.std(0, correction=0)
            rows = value.mean(0) + NOISE * spread * noise
            rows[kept >= 0] = value[kept[kept >= 0]]
            value = rows
        result[name] = value
    return result


def begin_from(folder: RunFolder, model: LoadedModel, name: str, vocabulary: str) -> None:
    """Have the new run in `folder` begin with the weights of a model.

    Args:
        folder: just made; it is removed again where the weights cannot be written.
        model: the weights.
        name: what the model is called.
        vocabulary: of the text that the run learns from.

    Raises:
        RequestError: the folder cannot be written.
    """
    theirs = model.tokenizer.vocabulary
    there = set(vocabulary)
    unused = "".join(character for character in theirs if character not in there)
    both = vocabulary + unused
    config = folder.read_config()
    on_host = copies_on_host(model.model.state_dict())
    weights = widened(on_host, theirs, both, config.training.seed)
    new = "".join(model.tokenizer.unknown(vocabulary))
    origin = Origin(
        model=name,
        step=model.step,
        val_loss=model.val_loss,
        known=len(both) - len(new),
        new=new,
        unused=unused,
    )
    start = ModelState(weights, CharTokenizer.from_vocabulary(both), config, 0, None)
    with folder.removed_unless_written():
        write_start(folder.checkpoint_path(0), start)
        folder.write_origin(origin)


def name_of(model: Path) -> str:
    """Return what a model file is called: as the run it is in, or as the file itself."""
    path = model.absolute()
    run = path.parent.parent.parent
    in_run = path.parent.parent.name == CHECKPOINTS and (run / RUN_FILE).is_file()
    return run.name if in_run else path.stem
