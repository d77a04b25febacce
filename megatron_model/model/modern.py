"""The modern transformer: built to learn the most from every character it reads.

What differs from the classic one, each for a measured reason: queries and keys are normalised;
positions are told by a bias that grows with the distance (ALiBi); before each layer a position
mixes in its two predecessors; the feed-forward layer squares its ReLU; what a layer adds starts at
zero; logits are softly capped. There are no biases, and norms have no weights.

Shapes: B sequences, T positions, C = embed_dim, H heads, D = C / H, F = ff_dim, L layers,
V = vocab_size. Matrices of one shape are kept stacked, so that the optimizer can take them all in
one batched product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.model.kv_cache import Cache
from megatron_model.model.size import MIXED_BEFORE

LOGIT_CAP = 15.0
KEPT_BIASES = 1 << 26
"""Numbers of the attention bias that are kept, 256 MiB; for longer texts it is computed anew."""


class ModernTransformer(nn.Module):
    """A decoder-only transformer over characters with stacked weights."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        embed_dim: int,
        heads: int,
        layers: int,
        ff_dim: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dim % heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of heads ({heads}).")
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.heads = heads
        self.dropout = dropout
        self.token_embedding = nn.Parameter(torch.empty(vocab_size, embed_dim))
        self.previous_gate = nn.Parameter(torch.zeros(embed_dim))
        # Query, key, value and output projection of each layer.
        self.attention = nn.Parameter(torch.empty(layers, 4, embed_dim, embed_dim))
        # The matrix that widens, and the transpose of the one that narrows again.
        self.feed_forward = nn.Parameter(torch.empty(layers, 2, ff_dim, embed_dim))
        self.attention_mix = nn.Parameter(torch.zeros(layers, MIXED_BEFORE, embed_dim))
        self.feed_forward_mix = nn.Parameter(torch.zeros(layers, MIXED_BEFORE, embed_dim))
        self.head = nn.Parameter(torch.zeros(vocab_size, embed_dim))
        # A file of some kilobytes may name any block size: what it costs is paid by who reads so
        # much, not by who loads it.
        kept = min(block_size, math.isqrt(KEPT_BIASES // heads))
        self.register_buffer("attention_bias", distance_bias(heads, kept), persistent=False)
        self.attention_bias: Tensor
        self._initialise()

    def _initialise(self) -> None:
        width = self.token_embedding.size(1)
        nn.init.normal_(self.token_embedding, std=0.3)
        nn.init.normal_(self.attention, std=width**-0.5)
        nn.init.normal_(self.feed_forward, std=width**-0.5)
        with torch.no_grad():
            # Every layer starts by adding nothing, so that depth costs no stability.
            self.attention[:, 3].zero_()
            self.feed_forward[:, 1].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T), T at most block_size, to logits (B, T, V) in float32.

        The id V stands for a blank.

        Under autocast the matrix products are done in its dtype; everything between them stays in
        float32, and each weight is cast once.
        """
        if tokens.size(1) > self.block_size:
            raise ValueError(
                f"{tokens.size(1)} characters are more than the block size {self.block_size}."
            )
        kind = tokens.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else torch.float32
        with torch.autocast(kind, enabled=False):
            x = F.embedding(tokens.clamp(max=self.vocab_size - 1), self.token_embedding)
            # The blank that token dropout puts in place of a character is all zeros.
            x = x * (tokens < self.vocab_size).unsqueeze(-1)
            # Spelling is mostly about pairs: this gives the first layer pairs at no cost.
            x = _normalise(x + self.previous_gate * _shift(x, 1))
            x = self.run_layers(x, dtype, WholeTexts(self._bias(0, tokens.size(1))))
            return self._logits(x, dtype)

    def run_layers(self, x: Tensor, dtype: torch.dtype, context: WholeTexts) -> Tensor:
        """Map what the embedding made, (B, T, C), to what the head reads, (B, T, C)."""
        attention, feed_forward = self.attention.to(dtype), self.feed_forward.to(dtype)
        for number in range(attention.size(0)):
            weights = LayerWeights(
                attention[number],
                feed_forward[number],
                self.attention_mix[number],
                self.feed_forward_mix[number],
            )
            x = run_layer(x, weights, self.heads, context, self.drop)
        return x

    def _logits(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Map (..., C) to logits (..., V) in float32."""
        logits = F.linear(_normalise(x).to(dtype), self.head.to(dtype)).float()
        # A soft cap keeps single logits from running away (Gemma Team 2024, section 2).
        return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)

    def new_cache(self, streams: int) -> Cache:
        """Return an empty memory for texts that are read bit by bit."""
        layers, _, _, width = self.attention.shape
        return Cache(
            layers=layers,
            streams=streams,
            heads=self.heads,
            width=width,
            block_size=self.block_size,
            like=self.token_embedding,
            mixes=True,
        )

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Read the next tokens (S, T) of each stream and return the last one's logits (S, V).

        What `forward` computes, in float32 and without dropout, for the new positions alone;
        decode.c does the same for one position.
        """
        start, end = cache.length, cache.length + tokens.size(1)
        if end > self.block_size:
            raise ValueError(f"{end} characters are more than the block size {self.block_size}.")
        before = torch.cat([cache.previous[: tokens.size(0), None], tokens[:, :-1]], dim=1)
        cache.previous.copy_(tokens[:, -1].expand_as(cache.previous))
        earlier = F.embedding(before.clamp(min=0), self.token_embedding) * (before >= 0)[..., None]
        x = F.embedding(tokens, self.token_embedding)
        x = _normalise(x + self.previous_gate * earlier)
        bias = self._bias(start, end)
        for number in range(self.attention.size(0)):
            weights = LayerWeights(
                self.attention[number],
                self.feed_forward[number],
                self.attention_mix[number],
                self.feed_forward_mix[number],
            )
            x = run_layer(x, weights, self.heads, CachedTexts(cache, number, bias), _keep)
        cache.length = end
        return self._logits(x[:, -1], x.dtype)

    def _bias(self, start: int, end: int) -> Tensor:
        """Return what is added to the scores from position `start` on: (H, end - start, end)."""
        kept = self.attention_bias
        if end <= kept.size(1):
            return kept[:, start:end, :end]
        return distance_bias(self.heads, end, start, device=kept.device)

    def drop(self, x: Tensor) -> Tensor:
        """Drop a share of what a layer adds, in training."""
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


class LayerWeights(NamedTuple):
    """What one layer computes with; the matrices in the arithmetic of its products."""

    attention: Tensor
    """Query, key, value and output projection: (4, C, C)."""
    feed_forward: Tensor
    """The matrix that widens, and the transpose of the one that narrows again: (2, F, C)."""
    attention_mix: Tensor
    """Channel weights of the positions before, the nearest first: (MIXED_BEFORE, C)."""
    feed_forward_mix: Tensor


class Context(Protocol):
    """What the positions of a layer can see: a whole text at once, or one read bit by bit."""

    def before(self, x: Tensor, half: int) -> Iterable[Tensor]:
        """Return x (B, T, C) moved one position later, then two: see `MIXED_BEFORE`.

        `half` is 0 ahead of the attention and 1 ahead of the feed-forward part.
        """

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Mix what each position attends to: from (B, H, T, D), the query scaled, to (B, T, C)."""


