"""Checkpoints: a model file that is enough by itself, and beside it what an exact resume needs.

Weights and state are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from megatron_model.architectures import build_model
from megatron_model.config import RunConfig, SamplingConfig, config_from_builtins
from megatron_model.device import choose_device
from megatron_model.errors import RequestError
from megatron_model.files import is_unharmed, whole_folder, write_atomically
from megatron_model.run_folder import MODEL_FILE, TRAINING_FILE
from megatron_model.sampling import generate_stream
from megatron_model.text import safe
from megatron_model.tokenizer import CharTokenizer

TRAINING_TENSORS_FILE = "training.safetensors"
_METADATA_KEY = "megatron"


@dataclass(frozen=True)
class LoadedModel:
    """A model with everything needed to write with it."""

    model: nn.Module
    tokenizer: CharTokenizer
    config: RunConfig
    step: int
    val_loss: float | None
    device: torch.device

    @property
    def block_size(self) -> int:
        """How many characters it can see at once."""
        return self.config.model.block_size

    def stream(self, prompt: str, sampling: SamplingConfig, written: str = "") -> Iterator[str]:
        """Yield the characters that go on from `prompt` and what was `written` after it."""
        return generate_stream(self.model, self.tokenizer, prompt, sampling, written=written)


@dataclass(frozen=True)
class TrainingState:
    """What a trainer needs to go on as if it had never stopped: named tensors and numbers."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Snapshot:
    """All that goes into a checkpoint."""

    weights: dict[str, Tensor]
    tokenizer: CharTokenizer
    config: RunConfig
    training: TrainingState

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        tensors = [*self.weights.values(), *self.training.tensors.values()]
        return sum(value.numel() * value.element_size() for value in tensors)

    def copy(self) -> Snapshot:
        """Return a copy on the host that training cannot reach."""
        state = TrainingState(_copies(self.training.tensors), dict(self.training.numbers))
        return Snapshot(_copies(self.weights), self.tokenizer, self.config, state)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def take_snapshot(
    model: nn.Module, tokenizer: CharTokenizer, config: RunConfig, training: TrainingState
) -> Snapshot:
    """Return what a checkpoint of now consists of; it shares its tensors with the model."""
    return Snapshot(model.state_dict(), tokenizer, config, training)


def save_checkpoint(
    path: Path,
    *,
    model: nn.Module,
    tokenizer: CharTokenizer,
    config: RunConfig,
    training: TrainingState,
) -> None:
    """Write the checkpoint folder `path`, whole or not at all.

    Args:
        path: ``.../checkpoints/step-00002000``.
        model: its weights are written as they are.
        tokenizer: goes into the model file's metadata, with `config`.
        config: what was asked of the run.
        training: the trainer's state; ``numbers`` has ``step`` and ``val_loss``.
    """
    write_checkpoint(path, take_snapshot(model, tokenizer, config, training))


def write_checkpoint(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot into the checkpoint folder `path`, whole or not at all."""
    numbers = snapshot.training.numbers
    about = {
        "config": msgspec.to_builtins(snapshot.config),
        "vocabulary": snapshot.tokenizer.vocabulary,
        "step": int(numbers["step"]),
        "val_loss": numbers["val_loss"],
    }
    with whole_folder(path) as folder:
        _save_tensors(
            folder / MODEL_FILE, snapshot.weights, metadata={_METADATA_KEY: json.dumps(about)}
        )
        _save_tensors(folder / TRAINING_TENSORS_FILE, snapshot.training.tensors)
        (folder / TRAINING_FILE).write_text(json.dumps(numbers, indent=2), encoding="utf-8")


def _save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    try:
        save_file(
            {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
            path,
            metadata=metadata,
        )
    except SafetensorError as error:  # a full disk, most of all
        raise OSError(errno.EIO, safe(str(error), one_line=True), str(path)) from None


def load_model(path: Path, device: str = "auto") -> LoadedModel:
    """Read a model file and build the model it describes, ready to write.

    Raises:
        RequestError: the file is missing, damaged, not ours, or its weights do not fit its
            configuration.
    """
    where = safe(str(path))
    about = _read_metadata(path)
    try:
        config = config_from_builtins(about["config"])
        tokenizer = CharTokenizer.from_vocabulary(about["vocabulary"])
        step = int(about["step"])
        val_loss = None if about["val_loss"] is None else float(about["val_loss"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = safe(str(error), one_line=True)
        raise RequestError(f"{where} does not describe a model: {reason}") from None
    target = choose_device(device)
    # On the meta device nothing is allocated: a header that promises terabytes costs nothing.
    with torch.device("meta"):
        expected = build_model(config.model, tokenizer.vocab_size)
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{where} is damaged: {safe(str(error))}.") from None
    _check_shapes(where, expected, weights)
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise RequestError(f"{where} has weights that are no finite numbers.")
    model = build_model(config.model, tokenizer.vocab_size)
    model.load_state_dict(weights)
    model.to(target).eval()
    return LoadedModel(model, tokenizer, config, step, val_loss, target)


def load_training(path: Path) -> TrainingState:
    """Read the trainer's state from the checkpoint folder `path`.

    Raises:
        RequestError: it is missing or damaged.
    """
    try:
        for name in (TRAINING_FILE, TRAINING_TENSORS_FILE):
            _check_sum(path / name)
        numbers = json.loads((path / TRAINING_FILE).read_text(encoding="utf-8"))
        tensors = load_file(path / TRAINING_TENSORS_FILE)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise RequestError(f"{safe(str(path))} is damaged: {safe(str(error))}.") from None
    return TrainingState(tensors, numbers)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights alone from the checkpoint folder `path`.

    Raises:
        RequestError: the file is missing or damaged.
    """
    try:
        _check_sum(path / MODEL_FILE)
        return load_file(path / MODEL_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(
            f"{safe(str(path / MODEL_FILE))} is damaged: {safe(str(error))}."
        ) from None


def _check_sum(path: Path) -> None:
    if not is_unharmed(path):
        raise ValueError(f"{path.name} is not what was saved (its checksum differs)")


def save_plain_weights(path: Path, weights: dict[str, Tensor], *, mode: int = 0o600) -> None:
    """Write a plain state dict for ``torch.load``, whole or not at all."""
    import io

    buffer = io.BytesIO()
    torch.save(weights, buffer)
    write_atomically(path, buffer.getvalue(), mode=mode)


def _read_metadata(path: Path) -> dict[str, Any]:
    where = safe(str(path))
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise RequestError(f"{where} does not exist.") from None
    except (OSError, SafetensorError) as error:
        raise RequestError(
            f"{where} is not a readable .safetensors file: {safe(str(error))}."
        ) from None
    try:
        about = json.loads(metadata[_METADATA_KEY])
    except (KeyError, ValueError, RecursionError):
        raise RequestError(
            f"{where} carries no configuration and vocabulary; it was not written by this program."
        ) from None
    if not isinstance(about, dict):
        raise RequestError(f"{where} does not describe a model.")
    return about


def _check_shapes(where: str, expected: nn.Module, weights: dict[str, Tensor]) -> None:
    wanted = {name: tuple(value.shape) for name, value in expected.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    if wanted != found:
        name = sorted(
            name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)
        )[0]
        raise RequestError(
            f"{where} does not fit its own configuration: {safe(name)} is "
            f"{found.get(name, 'missing')}, not {wanted.get(name, 'there at all')}."
        )
