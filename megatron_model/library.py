"""The library: train on a text, load what was trained, write with it and measure it.

What the command line does, for programs. `megatron_model` offers these names; see docs/library.md.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from torch import nn

from megatron_model.analysis.insight import CharacterScore, surprise
from megatron_model.config.fields import (
    RunConfig,
    SamplingConfig,
    settings_by_key,
    with_settings,
)
from megatron_model.data.tokenizer import CharTokenizer, UnknownCharacterError
from megatron_model.device import measured_device
from megatron_model.events.schema import Event
from megatron_model.events.state import RunState
from megatron_model.planning import preflight as planning
from megatron_model.run.checkpoint import LoadedModel, ModelState, load_model, write_model
from megatron_model.run.control import Control
from megatron_model.run.folder import (
    RunFolder,
    check_run_name,
    default_runs_dir,
    find_model,
    find_run,
)
from megatron_model.run.request import Request, Start, ask, start_from
from megatron_model.run.runner import run_training
from megatron_model.training.loss import evaluate_loss
from megatron_model.util.errors import RequestError, RunFailedError
from megatron_model.util.files import write_atomically

TEXT_FILE = "corpus.txt"
"""Where a run keeps the text that it was given as such."""
LONGEST_PATH = 4096
"""Characters from which on no system takes a path, so that it can only be a text."""

_logger = logging.getLogger(__name__)


class Run:
    """A run that trains while it is iterated over, or all at once by `finish`.

    Nothing is trained, or written, before the first event is asked for; a run that is dropped
    without that warns. The events are those of `megatron_model.events`, in order; to end early call
    `stop`, and go on iterating until the run has saved itself.
    """

    def __init__(self, name: str, begin: Callable[[], tuple[RunFolder, RunConfig | None]]) -> None:
        self.name = name
        self.state = RunState()
        """What happened so far, folded: losses as curves, status, samples, the best validation."""
        self._begin = begin
        self._control = Control()
        self._folder: RunFolder | None = None
        self._events: Iterator[Event] | None = None
        """None before the first event was asked for."""

    @property
    def folder(self) -> RunFolder:
        """The run's folder: its settings, its log and its checkpoints.

        Raises:
            RequestError: nothing was trained yet, and there is none.
        """
        if self._folder is None:
            raise RequestError(f'The run "{self.name}" has not begun; iterate over it.')
        return self._folder

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """Train until the next event, and return it.

        Raises:
            RequestError: what was asked cannot be done.
        """
        if self._events is None:
            self._events = self._train()
        return next(self._events)

    def finish(self) -> Model:
        """Train to the end, from wherever the run is, and return the model of its best checkpoint.

        Raises:
            RunFailedError: the run failed; what was saved before is unharmed.
            RequestError: what was asked cannot be done.
        """
        for _ in self:
            pass
        if self.state.error is not None:
            raise RunFailedError(self.state.error)
        return load(self.folder)

    def stop(self) -> None:
        """Have the run save itself and end after the step at hand; another thread may call this."""
        self._control.put("stop")

    def _train(self) -> Iterator[Event]:
        self._folder, config = self._begin()
        for event in run_training(self._folder, self._control, config=config):
            self.state.apply(event)
            yield event

    def __repr__(self) -> str:
        if self._events is None:
            return f"<Run {self.name}: not begun; iterate over it, or call finish()>"
        return f"<Run {self.name}: {self.state.status} at step {self.state.step:,}>"

    def __del__(self) -> None:
        if self._events is None:
            warnings.warn(
                f'the run "{self.name}" was never trained: iterate over it, or call finish()',
                RuntimeWarning,
                stacklevel=2,
            )


class Model:
    """A trained model with its vocabulary: writes text, and says how likely a text is."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @property
    def network(self) -> nn.Module:
        """The weights, as a module that maps token ids (B, T) to logits (B, T, V)."""
        return self._loaded.model

    @property
    def tokenizer(self) -> CharTokenizer:
        """The vocabulary: characters to token ids and back."""
        return self._loaded.tokenizer

    @property
    def config(self) -> RunConfig:
        """The settings that the model was trained with."""
        return self._loaded.config

    @property
    def step(self) -> int:
        """How many updates the weights took."""
        return self._loaded.step

    @property
    def val_loss(self) -> float | None:
        """The validation loss of these weights in their run, in nats per character, if measured."""
        return self._loaded.val_loss

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._loaded.device

    def generate(self, prompt: str = "", **sampling: float | str) -> str:
        """Return `prompt` and what the model writes after it.

        Args:
            prompt: the text to go on from; an empty one begins as after a line break.
            sampling: fields of `SamplingConfig`, such as ``temperature=0.5, max_new_tokens=100``.

        Raises:
            UnknownCharacterError: the prompt has characters that the model never saw.
            RequestError: a value is out of range.
        """
        return prompt + "".join(self.stream(prompt, **sampling))

    def stream(self, prompt: str = "", **sampling: float | str) -> Iterator[str]:
        """Yield what the model writes after `prompt`, a character at a time.

        To stop is to stop pulling. Takes, and raises, what `generate` does.
        """
        return self._loaded.stream(prompt, structs.replace(SamplingConfig(), **sampling))

    def loss(self, text: str) -> float:
        """Return the mean loss over `text` in nats per character, as validation measures it.

        The text is walked in blocks that do not overlap; its first character is not predicted.

        Raises:
            UnknownCharacterError: the text has characters that the model never saw.
            RequestError: it has fewer than two characters.
        """
        if unknown := self.tokenizer.unknown(text):
            raise UnknownCharacterError(unknown, "The text")
        if len(text) < 2:
            raise RequestError("The text needs at least 2 characters: the first is not predicted.")
        return evaluate_loss(
            self.network,
            np.array(self.tokenizer.encode(text), np.int64),
            block_size=self._loaded.block_size,
            device=self.device,
            dtype=torch.float32,
        )

    def score(self, text: str) -> list[CharacterScore]:
        """Return, for each character of `text`, how likely the model held it.

        Each has its `character`, its `log_probability` in nats, and the likeliest `candidates`.

        Raises:
            UnknownCharacterError: the text has characters that the model never saw.
        """
        return list(surprise(self.network, self.tokenizer, text, self._loaded.block_size))

    def save(self, path: str | Path) -> None:
        """Write a ``.safetensors`` file with all that `load` needs: weights, settings, vocabulary.

        Raises:
            RequestError: it is called otherwise, or cannot be written.
        """
        path, loaded = Path(path), self._loaded
        if path.suffix != ".safetensors":
            raise RequestError(f"{path} must end in .safetensors.")
        weights = dict(self.network.state_dict())
        try:
            write_model(
                path,
                ModelState(weights, self.tokenizer, self.config, self.step, loaded.val_loss),
            )
        except OSError as error:
            raise RequestError(f"Cannot write {path}: {error.strerror}.") from None

    def __repr__(self) -> str:
        shape = self.config.model
        return (
            f"<Model {shape.architecture}, {shape.layers} x {shape.embed_dim}, "
            f"{self.tokenizer.vocab_size} characters, step {self.step:,}>"
        )


