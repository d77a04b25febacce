"""The modern transformer: rotary positions, QK-norm, squared ReLU, a look at the character before.

Shapes: B sequences, T positions, C = embed_dim, H heads, D = C / H, V = vocab_size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from megatron_model.attention import causal_attention

LOGIT_CAP = 15.0


class Rotary(nn.Module):
    """Rotary position embedding: pairs of numbers turn by an angle that grows with the position.

    Su et al. 2021, RoFormer, equation 34; halves are paired instead of neighbours.
    """

    def __init__(self, head_dim: int, block_size: int) -> None:
        super().__init__()
        frequencies = 1.0 / (1000.0 ** (torch.arange(0, head_dim, 2) / head_dim))
        angles = torch.arange(block_size)[:, None] * frequencies[None, :]  # (T, D / 2)
        self.register_buffer("cosine", angles.cos(), persistent=False)
        self.register_buffer("sine", angles.sin(), persistent=False)
        self.cosine: Tensor
        self.sine: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Turn (B, T, H, D) by the position along T."""
        length = x.size(1)
        cosine = self.cosine[:length, None, :].to(x.dtype)
        sine = self.sine[:length, None, :].to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat((first * cosine - second * sine, first * sine + second * cosine), dim=-1)


class SelfAttention(nn.Module):
    """Causal attention with normalised queries and keys (Henry et al. 2020), without biases."""

    def __init__(self, embed_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(embed_dim, embed_dim, bias=False)
        self.key = nn.Linear(embed_dim, embed_dim, bias=False)
        self.value = nn.Linear(embed_dim, embed_dim, bias=False)
        self.projection = nn.Linear(embed_dim, embed_dim, bias=False)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        query = rotary(_normalise(self.query(x).view(shape)))
        key = rotary(_normalise(self.key(x).view(shape)))
        value = self.value(x).view(shape)
        mixed = causal_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            dropout=self.dropout if self.training else 0.0,
        )
        projected: Tensor = self.projection(mixed.transpose(1, 2).reshape(batch, length, width))
        return projected


class Block(nn.Module):
    """One layer: attention, then a squared-ReLU feed-forward (So et al. 2021, Primer)."""

    def __init__(self, embed_dim: int, heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(embed_dim, heads, dropout)
        self.widen = nn.Linear(embed_dim, ff_dim, bias=False)
        self.narrow = nn.Linear(ff_dim, embed_dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, rotary: Rotary) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        x = x + self.dropout(self.attention(_normalise(x), rotary))
        out: Tensor = x + self.dropout(self.narrow(F.relu(self.widen(_normalise(x))).square()))
        return out


class ModernTransformer(nn.Module):
    """A decoder-only transformer built to learn the most from every character it reads."""

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
        self.vocab_size = vocab_size
        self.block_size = block_size
        self.token_embedding = nn.Embedding(vocab_size, embed_dim)
        # How much of the previous character's embedding each position sees: spelling is mostly
        # about pairs, and this gives the first layer pairs without a layer spent on finding them.
        self.previous_gate = nn.Parameter(torch.zeros(embed_dim))
        self.rotary = Rotary(embed_dim // heads, block_size)
        self.blocks = nn.ModuleList(Block(embed_dim, heads, ff_dim, dropout) for _ in range(layers))
        self.head = nn.Linear(embed_dim, vocab_size, bias=False)
        self._initialise()

    def _initialise(self) -> None:
        nn.init.normal_(self.token_embedding.weight, std=1.0)
        for name, parameter in self.blocks.named_parameters():
            if name.endswith(("projection.weight", "narrow.weight")):
                nn.init.zeros_(parameter)  # every block starts as the identity
            else:
                bound = (3.0 / parameter.size(1)) ** 0.5
                nn.init.uniform_(parameter, -bound, bound)
        nn.init.zeros_(self.head.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T), T at most block_size, to logits (B, T, V)."""
        if tokens.size(1) > self.block_size:
            raise ValueError(
                f"{tokens.size(1)} characters are more than the block size {self.block_size}."
            )
        x = self.token_embedding(tokens)
        x = x + self.previous_gate * F.pad(x[:, :-1], (0, 0, 1, 0))
        x = _normalise(x)
        for block in self.blocks:
            x = block(x, self.rotary)
        logits: Tensor = self.head(_normalise(x)).float()
        # A soft cap keeps single logits from running away (Gemma Team 2024, section 2).
        return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)


def _normalise(x: Tensor) -> Tensor:
    # LayerNorm without weights: one kernel on CPU, where RMSNorm is a chain of them.
    return F.layer_norm(x, (x.size(-1),))
