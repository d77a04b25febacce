"""The classic transformer: learned positions, LayerNorm before each layer, GELU.

Shapes: B sequences, T positions, C = embed_dim, H heads, V = vocab_size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.model.kv_cache import Cache


class SelfAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, embed_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.qkv = nn.Linear(embed_dim, 3 * embed_dim)
        self.projection = nn.Linear(embed_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, C / H)
        dropout = self.dropout if self.training else 0.0
        mixed = causal_attention(query, key, value, dropout=dropout)
        out: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return out

    def extend(self, x: Tensor, layer: int, cache: Cache, bias: Tensor) -> Tensor:
        """What `forward` does for new positions (S, T, C), looking back into the cache."""
        depth = x.size(-1) // self.heads
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.heads, depth)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        out: Tensor = self.projection(cache.attend(layer, query * depth**-0.5, key, value, bias))
        return out


class Block(nn.Module):
    """One layer: attention, then feed-forward, each added to what came in."""

    def __init__(self, embed_dim: int, heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(embed_dim)
        self.attention = SelfAttention(embed_dim, heads, dropout)
        self.feed_forward_norm = nn.LayerNorm(embed_dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(embed_dim, ff_dim), nn.GELU(), nn.Linear(ff_dim, embed_dim)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x)))
        out: Tensor = x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))
        return out


RunBlock: TypeAlias = Callable[[nn.Module, Tensor], Tensor]
"""Computes one layer, or what a compiler makes of that."""


def run_block(block: nn.Module, x: Tensor) -> Tensor:
    """Compute one layer, (B, T, C) to (B, T, C)."""
    out: Tensor = block(x)
    return out


class TransformerModel(nn.Module):
    """A decoder-only transformer over characters (Radford et al. 2019, GPT-2's arrangement)."""

    def __init__(
        self,
        vocab_size: int,
        block_size: int = 256,
        embed_dim: int = 512,
        heads: int = 16,
        layers: int = 16,
        ff_dim: int = 4096,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if embed_dim % heads:
            raise ValueError(f"embed_dim ({embed_dim}) must be a multiple of heads ({heads}).")
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, embed_dim)
        self.position_embedding = nn.Embedding(block_size, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(embed_dim, heads, ff_dim, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.head = nn.Linear(embed_dim, vocab_size)
        self.block: RunBlock = run_block
        """What computes a layer in training; a compiled one may take its place."""
        self._initialise(layers)

    def _initialise(self, layers: int) -> None:
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:
                continue
            # What is added to the residual stream is scaled down by its depth, so that the sum of
            # all layers starts at the same size however many there are (GPT-2, section 2.3).
            last = name.endswith(("attention.projection.weight", "feed_forward.2.weight"))
            nn.init.normal_(parameter, std=0.02 / (2 * layers) ** 0.5 if last else 0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T), T at most block_size, to logits (B, T, V)."""
        length = tokens.size(1)
        if length > self.block_size:
            raise ValueError(f"{length} characters are more than the block size {self.block_size}.")
        positions = torch.arange(length, device=tokens.device)
        x = self.dropout(self.token_embedding(tokens) + self.position_embedding(positions))
        run = self.block if self.training else run_block
        for block in self.blocks:
            x = run(block, x)
        logits: Tensor = self.head(self.norm(x))
        return logits

    def new_cache(self, streams: int) -> Cache:
        """Return an empty memory for texts that are read bit by bit."""
        first: Block = self.blocks[0]  # type: ignore[assignment]
        return Cache(
            layers=len(self.blocks),
            streams=streams,
            heads=first.attention.heads,
            width=self.token_embedding.embedding_dim,
            block_size=self.block_size,
            like=self.token_embedding.weight,
            mixes=False,
        )

    @torch.no_grad()
    def extend(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Read the next tokens (S, T) of each stream and return the last one's logits (S, V).

        What `forward` computes, without dropout, for the new positions alone; decode.c does the
        same for one position.
        """
        start, end = cache.length, cache.length + tokens.size(1)
        if end > self.block_size:
            raise ValueError(f"{end} characters are more than the block size {self.block_size}.")
        x = self.token_embedding(tokens) + self.position_embedding.weight[start:end]
        later = torch.ones(end - start, end, dtype=torch.bool, device=tokens.device).triu(start + 1)
        bias = torch.zeros_like(later, dtype=x.dtype).masked_fill_(later, float("-inf"))
        blocks: list[Block] = list(self.blocks)  # type: ignore[arg-type]
        for index, block in enumerate(blocks):
            x = x + block.attention.extend(block.attention_norm(x), index, cache, bias)
            x = x + block.feed_forward(block.feed_forward_norm(x))
        cache.length = end
        logits: Tensor = self.head(self.norm(x[:, -1]))
        return logits


def causal_attention(query: Tensor, key: Tensor, value: Tensor, *, dropout: float = 0.0) -> Tensor:
    """Let every position read itself and the positions before it, the fastest way there is here.

    ``softmax(Q K^T / sqrt(D)) V`` with later positions masked (Vaswani et al. 2017, section 3.2.1).

    Args:
        query, key, value: (B, H, T, D), D = C / H.
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