def train(
    text: str | Path,
    *,
    preset: str | None = None,
    name: str | None = None,
    runs_dir: str | Path | None = None,
    from_model: str | Path | RunFolder | Run | Model | None = None,
    **settings: object,
) -> Run:
    """Return a run that trains a new model on `text`: iterate over it, or call its `finish`.

    Args:
        text: a path, ``builtin:NAME``, or the text itself: a string with a line break in it, or of
            more than 4,096 characters, is a text, and the run keeps it in its folder.
        preset: ``smoke``, ``cpu``, ``small``, ... or ``auto``; None chooses by the device.
        name: of the run; None makes one from the text and the preset.
        runs_dir: where runs are kept; None: where the command line keeps them.
        from_model: what `load` takes, or a model: the run begins with its weights and keeps its
            shape; the characters that it does not know are added.
        settings: any setting by its name, such as ``steps=500, layers=4``.

    Raises:
        RequestError: a setting, the preset or the text cannot be; nothing was written.
    """
    kept = _runs(runs_dir)
    if name is not None:
        check_run_name(name)
    changes = settings_by_key(settings)
    start = None if from_model is None else _start(from_model, kept)
    with _as_corpus(text) as corpus:
        request = ask(corpus, preset=preset, changes=changes, start=start, say=_logger.info)
        called = request.name_in(kept) if name is None else name

    def begin() -> tuple[RunFolder, None]:
        if not _is_text(text):
            return request.create(kept, called), None
        place = kept.absolute() / called / TEXT_FILE
        folder = _placed(request, place).create(kept, called)
        try:
            write_atomically(place, str(text).encode())
        except OSError as error:
            folder.discard_new()
            raise RequestError(f"Cannot write {place}: {error.strerror}.") from None
        return folder, None

    return Run(called, begin)


