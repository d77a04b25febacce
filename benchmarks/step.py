"""A training step by torch's operations against the fused one, in turns, in one process.

`make bench-step`, or with arguments: `make bench-step ARGS="--preset cpu --threads 1"`. Wall time
is what a user waits; processor time says the same of a machine on which others are at work, too.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from benchmarks.report import print_table, write_json
from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import PRESETS
from megatron_model.device import choose_precision
from megatron_model.model.factory import build_model
from megatron_model.model.modern import ModernTransformer
from megatron_model.training.fused.library import Library, build_library, load_library
from megatron_model.training.fused.step import fused_step
from megatron_model.training.optimizer import build_optimizer
from megatron_model.training.step import Step, eager_step

VOCABULARY = 65
SHAPES: dict[str, dict[str, object]] = {
    "smoke": {},
    "cpu": {},
    # As many sequences as a CPU goes through in a second or two.
    "small": {"training.batch_size": 4},
}


def main() -> None:
    """Measure, print, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", choices=SHAPES, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    options = parser.parse_args()
    begun = time.perf_counter()
    for _ in build_library():
        pass
    seconds = time.perf_counter() - begun
    library = load_library()
    dtype = choose_precision(options.precision, torch.device("cpu"))
    rows, found = [], []
    for preset in options.preset or SHAPES:
        config = with_settings(PRESETS[preset].config, SHAPES[preset])
        for threads in options.threads or [1, torch.get_num_threads()]:
            measured = measure(library, config, dtype, threads, options.steps)
            found.append({"preset": preset, "threads": threads, **measured})
            for name in ("eager", "fused"):
                wall, processor = measured[name]["wall"], measured[name]["processor"]
                cells = [f"{value * 1e3:.1f}" for value in (min(wall), median(wall), max(wall))]
                rows.append([f"{preset}, {threads} threads", name, *cells, f"{min(processor):.3f}"])
    title = (
        f"a step in {dtype}, ms; compiling the kernels took {seconds:.1f} s (0: they were there)"
    )
    heads = ["preset", "step", "least", "median", "most", "processor s"]
    print_table(title, heads, rows)
    write_json("step", {"precision": str(dtype), "compiling": seconds, "steps": found})


def measure(
    library: Library, config: RunConfig, dtype: torch.dtype, threads: int, steps: int
) -> dict[str, Any]:
    """Return the seconds of each step of each kind, in turns."""
    torch.set_num_threads(threads)
    training = config.training
    torch.manual_seed(0)
    inputs = torch.randint(VOCABULARY, (training.batch_size, config.model.block_size))
    targets = torch.randint(VOCABULARY, inputs.shape)
    kinds: dict[str, Step] = {}
    for name in ("eager", "fused"):
        model = build_model(config.model, VOCABULARY)
        assert isinstance(model, ModernTransformer)
        optimizer = build_optimizer(model, training)
        rows = training.batch_size
        kinds[name] = (
            fused_step(library, model, optimizer, training, dtype=dtype, micro_batch=rows)
            if name == "fused"
            else eager_step(model, optimizer, training, dtype=dtype, micro_batch=rows)
        )
    found: dict[str, Any] = {name: {"wall": [], "processor": []} for name in kinds}
    for number in range(steps + 3):
        for name, step in kinds.items():
            wall, processor = timed(lambda step=step: step(number, 0.1, inputs, targets))  # type: ignore[misc]  # noqa: B023
            if number >= 3:
                found[name]["wall"].append(wall)
                found[name]["processor"].append(processor)
    return found


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds that pass, and those of the processors."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


if __name__ == "__main__":
    main()
