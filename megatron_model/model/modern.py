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

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.architectures import MIXED_BEFORE
from megatron_model.cache import Cache

LOGIT_CAP = 15.0


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
        self.register_buffer("attention_bias", distance_bias(heads, block_size), persistent=False)
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
            attention, feed_forward = self.attention.to(dtype), self.feed_forward.to(dtype)
            for layer in range(attention.size(0)):
                h = _normalise(x)
                h = _mix(h, self.attention_mix[layer]).to(dtype)
                x = x + self._drop(self._attend(h, attention[layer]))
                h = _mix(_normalise(x), self.feed_forward_mix[layer]).to(dtype)
                h = F.linear(h, feed_forward[layer, 0])  # (B, T, F)
                h = F.relu(h.float()).square().to(dtype)
                x = x + self._drop((h @ feed_forward[layer, 1]).float())
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
        bias = self.attention_bias[:, start:end, :end]
        for layer in range(self.attention.size(0)):
            h = _mix_cached(_normalise(x), self.attention_mix[layer], layer, 0, cache)
            x = x + self._attend_cached(h, layer, bias, cache)
            h = _mix_cached(_normalise(x), self.feed_forward_mix[layer], layer, 1, cache)
            h = F.relu(F.linear(h, self.feed_forward[layer, 0])).square()
            x = x + h @ self.feed_forward[layer, 1]
        cache.length = end
        logits = F.linear(_normalise(x[:, -1]), self.head)
        return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)

    def _attend_cached(self, h: Tensor, layer: int, bias: Tensor, cache: Cache) -> Tensor:
        """What `_attend` does for the positions of h (S, T, C), looking back into the cache."""
        weights = self.attention[layer]
        width = h.size(-1)
        depth = width // self.heads
        qkv = F.linear(h, weights[:3].reshape(3 * width, width))
        query, key, value = qkv.view(*h.shape[:2], 3, self.heads, depth).permute(2, 0, 3, 1, 4)
        query, key = _root_mean_square(query) * depth**-0.5, _root_mean_square(key)
        return F.linear(cache.attend(layer, query, key, value, bias), weights[3])

    def _attend(self, h: Tensor, weights: Tensor) -> Tensor:
        """Causal self-attention over (B, T, C) with weights (4, C, C); the sum stays in float32."""
        batch, length, width = h.shape
        depth = width // self.heads
        qkv = F.linear(h, weights[:3].reshape(3 * width, width))
        qkv = qkv.view(batch, length, 3, self.heads, depth)
        # Normalised queries and keys keep every score within sqrt(D) (Henry et al. 2020).
        query = (_root_mean_square(qkv[:, :, 0].float()) * depth**-0.5).to(h.dtype)
        key = _root_mean_square(qkv[:, :, 1].float()).to(h.dtype)
        bias = self.attention_bias[:, :length, :length]
        query, key, value = (part.transpose(1, 2) for part in (query, key, qkv[:, :, 2]))
        if h.device.type == "cpu":
            mixed = _bounded_attention(query, key, value, bias)
        else:
            mixed = F.scaled_dot_product_attention(
                query, key, value, attn_mask=bias.to(h.dtype), scale=1.0
            )
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        return F.linear(mixed, weights[3]).float()

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.dropout and self.training else x


def distance_bias(heads: int, length: int) -> Tensor:
    """Return what is added to the attention scores: (H, T, T), -inf above the diagonal.

    Head by head a steeper or flatter penalty on distance (Press et al. 2022, ALiBi); the last head
    has none.
    """
    exponents = torch.tensor([1.0 + head * 6.0 / max(1, heads - 1) for head in range(heads)])
    slopes = 0.5**exponents
    slopes[-1] = 0.0
    position = torch.arange(length)
    distance = position[:, None] - position[None, :]
    bias = -slopes[:, None, None] * distance.clamp(min=0)
    return bias.masked_fill(distance < 0, float("-inf"))


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


def _mix(x: Tensor, weights: Tensor) -> Tensor:
    """Add to each position of (B, T, C) its predecessors by channel weights (MIXED_BEFORE, C)."""
    total = x
    for index, weight in enumerate(weights):
        total = total + weight * _shift(x, index + 1)
    return total


def _mix_cached(x: Tensor, weights: Tensor, layer: int, half: int, cache: Cache) -> Tensor:
    """What `_mix` does, with the positions before the first one taken from the cache."""
    whole, count = cache.with_before(layer, half, x), x.size(1)
    for index, weight in enumerate(weights):
        x = x + weight * whole[:, MIXED_BEFORE - 1 - index :][:, :count]
    return x


def _normalise(x: Tensor) -> Tensor:
    # LayerNorm without weights: one kernel on CPU, where RMSNorm is a chain of them.
    return F.layer_norm(x, (x.size(-1),))


def _root_mean_square(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
