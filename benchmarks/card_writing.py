"""How fast text is written on a CUDA card: python -m benchmarks.card_writing

Models have the shape of a preset and random weights: speed does not ask what they mean. Each number
of streams writes past the end of the window, so that it moves and is read again. `started one by
one` is the decoder, which starts every computation from the host.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import nn

from benchmarks.report import print_table, write_json
from megatron_model.config.fields import SamplingConfig
from megatron_model.config.presets import get_preset
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.decoder import Decoder
from megatron_model.inference.precision import Precision
from megatron_model.inference.sampler import generate_batch, several
from megatron_model.model.factory import build_model

TOKENIZER = CharTokenizer("\n" + "".join(chr(33 + index) for index in range(64)))
PRESETS, STREAMS = ("small", "large"), (1, 8, 64)


def a_model(preset: str, device: torch.device) -> nn.Module:
    """Return a model of a preset's shape, its weights not at their quiet beginning."""
    torch.manual_seed(1)
    model = build_model(get_preset(preset).config.model, TOKENIZER.vocab_size)
    for parameter in model.requires_grad_(False).parameters():
        parameter.add_(0.02 * torch.randn_like(parameter))
    return model.to(device).eval()


def measure(model: nn.Module, streams: int, count: int, precision: Precision) -> dict[str, float]:
    """Write twice; return what the second time took, when the graphs are there.

    Returns:
        Characters/s of all streams together, and seconds to the first character: the first time,
        which captures, and the second.
    """
    samplings = several(SamplingConfig(max_new_tokens=count), streams)
    found = {}
    for name in ("first", "again"):
        began = time.perf_counter()
        columns = generate_batch(model, TOKENIZER, "!" * 16, samplings, precision=precision)
        next(columns)
        found[f"{name}_seconds"] = time.perf_counter() - began
        written = 1 + sum(1 for _ in columns)
        found["rate"] = written * streams / (time.perf_counter() - began)
    return found


def one_by_one(model: nn.Module, streams: int, steps: int = 30) -> float:
    """Return characters/s of the decoder, sampling left out."""
    decoder = Decoder(model, streams)
    decoder.start([1] * 16)
    decoder.step([3] * streams)
    began = time.perf_counter()
    for _ in range(steps):
        decoder.step([3] * streams)
    return steps * streams / (time.perf_counter() - began)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", default=PRESETS)
    parser.add_argument("--streams", nargs="+", type=int, default=STREAMS)
    parser.add_argument("--length", type=int, default=2000, help="characters of each stream")
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    device = torch.device(options.device)
    rows: list[list[str]] = []
    results: dict[str, Any] = {}
    for preset in options.presets:
        model = a_model(preset, device)
        for streams in options.streams:
            half = measure(model, streams, options.length, "auto")
            whole = measure(model, streams, options.length, "float32")
            plain = one_by_one(model, streams)
            results[f"{preset}/{streams}"] = {"auto": half, "float32": whole, "plain": plain}
            rates = [f"{rate:,.0f}" for rate in (half["rate"], whole["rate"], plain)]
            firsts = [f"{1000 * half[name]:.0f}" for name in ("first_seconds", "again_seconds")]
            rows.append([preset, str(streams), *rates, f"{half['rate'] / plain:.1f}x", *firsts])
            print("  " + "  ".join(rows[-1]), flush=True)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print_table(
        f"characters/s of all streams on {name}",
        ["preset", "streams", "auto", "float32", "started one by one", "x"]
        + ["first character ms", "again ms"],
        rows,
    )
    write_json("card_writing", {"device": name, "torch": torch.__version__, "sizes": results})


if __name__ == "__main__":
    main()