def resume(run: str | Path, *, runs_dir: str | Path | None = None, **settings: object) -> Run:
    """Return a run that goes on from its latest checkpoint, exactly as if it had never stopped.

    Args:
        run: its name or its folder.
        runs_dir: where runs are kept.
        settings: what is to be another value from now on, such as ``steps=1000``.

    Raises:
        RequestError: there is no such run, or a setting cannot be.
    """
    folder = find_run(str(run), _runs(runs_dir))
    changes = settings_by_key(settings)
    config = with_settings(folder.read_config(), changes) if changes else None
    return Run(folder.name, lambda: (folder, config))


def load(
    model: str | Path | RunFolder | Run,
    *,
    which: str = "best",
    runs_dir: str | Path | None = None,
    corpus: str | Path | None = None,
    device: str = "auto",
) -> Model:
    """Return a trained model, ready to write.

    Args:
        model: a run, its name or its folder; a checkpoint folder; a ``.safetensors`` file, or plain
            weights in a ``.pt`` file.
        which: ``best`` or ``latest`` checkpoint of a run.
        runs_dir: where runs are looked for by name.
        corpus: of plain weights the text that they were trained on, which has their vocabulary.
        device: ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        RequestError: there is no such model, it is damaged, or it is not one of this program.
    """
    if which not in ("best", "latest"):
        raise RequestError(f'which is "{which}"; it must be best or latest.')
    path = find_model(_spec(model), _runs(runs_dir), which=which, say=_logger.warning)
    return Model(load_model(path, device, corpus=None if corpus is None else str(corpus)))


def preflight(
    text: str | Path, *, preset: str | None = None, **settings: object
) -> planning.Preflight:
    """Return what a run would cost on this machine; takes what `train` does, and trains nothing.

    Raises:
        RequestError: as `train`.
    """
    with _as_corpus(text) as corpus:
        request = ask(corpus, preset=preset, changes=settings_by_key(settings), say=_logger.info)
    training = request.config.training
    return planning.preflight(
        request.config,
        characters=request.prepared.characters,
        vocabulary_size=len(request.prepared.vocabulary),
        device=measured_device(training.device, training.precision),
    )


def _runs(runs_dir: str | Path | None) -> Path:
    return default_runs_dir() if runs_dir is None else Path(runs_dir)


def _spec(model: str | Path | RunFolder | Run) -> str:
    """Return what names a model on the command line too."""
    if isinstance(model, Run):
        model = model.folder
    return str(model.path.absolute() if isinstance(model, RunFolder) else model)


def _start(model: str | Path | RunFolder | Run | Model, runs_dir: Path) -> Start:
    if isinstance(model, Model):
        return Start(model._loaded, "model")
    return start_from(_spec(model), runs_dir, say=_logger.warning)


def _is_text(text: str | Path) -> bool:
    return isinstance(text, str) and ("\n" in text or len(text) > LONGEST_PATH)


@contextmanager
def _as_corpus(text: str | Path) -> Iterator[str]:
    """Yield the name of a corpus; of a text that of a file that lasts as long as the block."""
    if not _is_text(text):
        yield str(text)
        return
    try:
        data = str(text).encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"The text has half a character at {error.start:,}, which no encoding has; drop it."
        ) from None
    with tempfile.TemporaryDirectory(prefix="megatron-") as folder:
        path = Path(folder) / "text.txt"
        path.write_bytes(data)
        yield str(path)


def _placed(request: Request, place: Path) -> Request:
    """Return the request with its corpus at another place."""
    config = with_settings(request.config, {"data.corpus": str(place)})
    return request._replace(config=config)
