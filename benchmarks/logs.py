"""What it costs to show a run whose log is long, and a folder of many runs.

Every figure is the least of some fresh processes, on one core: python -m benchmarks.logs
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, write_json

REQUIRED = {
    "shown": (2.0, 150.0),
    "whole": (10.0, 150.0),
    "first": (20.0, 150.0),
    "again": (1.0, 150.0),
}
"""Seconds of the processor and MB that each may take; `whole` and `first`, which happen behind the
screen, are bounded only loosely."""


def make_log(path: Path, lines: int) -> None:
    """Write the log of a run with a report in most lines, each of whole 64-bit numbers."""
    from megatron_model.events import schema as events

    chance = random.Random(1)
    common = {"characters": 10**6, "vocabulary_size": 65, "parameters": 10**6, "device": "cpu"}
    started = events.RunStarted(step=0, name="long", corpus="c", steps=10 * lines, **common)  # type: ignore[arg-type]
    begun, seconds = started.time, 0.0
    with path.open("wb") as log:
        log.write(events.encode_event(started))
        for line in range(1, lines):
            step = 10 * line
            seconds += chance.random()
            event: events.Event = events.MetricsReported(
                step=step,
                time=begun + seconds,
                train_loss=1.0 + chance.random(),
                learning_rate=chance.random(),
                gradient_norm=chance.random(),
                tokens_per_second=1e5 * chance.random(),
                elapsed_seconds=seconds,
                data_wait=chance.random(),
            )
            if line % 1000 == 0:
                event = events.Evaluated(
                    step=step,
                    time=begun + seconds,
                    val_loss=1.0 + chance.random(),
                    bits_per_character=2.0,
                    elapsed_seconds=seconds,
                )
            elif line % 10 == 0:
                event = events.DeviceSampled(
                    step=step,
                    time=begun + seconds,
                    kind="ram",
                    name="this process",
                    used=10**9 + line,
                    peak=10**9 + line,
                    total=10**10,
                )
            log.write(events.encode_event(event))


def make_runs(runs_dir: Path, count: int) -> None:
    """Make folders of small runs."""
    from megatron_model.config.presets import get_preset
    from megatron_model.run.folder import RunFolder

    first = RunFolder.create(runs_dir, "run-0", get_preset("smoke").config)
    make_log(first.events_path, 30)
    files = [(path.name, path.read_bytes()) for path in first.path.iterdir() if path.is_file()]
    for number in range(1, count):
        folder = runs_dir / f"run-{number}"
        folder.mkdir()
        for name, data in files:
            (folder / name).write_bytes(data)


def measure_log(path: Path) -> list[dict[str, float]]:
    """Open a log as a screen does, and fold all of it."""
    from megatron_model.run.folder import RunFolder
    from megatron_tui.services.run_log import RunLog

    folder = RunFolder(path)
    return [_measured(lambda: RunLog.opened(folder)), _measured(folder.fold)]


def measure_runs(runs_dir: Path) -> list[dict[str, float]]:
    """Read all runs of a folder, for the first time and again."""
    from megatron_tui.runs.listing import KnownRuns

    known = KnownRuns()

    def read() -> None:
        for folder in known.list_all(runs_dir):
            known.row(folder)

    return [_measured(read), _measured(read)]


def main() -> None:
    """Print a table and write the results of today."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--lines", type=int, default=2_000_000)
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "PATH"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        what, path = arguments.measure
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        print(json.dumps((measure_log if what == "log" else measure_runs)(Path(path))))
        return
    with tempfile.TemporaryDirectory() as folder:
        log, runs = Path(folder) / "log" / "long", Path(folder) / "runs"
        log.mkdir(parents=True)
        runs.mkdir()
        make_log(log / "events.jsonl", arguments.lines)
        make_runs(runs, arguments.runs)
        rounds = [
            [*_in_fresh_process("log", log), *_in_fresh_process("runs", runs)]
            for _ in range(arguments.rounds)
        ]
    least = {
        name: {key: min(one[place][key] for one in rounds) for key in ("seconds", "cpu", "mb")}
        for place, name in enumerate(REQUIRED)
    }
    titles = (
        f"a log of {arguments.lines:,} lines, its curves in outline",
        "the same, every line of it",
        f"{arguments.runs:,} runs, first time",
        f"{arguments.runs:,} runs, again",
    )
    print_table(
        f"least of {arguments.rounds}",
        ("what", "s", "of it CPU", "MB more", "required: CPU s"),
        [
            (title, f"{row['seconds']:.2f}", f"{row['cpu']:.2f}", f"{row['mb']:.0f}", most)
            for title, row, (most, _) in zip(titles, least.values(), REQUIRED.values(), strict=True)
        ],
    )
    passed = all(
        least[name]["cpu"] <= seconds and least[name]["mb"] <= mb
        for name, (seconds, mb) in REQUIRED.items()
    )
    print("passed" if passed else "failed")
    print(f"written to {write_json('logs', {'least': least, 'rounds': rounds})}")


def _measured(work: Callable[[], object]) -> dict[str, float]:
    memory, started, busy = _peak_mb(), time.perf_counter(), time.process_time()
    work()
    return {
        "seconds": time.perf_counter() - started,
        "cpu": time.process_time() - busy,
        "mb": _peak_mb() - memory,
    }


def _in_fresh_process(what: str, path: Path) -> list[dict[str, float]]:
    command = [sys.executable, "-m", "benchmarks.logs", "--measure", what, str(path)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: list[dict[str, Any]] = json.loads(done.stdout)
    return result


def _peak_mb() -> float:
    """The most memory this process had; getrusage would count that of its parent too."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1000
    raise RuntimeError("this system does not say how much memory a process had")


if __name__ == "__main__":
    main()
