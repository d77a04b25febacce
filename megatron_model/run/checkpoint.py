"""Checkpoints: a model file that is enough by itself, and beside it what an exact resume needs.

Weights and state are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import torch
from msgspec import structs
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from megatron_model.config.fields import RunConfig, SamplingConfig, recorded_config
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.device import choose_device
from megatron_model.inference.sampler import generate_stream
from megatron_model.model.factory import empty_model, misfit
from megatron_model.model.size import count_parameters
from megatron_model.run.folder import MODEL_FILE, TRAINING_FILE
from megatron_model.training.state import Scalars, TrainingState
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded, whole_folder, why_harmed, write_atomically
from megatron_model.util.text import safe

TRAINING_TENSORS_FILE = "training.safetensors"
_METADATA_KEY = "megatron"
_KINDS = ("F32", "F64", "BF16", "F16")
"""Kinds of weights that are read, as safetensors calls them."""
_MANY_TIMES = 100
"""So many times more weights than there are: the configuration is not of this file at all."""


@dataclass(frozen=True)
class ModelState:
    """What a model can be built from, on the host: its weights and all that belongs to them."""

    weights: dict[str, Tensor]
    tokenizer: CharTokenizer
    config: RunConfig
    step: int
    val_loss: float | None

    def load(self, device: torch.device) -> LoadedModel:
        """Build the model on `device`, ready to write."""
        model = empty_model(self.config.model, self.tokenizer.vocab_size)
        model.load_state_dict(self.weights)
        # It is not trained: see `inference.precision`.
        model.to(device).eval().requires_grad_(False)
        return LoadedModel(model, self.tokenizer, self.config, self.step, self.val_loss, device)


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
class Snapshot:
    """All that goes into a checkpoint."""

    weights: dict[str, Tensor]
    tokenizer: CharTokenizer
    config: RunConfig
    training: TrainingState
    run: str = ""
    """Identity of the run; see `RunFolder.read_identity`."""

    @property
    def size(self) -> int:
        """Bytes of its tensors."""
        tensors = [*self.weights.values(), *self.training.tensors.values()]
        return sum(value.numel() * value.element_size() for value in tensors)

    def copy(self) -> Snapshot:
        """Return a copy on the host that training cannot change."""
        state = TrainingState(copies_on_host(self.training.tensors), self.training.scalars)
        return Snapshot(copies_on_host(self.weights), self.tokenizer, self.config, state, self.run)


def copies_on_host(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies that training cannot change."""
    return {name: value.detach().to("cpu", copy=True) for name, value in tensors.items()}


def write_checkpoint(path: Path, snapshot: Snapshot) -> None:
    """Write a snapshot into the checkpoint folder `path`, whole or not at all.

    Args:
        path: ``.../checkpoints/step-00002000``.
        snapshot: its weights are written as they are; its configuration and vocabulary go into the
            model file's metadata.
    """
    scalars = snapshot.training.scalars
    numbers = {**structs.asdict(scalars), **({"run": snapshot.run} if snapshot.run else {})}
    model = ModelState(
        snapshot.weights, snapshot.tokenizer, snapshot.config, scalars.step, scalars.val_loss
    )
    with whole_folder(path) as folder:
        _save_model(folder / MODEL_FILE, model)
        _save_tensors(folder / TRAINING_TENSORS_FILE, snapshot.training.tensors)
        (folder / TRAINING_FILE).write_text(json.dumps(numbers, indent=2), encoding="utf-8")


def write_start(path: Path, model: ModelState) -> None:
    """Write what a run begins with into the checkpoint folder `path`: weights without a state."""
    with whole_folder(path) as folder:
        _save_model(folder / MODEL_FILE, model)


