"""Training on a CUDA card: every preset in every way, peers in the same loop, and a whole run.

`make bench-gpu`, or with arguments: `make bench-gpu ARGS="--corpus shakespeare.txt --profile"`.
All in one process but the whole runs; medians of rounds taken in turns; the card is named.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.peers import PlainGPT, Shape, TransformersGPT2
from benchmarks.report import print_table, write_json
from megatron_model.config.fields import RunConfig, SamplingConfig, with_settings
from megatron_model.config.presets import PRESETS
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.sampler import generate_batch, several
from megatron_model.model.factory import build_model
from megatron_model.planning.preflight import flops_per_character, preflight
from megatron_model.training.learner import Learner, build_learner, describe

VOCABULARY = 65
CARD = torch.device("cuda")
WAYS: dict[str, dict[str, object]] = {
    "one by one": {"training.compile": "off"},
    "recorded": {"training.compile": "off"},
    "compiled": {"training.compile": "on"},
    "exact": {"training.compile": "on", "training.deterministic": "on"},
}
SHAKESPEARE = Shape(layers=6, width=384, heads=6, block=256, dropout=0.2)
"""nanoGPT's settings for character-level Shakespeare on a card; a batch has 64 sequences."""


def main() -> None:
    """Measure, print, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=PRESETS, action="append")
    parser.add_argument("--way", choices=WAYS, action="append")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument(
        "--corpus", type=Path, help="train on it to the end, and nanoGPT's loop too"
    )
    parser.add_argument("--peer-steps", type=int, default=5000, help="steps of nanoGPT's whole run")
    parser.add_argument("--profile", action="store_true", help="the longest kernels of each preset")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA card here.")
        return
    results: dict[str, Any] = {
        "card": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "matrix_rate": matrix_rate(),
        "copy_rate": copy_rate(),
    }
    print(
        f"{results['card']}, torch {results['torch']}, "
        f"{results['matrix_rate'] / 1e12:.0f} TFLOP/s, {results['copy_rate'] / 1e12:.2f} TB/s"
    )
    results["steps"] = steps_of_presets(options, results["matrix_rate"])
    results["writing"] = writing()
    if options.corpus:
        results["whole"] = [whole_run(options.corpus)]
        if options.peer_steps:
            results["whole"].append(whole_peer(options.corpus, options.peer_steps))
        print_table(
            "a whole run",
            ["", "loss", "seconds"],
            [
                [row["name"], f"{row['loss']:.4f}", f"{row['seconds']:.1f}"]
                for row in results["whole"]
            ],
        )
    results["peers"] = steps_of_peers(options.steps)
    write_json("gpu", results)


def matrix_rate() -> float:
    """Return the operations a second of large bfloat16 products of random numbers."""
    size = 8192
    left, right = (torch.randn(size, size, device=CARD, dtype=torch.bfloat16) for _ in range(2))
    return 2.0 * size**3 / seconds_of(lambda: left @ right, 20)


def copy_rate() -> float:
    """Return the bytes a second of a copy on the card, read and written."""
    source = torch.empty(1 << 30, device=CARD, dtype=torch.uint8)
    target = torch.empty_like(source)
    return 2.0 * source.numel() / seconds_of(lambda: target.copy_(source), 20)


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Return the seconds that one of `times` takes on the card, after a few to warm up."""
    for _ in range(5):
        work()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(times):
        work()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / times


def steps_of_presets(options: argparse.Namespace, rate: float) -> list[dict[str, Any]]:
    """Measure the steps of every preset in every way, a fresh compiler's time included."""
    found = []
    for preset in options.preset or ["small", "medium", "large", "seed"]:
        for way in options.way or WAYS:
            config = with_settings(PRESETS[preset].config, {"training.device": "cuda", **WAYS[way]})
            try:
                found.append({"preset": preset, "way": way} | measured(config, way, options, rate))
            except Exception as error:  # the others are still worth it
                found.append({"preset": preset, "way": way, "error": str(error)[:200]})
            print(found[-1], flush=True)
    rows = [
        [
            f"{row['preset']}, {row['way']}",
            f"{row['ms']:.2f}",
            f"{row['rate'] / 1e6:.3f}M",
            f"{row['mfu']:.1%}",
            f"{row['share']:.1%}",
            f"{row['gib']:.2f}",
            f"{row['expected']:.2f}",
            f"{row['first']:.1f}",
        ]
        for row in found
        if "error" not in row
    ]
    heads = ["step", "ms", "chars/s", "of 989", "of products", "GiB", "expected", "first s"]
    print_table("a step", heads, rows)
    return found


