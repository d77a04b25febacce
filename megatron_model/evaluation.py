"""The loss over a whole split, walked in order: the same number every time for the same weights."""

from __future__ import annotations

import math
from collections.abc import Generator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.dataset import TokenArray

CHARACTERS_AT_ONCE = 8192


def sequence_loss(logits: Tensor, targets: Tensor, *, reduction: str = "mean") -> Tensor:
    """Return the cross entropy in nats per character of logits (B, T, V) against targets (B, T)."""
    return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)


def bits_per_character(loss: float) -> float:
    """Turn nats per character into bits per character."""
    return loss / math.log(2)


def evaluate_steps(
    model: nn.Module,
    tokens: TokenArray,
    *,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Generator[float, None, float]:
    """Walk `tokens` in contiguous blocks; yield the share done, return the mean loss in nats.

    Every character but the first is predicted once, from at most `block_size` characters before it;
    the last block may be shorter. The model's mode (training or not) is restored, also when the
    caller stops early.
    """
    predicted = len(tokens) - 1
    rows = max(1, CHARACTERS_AT_ONCE // block_size)
    was_training = model.training
    model.eval()
    total = 0.0
    try:
        whole = predicted // block_size
        for first in range(0, whole, rows):
            count = min(rows, whole - first)
            start = first * block_size
            total += _block_loss(model, tokens, start, count, block_size, device, dtype)
            yield (start + count * block_size) / predicted
        rest = predicted - whole * block_size
        if rest:
            total += _block_loss(model, tokens, whole * block_size, 1, rest, device, dtype)
            yield 1.0
    finally:
        model.train(was_training)
    return total / predicted


def evaluate_loss(
    model: nn.Module,
    tokens: TokenArray,
    *,
    block_size: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Return the mean loss over `tokens`, in nats per character; see `evaluate_steps`."""
    steps = evaluate_steps(model, tokens, block_size=block_size, device=device, dtype=dtype)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return float(end.value)


@torch.no_grad()
def _block_loss(
    model: nn.Module,
    tokens: TokenArray,
    start: int,
    rows: int,
    length: int,
    device: torch.device,
    dtype: torch.dtype,
) -> float:
    """Return the summed loss of `rows` blocks of `length` characters from `start`."""
    chunk = np.array(tokens[start : start + rows * length + 1]).astype(np.int64)
    inputs = torch.from_numpy(chunk[:-1].reshape(rows, length)).to(device)
    targets = torch.from_numpy(chunk[1:].reshape(rows, length)).to(device)
    with torch.autocast(device.type, dtype=dtype, enabled=dtype != torch.float32):
        logits = model(inputs)
    return float(sequence_loss(logits, targets, reduction="sum").double())
