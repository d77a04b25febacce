"""How soon a model is good, against its peers: whole processes, in turns, in one run.

python -m benchmarks.train [TEXT ...] [--seeds N]

Every text is trained on by a plain GPT loop with nanoGPT's settings for a CPU, and by the `cpu`
preset in a twelfth of the wall time that loop took, once for each seed, and in the same wall time;
the first text by Hugging Face's GPT-2 as well. Each of our processes finds its caches empty. Wall
time counts from the start of the process to its end, imports and the last evaluation included.
Every loss is over the whole validation split. Texts: files, or built-in corpora; both built-in ones
are always taken.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.report import print_table, write_json

if TYPE_CHECKING:
    from megatron_model.training.learner import Learner

TWELFTH = 12
BUILTIN = ("builtin:python-reference", "builtin:python-stdlib")
EFFICIENCY_PRESETS = {"smoke": 60, "cpu": 30, "small": 4}
"""Presets of which a step is measured, and how many steps: what fits two cores and a minute."""


def run_json(command: list[str], cache: Path | None = None) -> tuple[list[dict[str, Any]], float]:
    """Run a command; return the JSON objects it printed, and its wall time in seconds.

    `cache`: the folder in which it keeps what it makes once on a machine.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)} if cache else None
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    seconds = time.perf_counter() - started
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    lines = done.stdout.splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")], seconds


def run_peer(name: str, text: Path) -> dict[str, Any]:
    """Train one peer and return its figures."""
    print(f"  {name} ...", flush=True)
    found, seconds = run_json([sys.executable, "-m", "benchmarks.peers", name, str(text)])
    return {**found[-1], "wall": seconds}


