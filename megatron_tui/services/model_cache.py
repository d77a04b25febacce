"""Loaded models: what screens ask of one, where its weights come from, and the few that are kept.

Needs torch only once a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from megatron_model.config.fields import SamplingConfig
from megatron_model.inference.prompt import Vocabulary
from megatron_model.run.live_weights import WeightsRequest
from megatron_model.util.errors import RequestError

CAPACITY = 2
"""As many as a duel needs; more may not fit in memory."""


class Tokenizer(Vocabulary, Protocol):
    """What a screen asks of a tokenizer."""

    @property
    def vocabulary(self) -> str:
        """The characters that the model knows."""


class Model(Protocol):
    """What the service and its screens ask of a loaded model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary."""

    @property
    def step(self) -> int:
        """The training step of its weights."""

    @property
    def block_size(self) -> int:
        """How many characters it can see at once."""

    def stream(self, prompt: str, sampling: SamplingConfig, written: str = "") -> Iterator[str]:
        """Write one character at a time."""


LoadModel: TypeAlias = Callable[[Path], Model]


@dataclass(frozen=True)
class Live:
    """The weights of the run in training, as they are when they are asked for."""

    run: Path
    ask: Callable[[WeightsRequest], None] = field(compare=False, repr=False)
    ended: Callable[[], bool] = field(compare=False, repr=False)
    """Whether the run is over and will not answer."""


Weights: TypeAlias = "Path | Live"
"""A model file, or a run in training."""


@dataclass(frozen=True)
class CachedModel:
    """One loaded model: as of when, and what its weights cost the run they were copied from."""

    model: Model
    changed: float = 0.0
    """When its file was last modified, in seconds since the epoch."""
    pause_seconds: float | None = None
    """How long training paused for the copy."""


class ModelCache:
    """Loads models and keeps the latest; used by the worker thread alone, but for `known`."""

    def __init__(self, load_model: LoadModel | None = None) -> None:
        self._load_model = load_model
        self._models: dict[Weights, CachedModel] = {}

    def known(self, weights: Weights) -> CachedModel | None:
        """Return what is loaded already; for live weights, those copied last."""
        return self._models.get(weights)

    def get(
        self, weights: Weights, cancelled: Callable[[], bool], *, refresh: bool = False
    ) -> CachedModel | None:
        """Return a model, loaded if need be; None if it was cancelled meanwhile.

        Args:
            weights: which.
            cancelled: whether the model is no longer wanted.
            refresh: copy live weights again, though they were copied before.

        Raises:
            RequestError: it cannot be loaded, or the run in training has ended.
        """
        found = self._models.pop(weights, None)
        if isinstance(weights, Live):
            fresh = found if found is not None and not refresh else _copied(weights, cancelled)
        elif found is not None and found.changed == _modified(weights):
            fresh = found
        else:
            found = None
            self._make_room()
            fresh = CachedModel(self._loader()(weights), _modified(weights))
        if fresh is not None:
            self._make_room()
            self._models[weights] = fresh
        return fresh

    def _make_room(self) -> None:
        while len(self._models) >= CAPACITY:
            del self._models[next(iter(self._models))]

    def _loader(self) -> LoadModel:
        if self._load_model is None:
            from megatron_model.run.checkpoint import (
                load_model,  # torch loads here, not at start-up
            )

            self._load_model = load_model
        return self._load_model


def _copied(weights: Live, cancelled: Callable[[], bool]) -> CachedModel | None:
    request = WeightsRequest()
    weights.ask(request)
    copy = request.wait(lambda: cancelled() or weights.ended())
    if copy is None:
        if cancelled():
            return None
        raise RequestError("The run in training has ended; use its latest checkpoint.")
    return CachedModel(copy.load(), pause_seconds=copy.seconds)


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
