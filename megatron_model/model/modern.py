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
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.model.kv_cache import Cache
from megatron_model.model.size import MIXED_BEFORE

LOGIT_CAP = 15.0
KEPT_BIASES = 1 << 26
"""Numbers of the attention bias that are kept, 256 MiB; for longer texts it is computed anew."""

HEAD_MULTIPLE = 64
"""On CUDA the head has a multiple of so many rows: the kernels for others are far slower."""
ONE_HOT_VOCABULARY = 512
"""Up to so many characters the gradient of the embedding is a matrix product on CUDA."""

FOLDED_DEPTH = 8
"""Dimensions that a folded distance adds to queries and keys; kernels want a multiple of eight."""
FOLDED_LENGTH = 1 << 16
"""Positions that two bfloat16 numbers tell exactly."""


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
        self.layer: RunLayer = run_layer
        """What computes a layer in training; a compiled one may take its place."""
        self._folded: dict[tuple[int, torch.dtype, torch.device], FoldedTexts] = {}
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

        Under autocast the matrix products are done in its dtype, and each weight is cast once;
        everything between them stays in float32, but for the layers in training on CUDA.
        """
        if tokens.size(1) > self.block_size:
            raise ValueError(
                f"{tokens.size(1)} characters are more than the block size {self.block_size}."
            )
        kind = tokens.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else torch.float32
        with torch.autocast(kind, enabled=False):
            x = _embed(tokens.clamp(max=self.vocab_size - 1), self.token_embedding)
            # The blank that token dropout puts in place of a character is all zeros.
            x = x * (tokens < self.vocab_size).unsqueeze(-1)
            # Spelling is mostly about pairs: this gives the first layer pairs at no cost.
            x = _normalise(x + self.previous_gate * _shift(x, 1))
            x = self.run_layers(x, dtype, self._whole_texts(tokens.size(1), dtype))
            return self._logits(x, dtype)

    def run_layers(self, x: Tensor, dtype: torch.dtype, context: Context) -> Tensor:
        """Map what the embedding made, (B, T, C), to what the head reads, (B, T, C)."""
        layer = self.layer if self.training else run_layer
        stream = x
        if self.training and x.device.type == "cuda":
            # What lies between the products is half of a step there, and all of it is traffic.
            stream = x.to(dtype)
        for weights in self._layer_weights(dtype):
            stream = layer(stream, weights, self.heads, context, self.dropped)
        return stream.float()

    def _layer_weights(self, dtype: torch.dtype) -> Iterable[LayerWeights]:
        """Return the weights of the layers, the matrices in `dtype`."""
        # Taken apart at once: the gradient of a layer taken by its number is as large as them all.
        stacks = (
            self.attention.to(dtype),
            self.feed_forward.to(dtype),
            self.attention_mix,
            self.feed_forward_mix,
        )
        return map(LayerWeights._make, zip(*(stack.unbind(0) for stack in stacks), strict=True))

    def _logits(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Map (..., C) to logits (..., V) in float32."""
        head = self.head.to(dtype)
        missing = -self.vocab_size % HEAD_MULTIPLE
        if missing and head.device.type == "cuda":
            padded = F.pad(head, (0, 0, 0, missing))
            logits = F.linear(_normalise(x).to(dtype), padded)[..., : self.vocab_size].float()
        else:
            logits = F.linear(_normalise(x).to(dtype), head).float()
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
        for number, weights in enumerate(self._layer_weights(self.attention.dtype)):
            x = run_layer(x, weights, self.heads, CachedTexts(cache, number, bias), 0.0)
        cache.length = end
        return self._logits(x[:, -1], x.dtype)

    def _bias(self, start: int, end: int) -> Tensor:
        """Return what is added to the scores from position `start` on: (H, end - start, end)."""
        kept = self.attention_bias
        if end <= kept.size(1):
            return kept[:, start:end, :end]
        return distance_bias(self.heads, end, start, device=kept.device)

    def _whole_texts(self, length: int, dtype: torch.dtype) -> Context:
        """Return what the positions of texts of `length` characters see."""
        device = self.token_embedding.device
        if device.type != "cuda" or length > FOLDED_LENGTH:
            return WholeTexts(self._bias(0, length))
        key = (length, dtype, device)
        if key not in self._folded:
            self._folded[key] = FoldedTexts(*folded_distance(self.heads, length, dtype, device))
        return self._folded[key]

    @property
    def dropped(self) -> float:
        """Share of what a layer adds that is dropped: in training alone."""
        return self.dropout if self.training else 0.0


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
    dropout: float,
) -> Tensor:
    """One layer of the modern architecture, (B, T, C) to (B, T, C).

    Of what each half adds a share of `dropout` is dropped.

    The only place in Python that says what a layer is: training, cached decoding and training
    divided among devices differ in `context` and in where the weights come from. `run_layer` of
    decode.c does the same for cached decoding.

    The matrix products are done in the weights' arithmetic, everything between them in that of x.
    """
    dtype = weights.attention.dtype
    h = _mix(_normalise(x), weights.attention_mix, context, 0).to(dtype)
    x = x + _drop(_attention(h, weights.attention, heads, context).to(x.dtype), dropout)
    h = _mix(_normalise(x), weights.feed_forward_mix, context, 1).to(dtype)
    return x + _drop(_feed_forward(h, weights.feed_forward).to(x.dtype), dropout)


RunLayer: TypeAlias = Callable[[Tensor, LayerWeights, int, Context, float], Tensor]
"""What `run_layer` is, or what a compiler makes of it."""


def _drop(x: Tensor, share: float) -> Tensor:
    return F.dropout(x, share) if share else x


