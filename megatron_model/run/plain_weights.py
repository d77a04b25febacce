"""Plain weights: a state dict of the classic model, such as the original program wrote.

Its shapes tell the size of the model. The vocabulary is that of the text it was trained on, and the
number of heads is the one with which it predicts that text best: neither is in the file. Nothing in
it is executed.
"""

from __future__ import annotations

import math
import pickle
from pathlib import Path

import numpy as np
import torch
from msgspec import structs
from torch import Tensor

from megatron_model.config.fields import DataConfig, ModelConfig, RunConfig
from megatron_model.data.corpus import find_corpus
from megatron_model.data.token_cache import prepare_now
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.model.factory import empty_model, misfit, shapes_of
from megatron_model.run.checkpoint import ModelState
from megatron_model.run.folder import FINAL_WEIGHTS_FILE, RUN_FILE
from megatron_model.training.loss import evaluate_loss
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

TRIED = 1024
"""Characters by which numbers of heads are told apart."""
CLEARLY = 0.99
"""Share of the loss with the usual number of heads that another number has to stay below."""
_COMPILED = "_orig_mod."
"""What torch.compile puts before the names of weights."""


def load_plain(path: Path, corpus: str | None) -> ModelState:
    """Read the weights of a classic model, and take the vocabulary from its text.

    Args:
        path: a file that ``torch.save(model.state_dict(), path)`` wrote.
        corpus: the text that the model was trained on.

    Raises:
        RequestError: it is no such file, or the text is not the model's.
    """
    where = safe(str(path), one_line=True)
    if corpus is None:
        if path.name == FINAL_WEIGHTS_FILE and (path.absolute().parent / RUN_FILE).is_file():
            run = safe(str(path.parent), one_line=True)
            raise RequestError(f"{where} has no vocabulary; name its run instead: {run}.")
        raise RequestError(
            f"{where} has no vocabulary; name the text that it was trained on: sample --corpus "
            "TEXT, evaluate FILE TEXT, train --from-corpus TEXT, load(corpus=TEXT)."
        )
    weights = _read(path, where)
    shape = _shape_of(weights, where)
    source = find_corpus(corpus)
    prepared = prepare_now(source)
    count, known = weights["token_embedding.weight"].size(0), len(prepared.vocabulary)
    if count != known:
        raise RequestError(
            f"{where} knows {count:,} characters, and {safe(corpus, one_line=True)} has {known:,}: "
            "it is not the text that the model was trained on."
        )
    tokens = np.asarray(prepared.tokens[: TRIED + 1])
    shape = structs.replace(shape, heads=_heads(weights, shape, tokens))
    config = RunConfig(model=shape, data=DataConfig(corpus=source.location))
    return ModelState(weights, CharTokenizer.from_vocabulary(prepared.vocabulary), config, 0, None)


def _read(path: Path, where: str) -> dict[str, Tensor]:
    try:
        # Mapped, not read: what it claims to hold costs no memory before it was looked at.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise RequestError(f"{where} does not exist.") from None
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError):
        raise RequestError(
            f"{where} holds no plain weights: it is not what torch.save(model.state_dict(), ...) "
            "writes, or it is damaged."
        ) from None
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise RequestError(
            f"{where} holds something else than plain weights; save model.state_dict() alone."
        )
    return {name.removeprefix(_COMPILED): value for name, value in found.items()}


def _shape_of(weights: dict[str, Tensor], where: str) -> ModelConfig:
    """Return the shape of the model, its heads aside.

    Raises:
        RequestError: the weights are not those of a classic model; the first that differs is named.
    """
    try:
        vocab_size, width = weights["token_embedding.weight"].shape
        block_size, _ = weights["position_embedding.weight"].shape
        ff_dim, _ = weights["blocks.0.feed_forward.0.weight"].shape
    except (KeyError, ValueError):
        raise RequestError(
            f"{where} does not hold the weights of a classic model (token_embedding.weight, "
            "position_embedding.weight, blocks.0. ...)."
        ) from None
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    shape = ModelConfig(
        block_size=block_size, embed_dim=width, heads=1, layers=layers, ff_dim=ff_dim
    )
    if found := misfit(shapes_of(weights), shape, vocab_size):
        name, there, wanted = found
        raise RequestError(
            f"{where} does not hold the weights of a classic model: "
            f"{safe(name, one_line=True)[:100]} is {there}, and should be {wanted}."
        )
    for name, value in weights.items():
        if not value.is_floating_point() or not bool(value.isfinite().all()):
            raise RequestError(f"{where} has weights that are no finite numbers: {name}.")
        weights[name] = value.float()
    return shape


def _heads(weights: dict[str, Tensor], shape: ModelConfig, tokens: np.ndarray) -> int:
    """Return the number of heads with which the model predicts its own text best.

    The weights have the same shapes with any: only what they predict tells. The number that the
    original program had is taken unless another is clearly better.
    """
    usual = ModelConfig().heads
    divisors = [heads for heads in range(1, shape.embed_dim + 1) if shape.embed_dim % heads == 0]
    losses = {}
    for heads in divisors:
        vocab_size = weights["token_embedding.weight"].size(0)
        model = empty_model(structs.replace(shape, heads=heads), vocab_size)
        model.load_state_dict(weights)
        losses[heads] = evaluate_loss(
            model,
            tokens,
            block_size=shape.block_size,
            device=torch.device("cpu"),
            dtype=torch.float32,
        )
    best = min(losses, key=losses.__getitem__)
    return best if losses[best] < CLEARLY * losses.get(usual, math.inf) else usual