def run_ours(text: Path, wall: float, seed: int) -> dict[str, Any]:
    """Train the `cpu` preset for `wall` seconds, on empty caches."""
    print(f"  ours in {wall:.1f} s, seed {seed} ...", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [sys.executable, "-m", "megatron_model", "train", str(text), "--preset", "cpu"]
        command += ["--json", "--runs-dir", str(folder / "runs"), "--max-seconds", f"{wall:.2f}"]
        command += ["--set", f"training.seed={seed}"]
        events, seconds = run_json(command, folder / "cache")
    evaluated = [event for event in events if event["event"] == "evaluated"]
    finished = [event for event in events if event["event"] == "step_finished"]
    return {
        "val_loss": min(event["val_loss"] for event in evaluated),
        "last_val_loss": evaluated[-1]["val_loss"],
        "steps": evaluated[-1]["step"],
        "elapsed": events[-1]["elapsed_seconds"],
        # A short budget on a long text may end before the first report.
        "characters_per_second": finished[-1]["tokens_per_second"] if finished else math.nan,
        "wall": seconds,
    }


def compare(text: Path, name: str, seeds: int, *, all_peers: bool) -> dict[str, Any]:
    """Measure everything on one text, in turns."""
    print(name, flush=True)
    peer = run_peer("nanogpt", text)
    soon = [run_ours(text, peer["wall"] / TWELFTH, seed) for seed in range(1, seeds + 1)]
    result = {"text": name, "nanogpt": peer, "ours_in_a_twelfth": soon}
    if all_peers:
        result["transformers"] = run_peer("transformers", text)
    result["ours_in_the_same"] = [run_ours(text, peer["wall"], 1)]
    return result


def efficiency(preset: str, steps: int) -> dict[str, Any]:
    """Return the share of the machine's matrix rate that a preset's step reaches.

    Counted twice: all the products that a step does, as torch counts them, Muon's among them; and
    the model's alone, with half of the attention, by the formula of `flops_per_character`.
    """
    command = [sys.executable, "-m", "benchmarks.train", "--efficiency-of", preset]
    found, _ = run_json([*command, "--steps", str(steps)])
    return found[-1]


def measure_efficiency(preset: str, steps: int) -> None:
    """Time steps in this process, with the matrix rate measured before and after; print JSON."""
    from megatron_model.util.process import keep_freed_memory, wait_without_spinning

    # As the command line does it.
    wait_without_spinning()
    keep_freed_memory()

    import torch

    from megatron_model.config.fields import with_settings
    from megatron_model.config.presets import get_preset
    from megatron_model.data.corpus import find_corpus
    from megatron_model.data.token_cache import prepare_now, split
    from megatron_model.data.tokenizer import CharTokenizer
    from megatron_model.device import measure_matrix_rate
    from megatron_model.events.schema import MetricsReported
    from megatron_model.planning.preflight import flops_per_character
    from megatron_model.training.learner import build_learner
    from megatron_model.training.trainer import Trainer

    changes = {
        "training.steps": str(steps + 1),
        "training.log_every": "1",
        "training.evaluate_every": "1000000",
        "training.sample_length": "0",
        "training.compile": "on",
    }
    config = with_settings(get_preset(preset).config, changes)
    prepared = prepare_now(find_corpus(BUILTIN[0]))
    train, validation = split(prepared, 0.1, config.model.block_size)
    tokenizer = CharTokenizer.from_vocabulary(prepared.vocabulary)
    trainer = Trainer(config, tokenizer, train, validation[: 2 * config.model.block_size])
    before = measure_matrix_rate(trainer.device, trainer.dtype)
    speeds = [e.tokens_per_second for e in trainer.run() if isinstance(e, MetricsReported)][1:]
    rate = max(before, measure_matrix_rate(trainer.device, trainer.dtype))
    speed = sorted(speeds)[len(speeds) // 2]
    model_alone = flops_per_character(config, tokenizer.vocab_size) * speed
    learner = build_learner(
        with_settings(config, {"training.compile": "off"}),
        tokenizer.vocab_size,
        train,
        validation,
    )
    characters = config.training.batch_size * config.sequence_length
    work = products_of_a_step(learner) / characters * speed
    print(
        json.dumps(
            {
                "preset": preset,
                "dtype": str(trainer.dtype).removeprefix("torch."),
                "threads": torch.get_num_threads(),
                "characters_per_second": speed,
                "matrix_gflops": rate / 1e9,
                "step_gflops": work / 1e9,
                "share": work / rate,
                "model_gflops": model_alone / 1e9,
                "model_share": model_alone / rate,
            }
        )
    )


def products_of_a_step(learner: Learner) -> float:
    """Return the floating-point operations of the matrix products of one update, counted."""
    from torch.utils.flop_counter import FlopCounterMode

    for _ in learner.prepare(0):
        pass
    inputs, targets = learner.batch(0, 1.0)
    with FlopCounterMode(display=False) as counter:
        learner.step(0, 1.0, inputs, targets)
    return float(counter.get_total_flops())


def as_file(name: str, folder: Path) -> Path:
    """Return the text as one file that every peer can read."""
    from megatron_model.data.corpus import find_corpus, read_chunks

    if not name.startswith("builtin:"):
        return Path(name)
    path = folder / f"{name.removeprefix('builtin:')}.txt"
    path.write_text("".join(chunk for chunk, _ in read_chunks(find_corpus(name))), encoding="utf-8")
    return path


def print_report(results: list[dict[str, Any]], shares: list[dict[str, Any]]) -> None:
    """Print the tables."""
    rows = []
    for result in results:
        peer = result["nanogpt"]
        kinds = ("nanogpt", "transformers", "ours_in_a_twelfth", "ours_in_the_same")
        for kind in (kind for kind in kinds if kind in result):
            runs = result[kind] if isinstance(result[kind], list) else [result[kind]]
            losses = [run["val_loss"] for run in runs]
            wall, speed, steps = (
                mean(run[key] for run in runs) for key in ("wall", "characters_per_second", "steps")
            )
            rows.append(
                (
                    result["text"],
                    kind.replace("_", " "),
                    f"{mean(losses):.4f}",
                    f"{stdev(losses):.4f}" if len(losses) > 1 else "",
                    f"{wall:.1f}",
                    f"{peer['wall'] / wall:.1f}x",
                    f"{steps:.0f}",
                    f"{speed:,.0f}",
                )
            )
    heads = ("text", "what", "validation", "spread", "wall s", "faster", "steps", "characters/s")
    print_table("validation loss in wall time, in turns", heads, rows)
    print_table(
        "share of the measured matrix rate",
        ("preset", "dtype", "threads", "characters/s", "GFLOP/s", "of", "share", "model alone"),
        [
            (
                share["preset"],
                share["dtype"],
                share["threads"],
                f"{share['characters_per_second']:,.0f}",
                f"{share['step_gflops']:.0f}",
                f"{share['matrix_gflops']:.0f}",
                f"{share['share']:.0%}",
                f"{share['model_share']:.0%}",
            )
            for share in shares
        ],
    )


def main() -> None:
    """Measure, print the tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("texts", nargs="*", help="files to train on before the built-in corpora")
    parser.add_argument(
        "--seeds", type=int, default=3, help="runs in a twelfth of the time, on each text"
    )
    parser.add_argument("--efficiency-of", metavar="PRESET", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=30, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.efficiency_of:
        measure_efficiency(options.efficiency_of, options.steps)
        return
    shares = [efficiency(preset, steps) for preset, steps in EFFICIENCY_PRESETS.items()]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [*options.texts, *BUILTIN]
        for text in texts:
            path = as_file(text, folder)
            results.append(
                compare(path, Path(text).name, options.seeds, all_peers=text == texts[0])
            )
            # After each: what was measured is not lost with the next.
            write_json("train", {"results": results, "efficiency": shares})
    print_report(results, shares)


if __name__ == "__main__":
    main()