def _mix(x: Tensor, weights: Tensor, context: Context, half: int) -> Tensor:
    """Add to each position of (B, T, C) its predecessors by channel weights (MIXED_BEFORE, C)."""
    total = x
    for weight, moved in zip(weights.to(x.dtype), context.before(x, half), strict=True):
        total = total + weight * moved
    return total


def _attention(h: Tensor, weights: Tensor, heads: int, context: Context) -> Tensor:
    """Causal self-attention over (B, T, C) with weights (4, C, C)."""
    batch, length, width = h.shape
    depth = width // heads
    qkv = F.linear(h, weights[:3].reshape(3 * width, width))
    qkv = qkv.view(batch, length, 3, heads, depth)
    # Normalised queries and keys keep every score within sqrt(D) (Henry et al. 2020).
    query = (_root_mean_square(qkv[:, :, 0].float()) * depth**-0.5).to(h.dtype)
    key = _root_mean_square(qkv[:, :, 1].float()).to(h.dtype)
    query, key, value = (part.transpose(1, 2) for part in (query, key, qkv[:, :, 2]))
    return F.linear(context.attend(query, key, value), weights[3])


def _feed_forward(h: Tensor, weights: Tensor) -> Tensor:
    """Widen, square what is positive, narrow again: (B, T, C) with weights (2, F, C)."""
    h = F.linear(h, weights[0])  # (B, T, F)
    h = F.relu(h.float()).square().to(h.dtype)
    return h @ weights[1]


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
            bias = self._bias.to(query.dtype)[None]  # fast kernels want all four dimensions
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=1.0)
        return mixed.transpose(1, 2).flatten(2)


class FoldedTexts(WholeTexts):
    """Texts that are read at once, the cost of distance folded into queries and keys.

    A penalty of ``m (i - j)`` is a constant of the row i, which a softmax does not see, and
    ``m j``: the product of one more dimension of the query, m, with one of the key, j. So no mask
    has to be read, half of the scores are never computed, and every fused kernel will do.

    Args:
        costs: what the queries of each head get in addition, (H, `FOLDED_DEPTH`).
        places: what the keys get, (T, `FOLDED_DEPTH`).
    """

    def __init__(self, costs: Tensor, places: Tensor) -> None:
        self._costs = costs
        self._places = places

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """See `Context`."""
        batch, heads, length, depth = query.shape
        shape = (batch, heads, length, FOLDED_DEPTH)
        query = torch.cat([query, self._costs[None, :, None].expand(shape)], dim=-1)
        key = torch.cat([key, self._places[None, None].expand(shape)], dim=-1)
        padded = _wants_equal_depths(query)
        if padded:
            value = F.pad(value, (0, FOLDED_DEPTH))
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=1.0)
        return mixed[..., :depth].transpose(1, 2).flatten(2)


def folded_distance(
    heads: int, length: int, dtype: torch.dtype, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Return the costs (H, `FOLDED_DEPTH`) and places (T, `FOLDED_DEPTH`) of `FoldedTexts`.

    A cost is the sum of two numbers of `dtype` and a place of two more, so that bfloat16 loses
    none of either.

    Args:
        heads: of the model.
        length: T, at most `FOLDED_LENGTH`.
        dtype: of queries and keys.
        device: where they are.
    """
    cost = distance_costs(heads).to(device)
    coarse = cost.to(dtype)
    fine = (cost - coarse.float()).to(dtype)
    place = torch.arange(length, device=device)
    far, near = (place // 256 * 256).to(dtype), (place % 256).to(dtype)
    unused = FOLDED_DEPTH - 4
    costs = F.pad(torch.stack([coarse, coarse, fine, fine], dim=-1), (0, unused))
    places = F.pad(torch.stack([far, near, far, near], dim=-1), (0, unused))
    return costs, places


def _wants_equal_depths(query: Tensor) -> bool:
    """Whether the fastest kernel here takes values only as deep as the queries.

    cuDNN's, which from Hopper on is the fastest, does not; flash attention does, and serves on
    older cards, and where every run has to be equal to the last bit.
    """
    if query.device.type != "cuda" or query.dtype == torch.float32:
        return False
    return torch.are_deterministic_algorithms_enabled() or not has_cudnn_attention(query.device)


def has_cudnn_attention(device: torch.device) -> bool:
    """Whether cuDNN's attention is the fastest on this card."""
    return torch.cuda.get_device_capability(device)[0] >= 9 and torch.version.hip is None


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


class _OneHotEmbedding(torch.autograd.Function):
    """An embedding whose gradient is a matrix product.

    torch's own on CUDA adds up by atomic operations, in any order: two equal runs differ.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, table: Tensor) -> Tensor:
        ctx.save_for_backward(tokens)
        ctx.rows = table.size(0)
        return F.embedding(tokens, table)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, Tensor]:
        (tokens,) = ctx.saved_tensors
        gradient = gradients[0].flatten(0, -2)
        rows = torch.arange(ctx.rows, device=tokens.device)
        found = (rows[:, None] == tokens.flatten()[None]).to(gradient.dtype)  # (V, B T)
        return None, found @ gradient


def _embed(tokens: Tensor, table: Tensor) -> Tensor:
    """Look up the rows (..., C) of tokens in a table (V, C)."""
    if tokens.device.type == "cuda" and table.size(0) <= ONE_HOT_VOCABULARY:
        embedded: Tensor = _OneHotEmbedding.apply(tokens, table)  # type: ignore[no-untyped-call]
        return embedded
    return F.embedding(tokens, table)


def _normalise(x: Tensor) -> Tensor:
    # LayerNorm without weights: one kernel on CPU, where RMSNorm is a chain of them.
    return F.layer_norm(x, (x.size(-1),))


def _root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
