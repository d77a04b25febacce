"""Causal attention, in the formulation that is fastest where it runs.

Shapes: B sequences, H heads, T positions, D numbers per head.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Let every position read itself and the positions before it.

    ``softmax(Q K^T / sqrt(D)) V`` with later positions masked (Vaswani et al. 2017, section 3.2.1).

    Args:
        query, key, value: (B, H, T, D).
        dropout: share of the attention weights dropped; 0 outside training.

    Returns:
        (B, H, T, D).
    """
    if query.device.type == "cpu" and query.dtype == torch.bfloat16:
        # The fused kernel's backward pass is several times slower than plain products here.
        return _plain_attention(query, key, value, dropout)
    return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)


def _plain_attention(query: Tensor, key: Tensor, value: Tensor, dropout: float) -> Tensor:
    length = query.size(-2)
    scores = (query @ key.transpose(-2, -1)) * (1.0 / math.sqrt(query.size(-1)))  # (B, H, T, T)
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    weights = scores.masked_fill(later, float("-inf")).softmax(dim=-1)
    if dropout:
        weights = F.dropout(weights, dropout)
    return weights @ value
