"""The loss over a whole split, walked in order: the same number every time for the same weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.data.batches import TokenArray
from megatron_model.data.token_cache import check_whole

CHARACTERS_AT_ONCE = 4096
"""Characters that are evaluated together on a CPU, whose caches they should not outgrow."""
MOST_AT_ONCE = 65536
"""Characters that are evaluated together on an accelerator, if a step has so many."""

BlockLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""From inputs (B, T) and targets (B, T) to the sum of their losses in nats."""


def sequence_loss(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the cross entropy in nats per character of logits (B, T, V) against targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def bits_per_character(loss: float) -> float:
    """Turn nats per character into bits per character."""
    return loss / math.log(2)


def rows_at_once(block_size: int, characters: int = CHARACTERS_AT_ONCE) -> int:
    """Return how many blocks are evaluated together, of so many characters in all."""
    return max(1, characters // block_size)


def characters_at_once(device: torch.device, in_step: int) -> int:
    """Return how many characters are evaluated together.

    Args:
        device: what evaluates them.
        in_step: characters that a step works on at once, for which there is memory.
    """
    if device.type == "cpu":
        return CHARACTERS_AT_ONCE
    return max(CHARACTERS_AT_ONCE, min(MOST_AT_ONCE, in_step))


def eager_loss(model: nn.Module, dtype: torch.dtype) -> BlockLoss:
    """Return the summed loss of blocks, computed by torch operation by operation."""

    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        with (
            torch.no_grad(),
            torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype != torch.float32),
        ):
            logits = model(inputs)
        return sequence_loss(logits, targets, reduction="sum")

    return loss


def evaluate_steps(
    model: nn.Module,
    tokens: TokenArray,
    *,
    block_size: int,
    device: torch.device,
    block_loss: BlockLoss,
    at_once: int = CHARACTERS_AT_ONCE,
) -> Generator[float, None, float]:
    """Walk `tokens` in contiguous blocks; yield the share done, return the mean loss in nats.

    Every character but the first is predicted once, from at most `block_size` characters before it;
    the last block may be shorter. The model's mode (training or not) is restored, also when the
    caller stops early.

    Args:
        model: its mode is switched to evaluation meanwhile.
        tokens: the whole split.
        block_size: the model's.
        device: the model's.
        block_loss: how the loss of a few blocks is computed.
        at_once: characters that are evaluated together.
    """
    predicted = len(tokens) - 1
    was_training = model.training
    model.eval()
    total = 0.0
    try:
        for piece in pieces(predicted, block_size, at_once):
            total += piece_loss(tokens, piece, device=device, block_loss=block_loss)
            yield piece.end / predicted
    finally:
        model.train(was_training)
    return total / predicted


class Piece(NamedTuple):
    """Some blocks of a split that are evaluated together: characters `start` to `end`."""

    start: int
    end: int
    length: int
    """Characters of each of the blocks."""


def pieces(predicted: int, block_size: int, at_once: int = CHARACTERS_AT_ONCE) -> Iterator[Piece]:
    """Cut the `predicted` characters of a split into what is evaluated together, in order."""
    rows = rows_at_once(block_size, at_once)
    start = 0
    while start < predicted:
        count = min(rows, (predicted - start) // block_size)
        length = block_size if count else predicted - start
        end = start + max(1, count) * length
        yield Piece(start, end, length)
        start = end


def piece_loss(
    tokens: TokenArray, piece: Piece, *, device: torch.device, block_loss: BlockLoss
) -> float:
    """Return the summed loss over one piece of a split."""
    check_whole(tokens)
    chunk = np.array(tokens[piece.start : piece.end + 1]).astype(np.int64)
    inputs = torch.from_numpy(chunk[:-1].reshape(-1, piece.length)).to(device)
    targets = torch.from_numpy(chunk[1:].reshape(-1, piece.length)).to(device)
    return float(block_loss(inputs, targets))


def evaluate_loss(
    model: nn.Module,
    tokens: TokenArray,
    *,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
    block_loss: BlockLoss | None = None,
) -> float:
    """Return the mean loss over `tokens`, in nats per character; see `evaluate_steps`."""
    steps = evaluate_steps(
        model,
        tokens,
        block_size=block_size,
        device=device,
        block_loss=block_loss or eager_loss(model, dtype),
    )
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return float(end.value)