def write_model(path: Path, model: ModelState) -> None:
    """Write a model file that is enough by itself, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    weights = copies_on_host(model.weights)
    write_atomically(path, save(weights, metadata=_metadata(model)), mode=0o666)


def _save_model(path: Path, model: ModelState) -> None:
    _save_tensors(path, model.weights, metadata=_metadata(model))


def _metadata(model: ModelState) -> dict[str, str]:
    about = {
        "config": msgspec.to_builtins(model.config),
        "vocabulary": model.tokenizer.vocabulary,
        "step": model.step,
        "val_loss": model.val_loss,
    }
    return {_METADATA_KEY: json.dumps(about), "format": "pt"}  # as others expect to find it


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


def load_model(path: Path, device: str = "auto", *, corpus: str | None = None) -> LoadedModel:
    """Read a model file and build the model it describes, ready to write.

    Plain weights in a .pt file say nothing of their vocabulary: it is that of the `corpus` they
    were trained on; see plain_weights.py.

    Raises:
        RequestError: the file is missing, damaged, not ours, or its weights do not fit its
            configuration.
    """
    if path.suffix == ".pt":
        from megatron_model.run.plain_weights import load_plain

        return load_plain(path, corpus).load(choose_device(device))
    if corpus is not None:
        raise RequestError(
            f"{safe(str(path))} carries its vocabulary; a corpus is named for a .pt file alone."
        )
    try:
        return _load(path, device)
    except RequestError:
        # Whatever was wrong: where it is not what was saved, it is skipped from now on.
        with contextlib.suppress(OSError):
            why_harmed(path)
        raise


def _load(path: Path, device: str) -> LoadedModel:
    where = safe(str(path))
    about = _read_metadata(path)
    try:
        config = recorded_config(about["config"])
        tokenizer = CharTokenizer.from_vocabulary(about["vocabulary"])
        step = int(about["step"])
        val_loss = None if about["val_loss"] is None else float(about["val_loss"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        reason = safe(str(error), one_line=True)
        raise RequestError(f"{where} does not describe a model: {reason}") from None
    target = choose_device(device)
    _check_header(path, config, tokenizer.vocab_size)
    try:
        weights = load_file(path)
        _check_sum(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(f"{where} is damaged: {safe(str(error))}.") from None
    weights = {name: value.float() for name, value in weights.items()}
    if not all(bool(value.isfinite().all()) for value in weights.values()):
        raise RequestError(f"{where} has weights that are NaN or infinity in float32.")
    return ModelState(weights, tokenizer, config, step, val_loss).load(target)


def load_training(path: Path) -> TrainingState:
    """Read the trainer's state from the checkpoint folder `path`.

    Raises:
        RequestError: it is missing or damaged.
    """
    try:
        for name in (TRAINING_FILE, TRAINING_TENSORS_FILE):
            _check_sum(path / name)
        scalars = msgspec.convert(json.loads(read_bounded(path / TRAINING_FILE)), Scalars)
        tensors = load_file(path / TRAINING_TENSORS_FILE)
    except (
        OSError,
        ValueError,
        RecursionError,
        SafetensorError,
        msgspec.ValidationError,
    ) as error:
        raise RequestError(f"{safe(str(path))} is damaged: {safe(str(error))}.") from None
    return TrainingState(tensors, scalars)


def load_weights(path: Path) -> dict[str, Tensor]:
    """Read the weights alone from the checkpoint folder `path`.

    Raises:
        RequestError: the file is missing or damaged.
    """
    try:
        _check_sum(path / MODEL_FILE)
        with safe_open(path / MODEL_FILE, framework="pt") as file:
            kinds = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        _check_kinds(safe(str(path / MODEL_FILE)), kinds)
        return load_file(path / MODEL_FILE)
    except RequestError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise RequestError(
            f"{safe(str(path / MODEL_FILE))} is damaged: {safe(str(error))}."
        ) from None


def _check_kinds(where: str, kinds: Mapping[str, str]) -> None:
    """Refuse numbers that no model of ours has: they would be cast silently."""
    for name, kind in kinds.items():
        if kind not in _KINDS:
            raise RequestError(
                f"{where} has weights of the kind {safe(kind)} "
                f"({safe(name, one_line=True)[:100]}); convert them to one of {', '.join(_KINDS)}."
            )


def _check_sum(path: Path) -> None:
    if why := why_harmed(path):
        raise ValueError(f"{path.name} is not what was saved ({why})")


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


def _check_header(path: Path, config: RunConfig, vocab_size: int) -> None:
    """Compare what the header of a model file promises with its configuration.

    Nothing is allocated for either: what stands in them costs no memory before it is checked.
    """
    where = safe(str(path))
    found: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, str] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - it is not a dictionary
                part = file.get_slice(name)
                found[name], kinds[name] = tuple(part.get_shape()), part.get_dtype()
    except (OSError, SafetensorError) as error:
        raise RequestError(f"{where} is damaged: {safe(str(error))}.") from None
    _check_kinds(where, kinds)
    there = sum(math.prod(shape) for shape in found.values())
    # Even without memory, a model takes time to be described: ten thousand layers half a minute.
    if count_parameters(config.model, vocab_size) > _MANY_TIMES * max(there, 1):
        raise RequestError(
            f"{where} does not fit its own configuration: it has {there:,} weights, not "
            f"{count_parameters(config.model, vocab_size):,}."
        )
    if wrong := misfit(found, config.model, vocab_size):
        name, shape, wanted = wrong
        raise RequestError(
            f"{where} does not fit its own configuration: {safe(name, one_line=True)[:100]} is "
            f"{shape}, but should be {wanted}."
        )
