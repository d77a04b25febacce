"""The models at hand: loaded once, at most two at a time, and asked for by where they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeAlias

from megatron_model.config import SamplingConfig
from megatron_model.errors import RequestError
from megatron_model.lending import WeightsRequest
from megatron_model.prompting import Vocabulary

AT_ONCE = 2
"""As many as a duel needs; more may not fit."""


class Tokenizer(Vocabulary, Protocol):
    """What the screen asks of a vocabulary."""

    @property
    def vocabulary(self) -> str:
        """The characters that the model knows."""


class Model(Protocol):
    """What the thread asks of a loaded model."""

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
    """Whether nobody will answer any more."""


Weights: TypeAlias = "Path | Live"
"""A model file, or a run in training."""


@dataclass(frozen=True)
class Shelved:
    """One loaded model: as of when, and what it cost the run it was taken from."""

    model: Model
    changed: float = 0.0
    lent_seconds: float | None = None


class ModelShelf:
    """Loads models and keeps the latest; used by the worker thread alone, but for `known`."""

    def __init__(self, load_model: LoadModel | None = None) -> None:
        self._load_model = load_model
        self._shelf: dict[Weights, Shelved] = {}

    def known(self, weights: Weights) -> Shelved | None:
        """Return what is loaded already; for live weights, those taken last."""
        return self._shelf.get(weights)

    def get(
        self, weights: Weights, given_up: Callable[[], bool], *, anew: bool = False
    ) -> Shelved | None:
        """Return a model, loaded if need be; None if the wait for it was given up.

        Args:
            weights: which.
            given_up: whether nobody waits any more.
            anew: take live weights again, though some were taken before.

        Raises:
            RequestError: it cannot be loaded, or the run in training is no more.
        """
        found = self._shelf.pop(weights, None)
        if isinstance(weights, Live):
            fresh = found if found is not None and not anew else _borrowed(weights, given_up)
        elif found is not None and found.changed == _changed(weights):
            fresh = found
        else:
            found = None
            self._make_room()
            fresh = Shelved(self._loader()(weights), _changed(weights))
        if fresh is not None:
            self._make_room()
            self._shelf[weights] = fresh
        return fresh

    def _make_room(self) -> None:
        while len(self._shelf) >= AT_ONCE:
            del self._shelf[next(iter(self._shelf))]

    def _loader(self) -> LoadModel:
        if self._load_model is None:
            from megatron_model.checkpoint import load_model  # torch loads here, not at start-up

            self._load_model = load_model
        return self._load_model


def _borrowed(weights: Live, given_up: Callable[[], bool]) -> Shelved | None:
    request = WeightsRequest()
    weights.ask(request)
    lent = request.wait(lambda: given_up() or weights.ended())
    if lent is None:
        if given_up():
            return None
        raise RequestError("The run in training has ended; take its latest checkpoint.")
    return Shelved(lent.load(), lent_seconds=lent.seconds)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