def run_layer(
    x: Tensor,
    weights: LayerWeights,
    heads: int,
    context: Context,
    drop: Callable[[Tensor], Tensor],
) -> Tensor:
    """One layer of the modern architecture, (B, T, C) to (B, T, C).

    The only place in Python that says what a layer is: training, cached decoding and training
    divided among devices differ in `context` and in where the weights come from. `run_layer` of
    decode.c does the same for cached decoding.

    The matrix products are done in the weights' arithmetic, everything between them in float32.
    """
    dtype = weights.attention.dtype
    h = _mix(_normalise(x), weights.attention_mix, context, 0).to(dtype)
    x = x + drop(_attention(h, weights.attention, heads, context))
    h = _mix(_normalise(x), weights.feed_forward_mix, context, 1).to(dtype)
    return x + drop(_feed_forward(h, weights.feed_forward))


def _mix(x: Tensor, weights: Tensor, context: Context, half: int) -> Tensor:
    """Add to each position of (B, T, C) its predecessors by channel weights (MIXED_BEFORE, C)."""
    total = x
    for weight, moved in zip(weights, context.before(x, half), strict=True):
        total = total + weight * moved
    return total


def _attention(h: Tensor, weights: Tensor, heads: int, context: Context) -> Tensor:
    """Causal self-attention over (B, T, C) with weights (4, C, C); the sum stays in float32."""
    batch, length, width = h.shape
    depth = width // heads
    qkv = F.linear(h, weights[:3].reshape(3 * width, width))
    qkv = qkv.view(batch, length, 3, heads, depth)
    # Normalised queries and keys keep every score within sqrt(D) (Henry et al. 2020).
    query = (_root_mean_square(qkv[:, :, 0].float()) * depth**-0.5).to(h.dtype)
    key = _root_mean_square(qkv[:, :, 1].float()).to(h.dtype)
    query, key, value = (part.transpose(1, 2) for part in (query, key, qkv[:, :, 2]))
    return F.linear(context.attend(query, key, value), weights[3]).float()


