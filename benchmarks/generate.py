"""How fast text is written, against two peers, in turns in one run: python -m benchmarks.generate

`nanogpt` computes the whole window for every character, as nanoGPT's sampler does; it is measured
with the window full. `transformers` is Hugging Face's GPT-2 with its cache, from one character to
the end of its block, past which it cannot go. Ours begins with a full window and goes on for two
blocks, so that the window moves and is read again. Weights are random: speed does not ask what they
mean, but for the squared ReLU of the modern architecture, whose zeros (half of them here) are
skipped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import peers, writing_screen
from benchmarks.report import print_table, write_json
from megatron_model.config.fields import ModelConfig, SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference import native
from megatron_model.inference.decoder import Decoder
from megatron_model.inference.precision import Precision
from megatron_model.inference.sampler import generate_batch, generate_stream, several
from megatron_model.model.factory import build_model

VOCABULARY = "\n" + "".join(chr(33 + index) for index in range(64))
TOKENIZER = CharTokenizer(VOCABULARY)
STREAMS = 8
FIRST_WITHIN_MS = 50.0


class Size(NamedTuple):
    """One shape of model, and how many characters the slow peer writes."""

    layers: int
    width: int
    heads: int
    block: int
    recomputed: int

    @property
    def name(self) -> str:
        """As the tables say it."""
        return f"{self.layers}x{self.width}/{self.block}"

    @property
    def of_peers(self) -> peers.Shape:
        """The same for the peers."""
        return peers.Shape(self.layers, self.width, self.heads, self.block)


SIZES = (Size(4, 128, 4, 64, 200), Size(6, 384, 6, 256, 16), Size(16, 512, 16, 256, 6))


def our_model(size: Size, architecture: Any) -> nn.Module:
    """Return one of our models whose weights are not at their quiet beginning."""
    config = ModelConfig(
        architecture=architecture,
        block_size=size.block,
        embed_dim=size.width,
        heads=size.heads,
        layers=size.layers,
        ff_dim=4 * size.width,
    )
    torch.manual_seed(1)
    # As a model is that was loaded: weights of which nobody asks for gradients may be rounded.
    model = build_model(config, TOKENIZER.vocab_size).eval().requires_grad_(False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def recompute(model: nn.Module, size: Size) -> float:
    """Write as nanoGPT's sampler does; return characters/s with the window full."""
    tokens = torch.zeros(1, size.block, dtype=torch.long)
    started = time.perf_counter()
    for _ in range(size.recomputed):
        logits: Tensor = model(tokens[:, -size.block :])[:, -1] / 0.8
        following = torch.multinomial(F.softmax(logits, dim=-1), num_samples=1)
        tokens = torch.cat((tokens, following), dim=1)
    return size.recomputed / (time.perf_counter() - started)


@torch.no_grad()
def transformers_generate(model: Any, size: Size) -> float:
    """Write a block with GPT-2's own `generate` and its cache; return characters/s."""
    count = size.block - 1
    started = time.perf_counter()
    out = model.generate(
        torch.zeros(1, 1, dtype=torch.long),
        attention_mask=torch.ones(1, 1, dtype=torch.long),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=True,
        temperature=0.8,
        top_k=0,
        use_cache=True,
        pad_token_id=0,
    )
    assert out.size(1) == count + 1
    return count / (time.perf_counter() - started)


def transformers_model(size: Size) -> Any:
    """Return Hugging Face's GPT-2 of a size."""
    model: Any = peers.TransformersGPT2(TOKENIZER.vocab_size, size.of_peers).inner
    model.generation_config.eos_token_id = None
    return model.eval()


def ours(model: nn.Module, size: Size, streams: int, precision: Precision = "auto") -> float:
    """Write two blocks past a full window; return characters/s of all streams together."""
    prompt = VOCABULARY[5] * size.block
    samplings = several(SamplingConfig(max_new_tokens=2 * size.block), streams)
    started = time.perf_counter()
    columns = sum(
        1 for _ in generate_batch(model, TOKENIZER, prompt, samplings, precision=precision)
    )
    return columns * streams / (time.perf_counter() - started)


