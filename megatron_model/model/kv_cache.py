"""What a model remembers of the characters it has read, so that the next one costs one position.

Everything is allocated once. The classic model needs keys and values alone; the modern one also
what its layers mix in of the two positions before, and the character before.

Shapes: L layers, S streams, H heads, D numbers per head, N = block_size, C = embed_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_model.model.size import MIXED_BEFORE


class Cache:
    """The memory of some streams that are read in step.

    Args:
        layers, streams, heads, width, block_size: see the shapes above.
        like: one of the model's weights, whose device and arithmetic are taken.
        mixes: whether the layers mix in what was at the positions before (the modern architecture).
    """

    def __init__(
        self,
        *,
        layers: int,
        streams: int,
        heads: int,
        width: int,
        block_size: int,
        like: Tensor,
        mixes: bool,
    ) -> None:
        depth = width // heads

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, device=like.device, dtype=like.dtype)

        # Keys lie with the positions side by side: scores of many positions are then one product.
        self.keys = zeros(layers, streams, heads, depth, block_size)
        self.values = zeros(layers, streams, heads, block_size, depth)
        # Of both halves of a layer, the last position but one first.
        self.before = zeros(layers, 2, streams, MIXED_BEFORE if mixes else 0, width)
        self.previous = torch.full((streams,), -1, device=like.device)
        """The last character read, -1 at the beginning."""
        self.length = 0
        """Positions read so far."""
        self.watched: list[Tensor] | None = None
        """Where it is a list, each layer adds its attention weights (S, H, T, length)."""

    def clear(self) -> None:
        """Forget everything that was read."""
        self.length = 0
        self.before.zero_()
        self.previous.fill_(-1)

    def spread(self) -> None:
        """Let all streams remember what the first one does."""
        self.keys[:, 1:, :, :, : self.length] = self.keys[:, :1, :, :, : self.length]
        self.values[:, 1:, :, : self.length] = self.values[:, :1, :, : self.length]
        self.before[:, :, 1:] = self.before[:, :, :1]
        self.previous[1:] = self.previous[0]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        """Keep what a layer's new positions offer, and mix what they attend to.

        Fewer sequences than streams stand for streams that are all alike.

        Args:
            layer: which.
            query, key, value: (S, H, T, D); the query is scaled.
            bias: added to the scores (..., T, length + T), -inf where a position may not look.

        Returns:
            (S, T, C).
        """
        batch, _, count, _ = query.shape
        start, end = self.length, self.length + count
        self.keys[layer, :, :, :, start:end] = key.transpose(2, 3)
        self.values[layer, :, :, start:end] = value
        scores = query @ self.keys[layer, :batch, :, :, :end] + bias
        weights = scores.softmax(-1)
        if self.watched is not None:
            self.watched.append(weights)
        mixed = weights @ self.values[layer, :batch, :, :end]
        return mixed.transpose(1, 2).reshape(batch, count, -1)

    def with_before(self, layer: int, half: int, x: Tensor) -> Tensor:
        """Return the positions before, then `x`, whose last ones are kept: (S, 2 + T, C)."""
        kept = self.before[layer, half]
        whole = torch.cat([kept[: x.size(0)], x], dim=1)
        kept.copy_(whole[:, -MIXED_BEFORE:].expand_as(kept))
        return whole