def _feed_forward(h: Tensor, weights: Tensor) -> Tensor:
    """Widen, square what is positive, narrow again: (B, T, C) with weights (2, F, C)."""
    h = F.linear(h, weights[0])  # (B, T, F)
    h = F.relu(h.float()).square().to(h.dtype)
    return (h @ weights[1]).float()


class WholeTexts:
    """Texts that are read at once from their beginning.

    Args:
        bias: added to the scores (H, T, T), -inf where a position may not look.
    """

    def __init__(self, bias: Tensor) -> None:
        self._bias = bias

    def before(self, x: Tensor, half: int) -> Iterable[Tensor]:
        """See `Context`; there are zeros before the beginning."""
        return [_shift(x, by) for by in range(1, MIXED_BEFORE + 1)]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Context`."""
        if query.device.type == "cpu":
            mixed = _bounded_attention(query, key, value, self._bias)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=self._bias.to(query.dtype), scale=1.0
            )
        return mixed.transpose(1, 2).flatten(2)


class CachedTexts:
    """Texts of which a cache remembers what one layer has read so far.

    Args:
        cache: the memory.
        layer: whose part of it.
        bias: added to the scores (H, T, length + T), -inf where a position may not look.
    """

    def __init__(self, cache: Cache, layer: int, bias: Tensor) -> None:
        self._cache = cache
        self._layer = layer
        self._bias = bias

    def before(self, x: Tensor, half: int) -> Iterable[Tensor]:
        """See `Context`."""
        whole, count = self._cache.with_before(self._layer, half, x), x.size(1)
        return [whole[:, MIXED_BEFORE - by :][:, :count] for by in range(1, MIXED_BEFORE + 1)]

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Context`."""
        return self._cache.attend(self._layer, query, key, value, self._bias)


def distance_bias(
    heads: int, length: int, start: int = 0, device: torch.device | None = None
) -> Tensor:
    """Return what is added to the attention scores: (H, T - start, T), -inf above the diagonal.

    Head by head a steeper or flatter penalty on distance (Press et al. 2022, ALiBi); the last head
    has none. The rows are those of the positions from `start` on.
    """
    slopes = distance_costs(heads).to(device)
    position = torch.arange(length, device=device, dtype=torch.float32)
    distance = position[start:, None] - position[None, :]
    bias = -slopes[:, None, None] * distance
    return bias.masked_fill_(distance < 0, float("-inf"))  # in place: it may be large


def distance_costs(heads: int) -> Tensor:
    """Return what one step of distance costs each head: (H,)."""
    exponents = torch.tensor([1.0 + head * 6.0 / max(1, heads - 1) for head in range(heads)])
    slopes = 0.5**exponents
    slopes[-1] = 0.0
    return slopes


def _bounded_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Attention (B, H, T, D) without the usual subtraction of each row's maximum.

    Scores are bounded by normalised queries and keys and the bias is never positive, so the
    exponentials cannot overflow; one pass over the scores less.
    """
    batch, heads, length, depth = query.shape
    flat = (batch * heads, length, depth)
    scores = torch.bmm(query.reshape(flat), key.reshape(flat).transpose(1, 2))
    weights = torch.exp(scores.view(batch, heads, length, length).float() + bias)
    total = weights.sum(-1, keepdim=True)
    mixed = torch.bmm(weights.to(value.dtype).view(-1, length, length), value.reshape(flat))
    return (mixed.view(query.shape).float() / total).to(value.dtype)


def _shift(x: Tensor, by: int) -> Tensor:
    """Return (B, T, C) moved `by` positions later, zeros first."""
    return F.pad(x, (0, 0, by, 0))[:, : x.size(1)]


def _keep(x: Tensor) -> Tensor:
    return x


def _normalise(x: Tensor) -> Tensor:
    # LayerNorm without weights: one kernel on CPU, where RMSNorm is a chain of them.
    return F.layer_norm(x, (x.size(-1),))


def _root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
