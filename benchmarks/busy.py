"""Training beside busy loops of somebody else: what is left of the speed, and of the fair share.

`make bench-busy`, or with arguments: `make bench-busy ARGS="--loops 0 1 4 --seconds 20"`. The fair
share of T threads beside N loops on C cores is C T / (T + N) cores, of the C that it has alone.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import print_table, write_json


def main() -> None:
    """Measure, print, and write the figures down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loops", type=int, nargs="+", default=[0, 1, 2, 4, 0])
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--preset", default="cpu")
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    found: list[dict[str, Any]] = []
    for _ in range(options.rounds):
        for loops in options.loops:
            for threads in (0, cores):  # as it chooses, and as many as there are cores
                rates = speed(options.preset, options.seconds, loops, threads)
                found.append({"loops": loops, "threads": threads, "rates": rates})
                print(found[-1], flush=True)
    alone = median(rate for row in found if not row["loops"] for rate in row["rates"])
    rows = []
    for loops in sorted({row["loops"] for row in found}):
        cells = []
        for threads in (0, cores):
            some = [
                r
                for row in found
                if (row["loops"], row["threads"]) == (loops, threads)
                for r in row["rates"]
            ]
            fair = alone * cores / (cores + loops)
            cells += [f"{median(some) / 1e3:.1f}k", f"{median(some) / fair:.0%}"]
        rows.append([f"{loops} loops", *cells])
    heads = ["beside", "chosen", "of the fair share", f"{cores} threads", "of the fair share"]
    print_table(f"{options.preset}, {cores} cores, characters/s", heads, rows)
    write_json("busy", {"alone": alone, "rows": found})


def speed(preset: str, seconds: float, loops: int, threads: int) -> list[float]:
    """Return the speeds that a run reports beside so many busy loops, its first third left out."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(loops)]
    try:
        time.sleep(0.5)
        with tempfile.TemporaryDirectory() as folder:
            words = [
                "train",
                "builtin:python-reference",
                "--preset",
                preset,
                "--json",
                "--max-seconds",
                str(seconds),
                "--set",
                f"training.threads={threads}",
                "--set",
                "training.device=cpu",
            ]
            done = subprocess.run(
                [sys.executable, "-m", "megatron_model", *words],
                env={**os.environ, "MEGATRON_RUNS_DIR": str(Path(folder))},
                capture_output=True,
                text=True,
                check=True,
            )
    finally:
        for other in others:
            other.kill()
            other.wait()
    events = [json.loads(line) for line in done.stdout.splitlines()]
    rates = [e["tokens_per_second"] for e in events if e["event"] == "step_finished"]
    return rates[len(rates) // 3 :]


if __name__ == "__main__":
    main()
