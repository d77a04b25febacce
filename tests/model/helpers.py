"""Tiny real models, trainers and runs, and how their histories are compared."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_model.config.fields import ModelConfig, RunConfig, SamplingConfig, with_settings
from megatron_model.config.presets import get_preset
from megatron_model.events.schema import RECORDED, Evaluated, Event, MetricsReported
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder

if TYPE_CHECKING:
    from torch import nn

    from megatron_model.training.trainer import Trainer

ARCHITECTURES = ("classic", "modern")

_VOCABULARY = "the a old king queen wolf sea went came saw under over dark gold sang slept and"


def _tale(lines: int) -> str:
    draw, words = random.Random(7), _VOCABULARY.split()
    return "".join(" ".join(draw.choices(words, k=8)).capitalize() + ".\n" for _ in range(lines))


TEXT = _tale(70)


def tiny_config(changes: Mapping[str, object] | None = None) -> RunConfig:
    """Return the smoke preset, made as small as a model can be; AdamW, because it is quick."""
    tiny: dict[str, object] = {
        "model.layers": 2,
        "model.embed_dim": 16,
        "model.heads": 2,
        "model.ff_dim": 32,
        "model.block_size": 16,
        "training.steps": 18,
        "training.batch_size": 4,
        "training.optimizer": "adamw",
        "training.log_every": 2,
        "training.evaluate_every": 6,
        "training.checkpoint_every": 5,
        "training.keep_checkpoints": 2,
        "training.sample_length": 4,
        "training.device": "cpu",
        "training.precision": "float32",
        "training.compile": "off",
        "training.threads": 1,
    }
    return with_settings(get_preset("smoke").config, {**tiny, **(changes or {})})


def tiny_model(architecture: str = "classic", **changes: object) -> ModelConfig:
    """Return the shape of a tiny model of one architecture."""
    prefixed = {f"model.{name}": value for name, value in changes.items()}
    return tiny_config({"model.architecture": architecture, **prefixed}).model


def make_trainer(
    config: RunConfig,
    text: str = TEXT,
    *,
    clock: Callable[[], float] = time.perf_counter,
    begun: float | None = None,
) -> Trainer:
    """Return a trainer on `text`, nine tenths of which it learns from."""
    from megatron_model.data.tokenizer import CharTokenizer
    from megatron_model.training.trainer import Trainer

    tokenizer = CharTokenizer(text)
    tokens = np.array(tokenizer.encode(text), dtype=np.uint8)
    border = len(tokens) * 9 // 10
    splits = tokens[:border], tokens[border:]
    return Trainer(config, tokenizer, *splits, clock=clock, begun=begun)


def written_tokens(
    model: nn.Module, prompt: Sequence[int], sampling: SamplingConfig, *, cached: bool = True
) -> Iterator[int]:
    """Yield the tokens that a model writes after the prompt."""
    from megatron_model.inference.sampler import Stream, generate_columns

    stream = Stream(sampling, prompt)
    for (token,), _ in generate_columns(model, prompt, [stream], cached=cached):
        assert token is not None
        yield token


def train(folder: RunFolder, control: Control | None = None) -> list[Event]:
    """Train the run to its end and return everything that happened."""
    from megatron_model.run.runner import run_training

    return list(run_training(folder, control or Control()))


def train_and(
    folder: RunFolder, when: Callable[[Event], bool], *commands: str, at_most: int = 5000
) -> list[Event]:
    """Train, and give the commands at the first event for which `when` is true."""
    from megatron_model.run.runner import run_training

    control = Control()
    seen: list[Event] = []
    waiting = list(commands)
    for event in itertools.islice(run_training(folder, control), at_most):
        seen.append(event)
        if waiting and when(event):
            for command in waiting:
                control.put(command)  # type: ignore[arg-type]
            waiting = []
    return seen


def recorded(events: list[Event]) -> list[Event]:
    """Return the events that belong into the log."""
    return [event for event in events if isinstance(event, RECORDED)]


def history(events: list[Event]) -> dict[tuple[str, int], float]:
    """Return every loss by its kind and step; a later report of a step counts."""
    found: dict[tuple[str, int], float] = {}
    for event in events:
        if isinstance(event, MetricsReported):
            found["train", event.step] = event.train_loss
        elif isinstance(event, Evaluated):
            found["validation", event.step] = event.val_loss
    return found


def kinds(events: list[Event]) -> list[str]:
    """Return what happened, by name."""
    return [type(event).__name__ for event in events]