def within_window(model: nn.Module, size: Size, streams: int) -> float:
    """Return steps/s of the decoder alone while the window does not move, best of some."""
    decoder = Decoder(model, streams)
    tokens = [3] * streams
    best = 0.0
    for _ in range(3):
        decoder.start([1] * (size.block // 2))
        started = time.perf_counter()
        for _ in range(size.block // 2):
            decoder.step(tokens)
        best = max(best, size.block // 2 / (time.perf_counter() - started))
    return best


def first_character(model: nn.Module, prompt: str) -> float:
    """Return the milliseconds from the call to the first character."""
    times = []
    for _ in range(5):
        started = time.perf_counter()
        next(generate_stream(model, TOKENIZER, prompt))
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


def read_bandwidth() -> float:
    """Return how many bytes/s are read from memory, with the threads torch uses; best of some."""
    numbers = torch.ones(64 << 20)
    best = 0.0
    for _ in range(6):
        started = time.perf_counter()
        numbers.sum()
        best = max(best, 4 * numbers.numel() / (time.perf_counter() - started))
    return best


def measure(size: Size, rounds: int) -> dict[str, Any]:
    """Measure one size, all contestants in turns; return the medians."""
    models = {architecture: our_model(size, architecture) for architecture in ("modern", "classic")}
    gpt2 = transformers_model(size)
    plain = peers.PlainGPT(TOKENIZER.vocab_size, size.of_peers).eval()
    contestants: dict[str, Callable[[], float]] = {
        "nanogpt": lambda: recompute(plain, size),
        "transformers": lambda: transformers_generate(gpt2, size),
        "float32/1": lambda: ours(models["modern"], size, 1, "float32"),
    }
    for (name, model), streams in itertools.product(models.items(), (1, STREAMS)):
        contestants[f"{name}/{streams}"] = lambda m=model, s=streams: ours(m, size, s)  # type: ignore[misc]
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, run in contestants.items():
            print(f"  {size.name} round {number + 1}: {name} ...", flush=True)
            found[name].append(run())
    model = models["modern"]
    weight_bytes = 4 * sum(value.numel() for value in model.parameters())
    return {
        "rates": {name: statistics.median(values) for name, values in found.items()},
        "steps_within_window": {str(s): within_window(model, size, s) for s in (1, STREAMS)},
        "first_ms": first_character(model, VOCABULARY[9] * 16),
        "first_full_ms": first_character(model, VOCABULARY[9] * size.block),
        "weight_bytes": weight_bytes,
        "bandwidth": read_bandwidth(),
    }


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    compiled = native.compiled_functions(wait=True) is not None
    found = {size.name: measure(size, options.rounds) for size in SIZES}
    speeds, limits = [], []
    for name, result in found.items():
        rates = result["rates"]
        modern, classic = rates["modern/1"], rates["classic/1"]
        speeds.append(
            [name, *(f"{rates[peer]:,.0f}" for peer in ("nanogpt", "transformers"))]
            + [f"{rates['float32/1']:,.0f}", f"{modern:,.0f}", f"{classic:,.0f}"]
            + [f"{modern / rates[peer]:.1f}x" for peer in ("nanogpt", "transformers")]
        )
        steps, bandwidth = result["steps_within_window"], result["bandwidth"]
        limits.append(
            [
                name,
                f"{rates[f'modern/{STREAMS}']:,.0f}",
                f"{rates[f'modern/{STREAMS}'] / modern:.1f}x",
            ]
            + [f"{STREAMS * steps[str(STREAMS)] / steps['1']:.1f}x"]
            + [f"{result['first_ms']:.1f}", f"{result['first_full_ms']:.1f}"]
            + [f"{steps['1']:,.0f}", f"{bandwidth / 1e9:.1f}"]
            + [f"{steps['1'] * result['weight_bytes'] / bandwidth:.2f}"]
        )
    how = f"{options.threads} thread(s), {'compiled step' if compiled else 'torch'}"
    print_table(
        f"characters/s, one stream ({how}); targets 12x and 3x",
        ["layers x width/block", "nanogpt", "transformers", "in float32", "modern", "classic"]
        + ["x", "x"],
        speeds,
    )
    print_table(
        f"{STREAMS} streams (target 5x), first character (target {FIRST_WITHIN_MS:.0f} ms), memory",
        ["modern", "8 streams", "of one", "in window", "first ms", "full prompt ms"]
        + ["1 in window", "GB/s", "weights read / bandwidth"],
        limits,
    )
    with tempfile.TemporaryDirectory() as folder:
        cost = writing_screen.measure(Path(folder))
    writing_screen.report(cost)
    result = {"threads": options.threads, "compiled": compiled, "sizes": found}
    write_json("generate", {**result, "screen": cost._asdict()})


if __name__ == "__main__":
    main()
