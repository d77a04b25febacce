"""Reading texts in tensors whose shapes and addresses never change, so that a step can be captured.

The same mathematics as the models' own `extend`, arranged for a card that takes longer to start a
computation than to do one of this size: as few of them as possible, where each looks at all slots
of the memory (those that were not written yet are masked), and positions are tensors of the device.
The products are computed in the arithmetic of the weights; the residual stream, the norms and the
logits stay in float32.

Shapes: S streams, B of them read at once, T positions, C = width, H heads, D = C / H, L layers, N
slots (the block size, rounded up), V characters.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_model.model.classic import Block, TransformerModel
from megatron_model.model.modern import LOGIT_CAP, ModernTransformer, distance_costs

SLOTS_TOGETHER = 16
"""The slots are a multiple of this, which fused attention wants of the rows of its mask."""


class Slots:
    """Keys and values of the positions that some streams have read, and what each may look at.

    Args:
        layers, streams, heads, depth: L, S, H and D.
        block_size: positions that are kept.
        slopes: what a step of distance costs each head, (H,), or (1,) where it is the same for all.
        dtype: of the keys and values.
    """

    def __init__(
        self,
        layers: int,
        streams: int,
        heads: int,
        depth: int,
        block_size: int,
        slopes: Tensor,
        dtype: torch.dtype,
    ) -> None:
        self.count = -(-block_size // SLOTS_TOGETHER) * SLOTS_TOGETHER
        device = slopes.device
        shape = (layers, streams, heads, self.count, depth)
        self.keys = torch.zeros(shape, dtype=dtype, device=device)
        self.values = torch.zeros(shape, dtype=dtype, device=device)
        self._numbers = torch.arange(self.count, device=device)
        distance = torch.arange(self.count - 1, -self.count, -1, device=device)
        strip = -slopes[:, None] * distance.float()
        # Every row of the bias is a part of this: the distances, then what comes later.
        self._strip = strip.masked_fill_(distance < 0, float("-inf")).to(dtype)

    def bias(self, positions: Tensor, reach: int) -> Tensor:
        """Return what is added to the scores of positions (T,): (1, H or 1, T, reach)."""
        places = self._numbers[:reach] - positions[:, None] + (self.count - 1)
        rows = self._strip.index_select(1, places.flatten())
        return rows.view(1, -1, positions.numel(), reach)

    def attend(
        self, layer: int, rows: slice, query: Tensor, key: Tensor, value: Tensor, view: View
    ) -> Tensor:
        """Keep what new positions offer, and mix what they attend to.

        Args:
            layer, rows: whose part of the memory.
            query, key, value: (B, T, H, D).
            view: where they are, and what they may look at.

        Returns:
            (B, T, C).
        """
        keys, values = self.keys[layer, rows], self.values[layer, rows]
        keys.index_copy_(2, view.positions, key.transpose(1, 2))
        values.index_copy_(2, view.positions, value.transpose(1, 2))
        reach = view.bias.size(-1)
        mixed = F.scaled_dot_product_attention(
            query.transpose(1, 2), keys[:, :, :reach], values[:, :, :reach], attn_mask=view.bias
        )
        return mixed.transpose(1, 2).flatten(2)

    def spread(self, length: int) -> None:
        """Let all streams remember what the first one read."""
        for kept in (self.keys, self.values):
            kept[:, 1:, :, :length] = kept[:, :1, :, :length]

    def clear(self) -> None:
        """Forget everything: a NaN in a slot that is masked would be one in the sum."""
        self.keys.zero_()
        self.values.zero_()


class View(NamedTuple):
    """Where new positions are, and what they may look at."""

    positions: Tensor
    """(T,)"""
    bias: Tensor
    """Added to the scores: (1, H or 1, T, slots looked at)."""


class Trail(NamedTuple):
    """What the next position takes from the two before it, beside keys and values."""

    embedding: Tensor
    """Of the character before: (B, 1, C)."""
    pairs: list[tuple[Tensor, Tensor]]
    """Of each half of each layer, what it read one position before and two: each (B, 1, C)."""

    def rows(self, rows: slice) -> Trail:
        """Return the part of some streams."""
        return Trail(
            self.embedding[rows], [(nearer[rows], further[rows]) for nearer, further in self.pairs]
        )

    def tensors(self) -> list[Tensor]:
        """Return all of it, each (B, 1, C); see `trail_of`."""
        return [self.embedding, *(part for pair in self.pairs for part in pair)]


def trail_of(tensors: Tensor) -> Trail:
    """Return what `Trail.tensors` gave, from one tensor (1 + 2 x halves, B, 1, C)."""
    first, *others = tensors.unbind(0)
    return Trail(first, list(zip(others[::2], others[1::2], strict=True)))


class Reader(Protocol):
    """A model that reads into slots."""

    slots: Slots
    halves: int
    """Pairs in a `Trail`."""
    width: int

    def read(self, tokens: Tensor, rows: slice, view: View, trail: Trail) -> tuple[Tensor, Trail]:
        """Read the next characters (B, T) of the streams `rows`.

        Returns:
            The logits (B, V) after the last one, float32, and the trail that the next one needs.
        """


class ModernReader:
    """The modern architecture; `run_layer` of the model says what a layer is.

    Args:
        model: whose weights are read where they lie if they are in `dtype`, and copied otherwise.
        streams: texts that are read at once.
        dtype: of the products, and of what is remembered.
    """

    def __init__(self, model: ModernTransformer, streams: int, dtype: torch.dtype) -> None:
        layers, _, self.width, _ = model.attention.shape
        self.halves = 2 * layers
        self._heads, self._depth, self._dtype = model.heads, self.width // model.heads, dtype
        self._embedding = model.token_embedding.detach()
        self._gate = model.previous_gate.detach()
        self._head = model.head.detach()
        attention, feed_forward = (
            matrices.detach().to(dtype) for matrices in (model.attention, model.feed_forward)
        )
        self._qkv = [weights[:3].flatten(0, 1) for weights in attention]
        self._out = [weights[3] for weights in attention]
        self._widen = [weights[0] for weights in feed_forward]
        self._narrow = [weights[1] for weights in feed_forward]
        mixes = (model.attention_mix.detach(), model.feed_forward_mix.detach())
        self._mixes = [[(nearer, further) for nearer, further in mix] for mix in mixes]
        slopes = distance_costs(model.heads).to(self._embedding.device)
        self.slots = Slots(
            layers, streams, model.heads, self._depth, model.block_size, slopes, dtype
        )

    def read(self, tokens: Tensor, rows: slice, view: View, trail: Trail) -> tuple[Tensor, Trail]:
        """See `Reader`."""
        x = F.embedding(tokens, self._embedding)
        later = Trail(x[:, -1:], [])
        before = _moved(x, trail.embedding)
        x = self._normalise(torch.addcmul(x, before, self._gate))
        for layer, (qkv, out) in enumerate(zip(self._qkv, self._out, strict=True)):
            h = self._mix(x, 0, layer, trail, later)
            parts = F.linear(h, qkv).view(*h.shape[:2], 3, self._heads, self._depth)
            # The values too, which nobody reads: one computation for what lies side by side.
            normed = F.rms_norm(parts, (self._depth,), eps=1e-6)
            mixed = self.slots.attend(
                layer, rows, normed[:, :, 0], normed[:, :, 1], parts[:, :, 2], view
            )
            x.add_(F.linear(mixed, out))
            h = self._mix(x, 1, layer, trail, later)
            h = F.linear(h, self._widen[layer]).relu_().square_()
            x.add_(h @ self._narrow[layer])
        logits = F.linear(self._normalise(x[:, -1]), self._head)
        return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP), later

    def _mix(self, x: Tensor, half: int, layer: int, trail: Trail, later: Trail) -> Tensor:
        """Return what one half of a layer reads, (B, T, C), in the arithmetic of its products."""
        x = self._normalise(x)
        nearer, further = trail.pairs[2 * layer + half]
        weights = self._mixes[half][layer]
        if x.size(1) == 1:
            later.pairs.append((x, nearer))
        else:
            whole = torch.cat([further, nearer, x], dim=1)
            later.pairs.append((whole[:, -1:], whole[:, -2:-1]))
            nearer, further = whole[:, 1:-1], whole[:, :-2]
        total = torch.addcmul(x, nearer, weights[0])
        # Rounded as it is written: one computation less.
        result = torch.empty(x.shape, dtype=self._dtype, device=x.device)
        return torch.addcmul(total, further, weights[1], out=result)

    def _normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (self.width,))


class ClassicReader:
    """The classic architecture.

    Args:
        model: whose weights are read where they lie if they are in `dtype`, and copied otherwise.
        streams: texts that are read at once.
        dtype: of the products, and of what is remembered.
    """

    halves = 0

    def __init__(self, model: TransformerModel, streams: int, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._embedding = model.token_embedding.weight.detach()
        self._positions = model.position_embedding.weight.detach()
        self._norm, self._head = _parameters(model.norm), _parameters(model.head)
        blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
        self._norms = [
            (_parameters(block.attention_norm), _parameters(block.feed_forward_norm))
            for block in blocks
        ]
        self._matrices = [
            [
                _parameters(module, dtype)
                for module in (
                    block.attention.qkv,
                    block.attention.projection,
                    block.feed_forward[0],
                    block.feed_forward[2],
                )
            ]
            for block in blocks
        ]
        self.width = self._embedding.size(1)
        self._heads = blocks[0].attention.heads
        self._depth = self.width // self._heads
        slopes = torch.zeros(1, device=self._embedding.device)
        self.slots = Slots(
            len(blocks), streams, self._heads, self._depth, model.block_size, slopes, dtype
        )

    def read(self, tokens: Tensor, rows: slice, view: View, trail: Trail) -> tuple[Tensor, Trail]:
        """See `Reader`."""
        x = F.embedding(tokens, self._embedding)
        later = Trail(x[:, -1:], [])
        x = x + F.embedding(view.positions, self._positions)
        for layer, (qkv, out, widen, narrow) in enumerate(self._matrices):
            norm1, norm2 = self._norms[layer]
            h = self._normalise(x, norm1).to(self._dtype)
            parts = F.linear(h, *qkv).view(*h.shape[:2], 3, self._heads, self._depth)
            query, key, value = parts.unbind(2)
            mixed = self.slots.attend(layer, rows, query, key, value, view)
            x.add_(F.linear(mixed, *out))
            h = self._normalise(x, norm2).to(self._dtype)
            x.add_(F.linear(F.gelu(F.linear(h, *widen)), *narrow))
        return F.linear(self._normalise(x[:, -1], self._norm), *self._head), later

    def _normalise(self, x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
        return F.layer_norm(x, (self.width,), *norm)


def _parameters(
    module: torch.nn.Module, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a module in a dtype."""
    weight, bias = module.weight.detach(), module.bias.detach()  # type: ignore[operator]
    return weight.to(dtype), bias.to(dtype)


def _moved(x: Tensor, before: Tensor) -> Tensor:
    """Return (B, T, C) moved one position later, what came before it (B, 1, C) first."""
    return before if x.size(1) == 1 else torch.cat([before, x[:, :-1]], dim=1)
