"""The weights a run begins with: drawn, and then made to know the text's pairs of characters.

A model whose layers still add nothing predicts from one character the next. What it would learn of
that in its first hundred steps stands in a table of counts: the head is the least-squares solution
that reads it out of the drawn embedding. Measured at equal steps in ``docs/figures.md``.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_model.config.fields import RunConfig
from megatron_model.data.batches import TokenArray
from megatron_model.model.classic import TransformerModel
from megatron_model.model.factory import build_model
from megatron_model.model.modern import ModernTransformer

COUNTED = 1 << 21
"""Characters of which the pairs are counted: a fraction of a second; more change little."""

RIDGE = 0.3
"""Weight of small numbers against the fit, in shares of the features' variance.

A close fit needs large weights, which training then has to undo; measured from 0.03 to 0.3.
"""


PAIRS_AT_ONCE = 1 << 14
"""Pairs of which the rows are in memory at once."""


def started_model(
    config: RunConfig, vocab_size: int, train: TokenArray
) -> TransformerModel | ModernTransformer:
    """Build the model on the CPU as ``training.seed`` and ``training.start`` say.

    The weights are drawn on the CPU, so that a seed means the same model on every device.
    """
    torch.manual_seed(config.training.seed)
    model = build_model(config.model, vocab_size)
    if config.training.start == "pairs" and isinstance(model, ModernTransformer):
        start_from_pairs(model, train)
    return model


@torch.no_grad()
def start_from_pairs(model: ModernTransformer, train: TokenArray) -> None:
    """Set the head so that the model begins near the conditional entropy of a character.

    For characters a and b with counts c(a, b), the target is the logarithm of the interpolated
    probability (Witten and Bell 1991; Chen and Goodman 1999, section 2.4),
    P(b|a) = (c(a, b) + k(a) p(b)) / (c(a) + k(a)), where k(a) characters differ among those after
    a, and p is the frequency alone. But for what depends on a alone, which a softmax does not see,
    log P(b|a) = log p(b) + log(1 + c(a, b) / (k(a) p(b))): the second part is zero for pairs never
    seen, so that this costs no table of V x V numbers.

    Args:
        model: as it was drawn, its layers adding nothing; its head is replaced.
        train: token ids of the training split.
    """
    size, width = model.vocab_size, model.token_embedding.size(1)
    tokens = torch.from_numpy(np.asarray(train[:COUNTED], dtype=np.int64))
    pairs, counts = torch.unique(tokens[:-1] * size + tokens[1:], return_counts=True)
    first, second = pairs // size, pairs % size
    frequency = (torch.bincount(tokens, minlength=size) + 1).double()
    frequency /= frequency.sum()
    kinds = torch.bincount(first, minlength=size).double()
    lift = torch.log1p(counts / (kinds[first] * frequency[second]))

    features = _features(model).double()  # (V, C)
    weighted = frequency[:, None] * features
    target = features.new_zeros(size, width)  # of b: the sum over a of p(a) lift(a, b) features(a)
    for begin in range(0, len(pairs), PAIRS_AT_ONCE):
        part = slice(begin, begin + PAIRS_AT_ONCE)
        rows = lift[part, None] * weighted[first[part]]
        target.index_add_(0, second[part], rows)
    logarithm = frequency.log()
    target += (logarithm - logarithm.mean())[:, None] * weighted.sum(0)
    spread = features.T @ weighted + RIDGE * torch.eye(width, dtype=features.dtype)
    model.head.copy_(torch.linalg.solve(spread, target.T).T)


def _features(model: ModernTransformer) -> Tensor:
    """Return what the head reads after each character while the layers add nothing: (V, C)."""
    x: Tensor = model.token_embedding
    for _ in range(2):  # once after the embedding, once ahead of the head
        x = F.layer_norm(x, (x.size(-1),))
    return x
