"""Filling in the middle: what a model may have written between two texts.

A model here reads from left to right alone, so it cannot write towards an end. It writes several
texts after the beginning, and each of them, cut after every character, is judged by how likely the
model then holds what comes after the gap.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from megatron_model.config.fields import SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.sampler import (
    check_finite,
    generate_batch,
    several,
    start_tokens,
)
from megatron_model.training.loss import rows_at_once
from megatron_model.util.errors import RequestError

TRIES = 16
"""Texts that are written after the beginning."""
LONGEST = 60
"""Characters of a gap at most: each is a place to cut at, and read once for every try."""


class Filling(msgspec.Struct, frozen=True):
    """What may stand in the gap, and how well the text after it follows."""

    middle: str
    log_probability: float
    """Of a character of the text after the gap, on average."""


def fill(
    model: nn.Module,
    tokenizer: CharTokenizer,
    before: str,
    after: str,
    sampling: SamplingConfig,
    *,
    tries: int = TRIES,
) -> Iterator[Filling]:
    """Yield what may stand between two texts, a few at a time, in no order.

    The gap is at most `LONGEST` characters, and no longer than `sampling` says. Of `after` as much
    is judged by as half of what the model sees at once.

    Raises:
        UnknownCharacterError: a text has characters outside the vocabulary.
        RequestError: nothing comes after the gap.
    """
    if not after:
        raise RequestError("Nothing comes after the gap; a text to go on with needs no filling.")
    block_size = int(model.block_size)  # type: ignore[arg-type]
    goal = tokenizer.encode(after)[: max(1, block_size // 2)]
    start = start_tokens(tokenizer, before)
    length = min(LONGEST, sampling.max_new_tokens)
    ways = several(msgspec.structs.replace(sampling, max_new_tokens=length, stop=""), tries)
    columns = list(generate_batch(model, tokenizer, before, ways))
    middles = {""}
    for text in map("".join, zip(*columns, strict=True)):
        middles |= {text[:cut] for cut in range(1, len(text) + 1)}
    asked = sorted(middles, key=lambda middle: (len(middle), middle))
    at_once = rows_at_once(block_size)
    for first in range(0, len(asked), at_once):
        part = asked[first : first + at_once]
        rows = [[*start, *tokenizer.encode(middle), *goal][-block_size - 1 :] for middle in part]
        for middle, score in zip(part, _scores(model, rows, len(goal)), strict=True):
            yield Filling(middle, float(score))


@torch.no_grad()
def _scores(model: nn.Module, rows: list[list[int]], goal: int) -> NDArray[np.float64]:
    """Return how likely each row's last `goal` tokens are, on average, from those before them."""
    longest = max(map(len, rows))
    # Padded behind their ends, which nothing before them sees.
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    for place, row in enumerate(rows):
        tokens[place, : len(row)] = torch.tensor(row)
    was_training = model.training
    model.eval()
    try:
        device = next(model.parameters()).device
        logits = model(tokens[:, :-1].to(device)).float()
        found = logits.log_softmax(-1).gather(-1, tokens[:, 1:, None].to(device))[..., 0]
        numbers: NDArray[np.float32] = found.cpu().numpy()
    finally:
        model.train(was_training)
    scores = [numbers[place, len(row) - 1 - goal : len(row) - 1] for place, row in enumerate(rows)]
    means = np.array([score.mean(dtype=np.float64) for score in scores])
    check_finite(means.astype(np.float32))
    return means
