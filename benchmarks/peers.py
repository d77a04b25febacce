"""The peers that training is measured against, each as a whole process.

`nanogpt`: a plain GPT loop with nanoGPT's settings for character-level Shakespeare on a CPU.
`transformers`: Hugging Face's GPT-2 of the same sizes in the same loop.

Both: float32, AdamW, warm-up and cosine decay, gradient clipping, an estimate of the loss every 250
steps as nanoGPT makes it, and at the end the loss over the whole validation split.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK, BATCH, LAYERS, HEADS, WIDTH = 64, 12, 4, 4, 128
STEPS, WARMUP, PEAK, FLOOR = 2000, 100, 1e-3, 1e-4
EVALUATE_EVERY, EVALUATE_BATCHES = 250, 20


class Shape(NamedTuple):
    """How large a peer is."""

    layers: int = LAYERS
    width: int = WIDTH
    heads: int = HEADS
    block: int = BLOCK
    dropout: float = 0.0


class PlainBlock(nn.Module):
    """LayerNorm, attention, LayerNorm, GELU: GPT-2's block without biases."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        width = shape.width
        self.heads, self.dropout = shape.heads, shape.dropout
        self.norm1 = nn.LayerNorm(width, bias=False)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm2 = nn.LayerNorm(width, bias=False)
        self.widen = nn.Linear(width, 4 * width, bias=False)
        self.narrow = nn.Linear(4 * width, width, bias=False)
        self.drop = nn.Dropout(shape.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, C) to (B, T, C)."""
        batch, length, width = x.shape
        parts = self.qkv(self.norm1(x)).split(width, dim=2)
        query, key, value = (
            part.view(batch, length, self.heads, width // self.heads).transpose(1, 2)
            for part in parts
        )
        dropped = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, dropout_p=dropped)
        x = x + self.drop(self.out(mixed.transpose(1, 2).reshape(batch, length, width)))
        return x + self.drop(self.narrow(F.gelu(self.widen(self.norm2(x)))))


class PlainGPT(nn.Module):
    """Learned positions, some blocks, and a head that shares the embedding's weights."""

    def __init__(self, vocab_size: int, shape: Shape | None = None) -> None:
        super().__init__()
        shape = shape or Shape()
        self.tokens = nn.Embedding(vocab_size, shape.width)
        self.positions = nn.Embedding(shape.block, shape.width)
        self.blocks = nn.ModuleList(PlainBlock(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width, bias=False)
        self.head = nn.Linear(shape.width, vocab_size, bias=False)
        self.drop = nn.Dropout(shape.dropout)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                last = name.endswith(("out.weight", "narrow.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * shape.layers) if last else 0.02)
        self.tokens.weight = self.head.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T) to logits (B, T, V)."""
        places = torch.arange(tokens.size(1), device=tokens.device)
        x = self.drop(self.tokens(tokens) + self.positions(places))
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


class TransformersGPT2(nn.Module):
    """Hugging Face's GPT-2, behind the same call."""

    def __init__(self, vocab_size: int, shape: Shape | None = None) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        shape = shape or Shape()
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=shape.block,
            n_embd=shape.width,
            n_layer=shape.layers,
            n_head=shape.heads,
            resid_pdrop=shape.dropout,
            embd_pdrop=shape.dropout,
            attn_pdrop=shape.dropout,
            use_cache=False,
        )
        self.inner = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T) to logits (B, T, V)."""
        logits: Tensor = self.inner(tokens).logits
        return logits


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine to the floor at the last step."""
    if step < WARMUP:
        return PEAK * (step + 1) / (WARMUP + 1)
    share = (step - WARMUP) / (STEPS - WARMUP)
    return FLOOR + 0.5 * (1 + math.cos(math.pi * share)) * (PEAK - FLOOR)


def main() -> None:
    """Train one peer and print one JSON object about it."""
    started = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peer", choices=["nanogpt", "transformers"])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--steps", type=int, default=STEPS, help="fewer, to time a step only")
    options = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(1337)
    text = options.corpus.read_text(encoding="utf-8")
    vocabulary = {character: token for token, character in enumerate(sorted(set(text)))}
    tokens = np.array([vocabulary[character] for character in text], dtype=np.int64)
    border = int(len(tokens) * 0.9)
    train, validation = tokens[:border], tokens[border:]
    model = (
        PlainGPT(len(vocabulary))
        if options.peer == "nanogpt"
        else TransformersGPT2(len(vocabulary))
    )
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.99),
    )
    step_seconds = 0.0
    for step in range(options.steps):
        if step % EVALUATE_EVERY == 0:
            for split in (train, validation):
                _estimate(model, split)
        begun = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        inputs, targets = _batch(train)
        loss = F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step_seconds += time.perf_counter() - begun
    result = {
        "peer": options.peer,
        "steps": options.steps,
        "val_loss": _whole_loss(model, validation),
        "step_ms": 1000 * step_seconds / options.steps,
        "characters_per_second": options.steps * BATCH * BLOCK / step_seconds,
        "seconds": time.perf_counter() - started,
    }
    print(json.dumps(result))


def _batch(tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> tuple[Tensor, Tensor]:
    starts = torch.randint(len(tokens) - BLOCK, (BATCH,)).tolist()
    block = torch.from_numpy(np.stack([tokens[s : s + BLOCK + 1] for s in starts]))
    return block[:, :-1], block[:, 1:]


@torch.no_grad()
def _estimate(model: nn.Module, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    model.eval()
    losses = []
    for _ in range(EVALUATE_BATCHES):
        inputs, targets = _batch(tokens)
        losses.append(float(F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())))
    model.train()
    return sum(losses) / len(losses)


@torch.no_grad()
def _whole_loss(model: nn.Module, tokens: np.ndarray[tuple[int], np.dtype[np.int64]]) -> float:
    model.eval()
    whole = (len(tokens) - 1) // BLOCK
    inputs = torch.from_numpy(tokens[: whole * BLOCK]).view(whole, BLOCK)
    targets = torch.from_numpy(tokens[1 : whole * BLOCK + 1]).view(whole, BLOCK)
    total = 0.0
    for x, y in zip(inputs.split(128), targets.split(128), strict=True):
        total += float(F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum"))
    return total / (whole * BLOCK)


if __name__ == "__main__":
    main()