def measured(
    config: RunConfig, way: str, options: argparse.Namespace, rate: float
) -> dict[str, Any]:
    """Take steps as a run does."""
    torch._dynamo.reset()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    about = describe(CARD, torch.bfloat16)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, 4_000_000).astype(np.uint8)
    learner = build_learner(config, VOCABULARY, tokens, tokens[:100_000])
    learner._records = learner._records and way != "one by one"
    begun = time.perf_counter()
    for _ in learner.prepare(0):
        pass
    take(learner, 1)
    torch.cuda.synchronize()
    first = time.perf_counter() - begun
    take(learner, 5)
    rounds = []
    for _ in range(3):
        torch.cuda.synchronize()
        begun = time.perf_counter()
        take(learner, max(3, options.steps // 3))
        torch.cuda.synchronize()
        rounds.append((time.perf_counter() - begun) / max(3, options.steps // 3))
    seconds = median(rounds)
    characters = config.training.batch_size * config.sequence_length
    work = flops_per_character(config, VOCABULARY) * characters
    if options.profile and way == "compiled":
        profile(learner)
    return {
        "ms": seconds * 1e3,
        "rounds": [value * 1e3 for value in rounds],
        "rate": characters / seconds,
        "mfu": work / seconds / 989e12,
        "share": work / seconds / rate,
        "gib": torch.cuda.max_memory_allocated() / 2**30,
        "expected": preflight(config, vocabulary_size=VOCABULARY, device=about).total_bytes / 2**30,
        "first": first,
        "compiled": learner.compiled,
        "notices": learner.take_notices(),
    }


def take(learner: Learner, steps: int) -> None:
    """Take steps, batches included."""
    for number in range(steps):
        learner.step(number, 0.5, *learner.batch(number, 0.5))


def profile(learner: Learner) -> None:
    """Print the kernels that take the longest in three steps."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiled

    with profiled(activities=[ProfilerActivity.CUDA]) as found:
        take(learner, 3)
        torch.cuda.synchronize()
    table = found.key_averages().table(
        sort_by="self_cuda_time_total", row_limit=18, max_name_column_width=70
    )
    lines = table.splitlines()
    print("\n".join(line[:72] + line[-90:] for line in lines))


def writing() -> list[dict[str, Any]]:
    """Measure characters a second: on the CPU, and on the card alone and in a batch."""
    found = []
    tokenizer = CharTokenizer("".join(map(chr, range(48, 48 + VOCABULARY))))
    for preset in ("small", "large"):
        model = build_model(PRESETS[preset].config.model, VOCABULARY).eval().requires_grad_(False)
        for place, streams in (("cpu", 1), ("card", 1), ("card", 8), ("card", 64)):
            model = model.to("cpu" if place == "cpu" else CARD)
            rates = []
            for count in (100, 400):  # what is made once is made by the first
                sampling = SamplingConfig(max_new_tokens=count)
                begun = time.perf_counter()
                for _ in generate_batch(model, tokenizer, "0" * 64, several(sampling, streams)):
                    pass
                rates.append(count * streams / (time.perf_counter() - begun))
            found.append({"preset": preset, "place": place, "streams": streams, "rates": rates})
    rows = [
        [f"{row['preset']}, {row['place']}, {row['streams']}", *(f"{r:,.0f}" for r in row["rates"])]
        for row in found
    ]
    print_table("writing, characters/s", ["", "first text", "second"], rows)
    return found


def steps_of_peers(steps: int) -> list[dict[str, Any]]:
    """Measure the steps of peers of the size of `small`, with their own optimizer and loop."""
    found = []
    for name, kind, compiled in (
        ("nanoGPT, compiled", PlainGPT, True),
        ("nanoGPT", PlainGPT, False),
        ("transformers", TransformersGPT2, False),
    ):
        torch._dynamo.reset()
        torch.cuda.empty_cache()
        model = kind(VOCABULARY, SHAKESPEARE).to(CARD)
        step = peer_step(model, compiled)
        batch = torch.randint(0, VOCABULARY, (64, 257), device=CARD)
        begun = time.perf_counter()
        step(batch, 1e-3)
        torch.cuda.synchronize()
        first = time.perf_counter() - begun
        seconds = seconds_of(lambda step=step, batch=batch: step(batch, 1e-3), steps)
        found.append(
            {"name": name, "ms": seconds * 1e3, "rate": 64 * 256 / seconds, "first": first}
        )
        print(found[-1], flush=True)
    return found


def peer_step(model: nn.Module, compiled: bool) -> Callable[[torch.Tensor, float], None]:
    """Return nanoGPT's update: autocast, clipped gradients, fused AdamW."""
    decayed = [p for p in model.parameters() if p.dim() >= 2]
    rest = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}],
        betas=(0.9, 0.99),
        fused=True,
    )
    computing: Any = torch.compile(model) if compiled else model

    def step(batch: torch.Tensor, rate: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cuda", dtype=torch.bfloat16):
            logits = computing(batch[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def whole_run(corpus: Path) -> dict[str, Any]:
    """Train the preset of a small card to its end, as a person does."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "megatron_model", "train", str(corpus), "--preset", "small"],
            env={**os.environ, "MEGATRON_RUNS_DIR": folder},
            check=True,
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - begun
        print(done.stdout[-1500:])
        (log,) = Path(folder).glob("*/events.jsonl")
        events = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [event["val_loss"] for event in events if event.get("event") == "evaluated"]
    return {"name": "small", "loss": min(losses), "losses": losses, "seconds": seconds}


def whole_peer(corpus: Path, steps: int) -> dict[str, Any]:
    """Train nanoGPT's loop with its settings, without its estimates of the loss meanwhile."""
    begun = time.perf_counter()
    text = corpus.read_text(encoding="utf-8")
    numbers = {character: token for token, character in enumerate(sorted(set(text)))}
    tokens = torch.tensor([numbers[character] for character in text], device=CARD)
    train, validation = tokens[: len(tokens) * 9 // 10], tokens[len(tokens) * 9 // 10 :]
    torch.manual_seed(1337)
    model = PlainGPT(len(numbers), SHAKESPEARE).to(CARD)
    step = peer_step(model, compiled=True)
    window = torch.arange(257, device=CARD)
    for number in range(steps):
        share = max(0.0, (number - 100) / (steps - 100))
        rate = 1e-4 + 0.5 * (1 + np.cos(np.pi * share)) * 9e-4
        starts = torch.randint(len(train) - 256, (64,), device=CARD)
        step(train[starts[:, None] + window], rate * min(1.0, (number + 1) / 101))
    torch.cuda.synchronize()
    seconds = time.perf_counter() - begun
    model.eval()
    total, blocks = 0.0, (len(validation) - 1) // 256
    inputs = validation[: blocks * 256].view(blocks, 256)
    targets = validation[1 : blocks * 256 + 1].view(blocks, 256)
    with torch.no_grad(), torch.autocast("cuda", dtype=torch.bfloat16):
        for x, y in zip(inputs.split(64), targets.split(64), strict=True):
            logits = model(x).flatten(0, 1).float()
            total += float(F.cross_entropy(logits, y.flatten(), reduction="sum"))
    loss = total / (blocks * 256)
    return {"name": f"nanoGPT, {steps:,} steps", "loss": loss, "seconds": seconds}


if __name__ == "__main__":
    main()
