"""Several processes train one run: the same losses, how much sooner, and what a lost one costs.

python -m benchmarks.distributed [curves] [speed] [kills] [--share S]

Real processes started as a user starts them, gloo between them, one thread each. Curves: the `cpu`
preset in float32 on 1, 2 and 4 processes with the same global batch. Speed: characters a second of
1 and of 2 processes, in turns, for the `cpu` preset and one size larger. Kills: a random rank of 2
is killed, the time until the run has ended and says so is taken, and the run is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import psutil

from benchmarks.report import print_table, write_json
from megatron_model.events.schema import RunFailed, RunStarted
from megatron_model.run import lock as run_lock
from megatron_model.run.folder import LOCK_FILE, RunFolder

CORPUS = "builtin:python-reference"
AGREEMENT = 1e-3
SPEEDUP = 1.7
SPEED_PRESETS = {"cpu": (100, 20), "small": (8, 8)}
"""Steps of a run, and the fewest that tell anything."""
WARMING = 2
LONGEST_END = 30.0
COMMON = {"training.threads": 1, "training.sample_length": 0, "training.log_every": 10}
FLOAT32 = {"training.precision": "float32", "training.muon_precision": "float32"}
PATIENCE = 300.0


def command(
    runs: Path, name: str, devices: int, preset: str, changes: dict[str, object]
) -> list[str]:
    """Return the command that trains a new run."""
    found = [sys.executable, "-m", "megatron_model", "train", CORPUS, "--preset", preset]
    found += ["--runs-dir", str(runs), "--name", name, "--devices", str(devices), "--json"]
    for key, value in {**COMMON, **changes}.items():
        found += ["--set", f"{key}={value}"]
    return found


def train(
    runs: Path, name: str, devices: int, preset: str, changes: dict[str, object]
) -> list[dict[str, Any]]:
    """Train a run to its end and return its events."""
    print(f"  {name} ...", file=sys.stderr, flush=True)
    done = subprocess.run(
        command(runs, name, devices, preset, changes), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def losses(events: list[dict[str, Any]]) -> dict[str, float]:
    """Return every loss by its kind and step."""
    names = {"step_finished": "train_loss", "evaluated": "val_loss"}
    kinds = [event for event in events if event["event"] in names]
    return {f"{e['event']} {e['step']}": e[names[e["event"]]] for e in kinds}


def curves(runs: Path, steps: int) -> dict[str, Any]:
    """Compare the losses of 1, 2 and 4 processes, in float32 and as the preset computes."""
    found: dict[str, Any] = {"steps": steps}
    length: dict[str, object] = {
        "training.steps": steps,
        "training.evaluate_every": max(1, steps // 2),
    }
    for arithmetic, changes in (("float32", FLOAT32), ("as preset", {})):
        kept = {**length, **changes}
        one = losses(train(runs, f"curve-1-{arithmetic[:2]}", 1, "cpu", kept))
        for devices in (2, 4):
            other = losses(train(runs, f"curve-{devices}-{arithmetic[:2]}", devices, "cpu", kept))
            assert other.keys() == one.keys()
            apart = max(abs(other[key] - one[key]) for key in one)
            found[f"{devices} processes, {arithmetic}"] = apart
    return found


def speed(runs: Path, preset: str, steps: int, rounds: int) -> dict[str, Any]:
    """Compare the characters a second of 1 and 2 processes, taken in turns."""
    seen: dict[int, list[float]] = {1: [], 2: []}
    changes: dict[str, object] = {
        "training.steps": steps,
        "training.evaluate_every": 10**6,
        "training.log_every": max(1, steps // 10),
        # As in a run of the preset's own length, which compiles what can be compiled.
        "training.compile": "on",
    }
    for number in range(rounds):
        for devices, speeds in seen.items():
            name = f"speed-{preset}-{devices}-{number}"
            events = train(runs, name, devices, preset, changes)
            reports = [e["tokens_per_second"] for e in events if e["event"] == "step_finished"]
            # The first reports hold what is done but once, memory asked for first of all.
            speeds.append(statistics.median(reports[WARMING:]))
    one, two = (statistics.median(seen[devices]) for devices in (1, 2))
    return {"1 process": one, "2 processes": two, "times": two / one, "rounds": seen}


def kills(runs: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill a random rank again and again; time the end, and resume."""
    draw = random.Random(seed)
    endless = {"training.steps": 10**7, "training.evaluate_every": 10**7}
    endless |= {"training.checkpoint_every": 20, "training.log_every": 10}
    start = command(runs, "killed", 2, "smoke", {**endless, "training.compile": "off"})
    again = [sys.executable, "-m", "megatron_model", "train", "--resume", "killed"]
    again += ["--runs-dir", str(runs)]
    folder = RunFolder(runs / "killed")
    ends, problems, resumed = [], [], 0
    for number in range(count + 1):
        before = _starts(folder)
        with subprocess.Popen(
            again if number else start, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as launcher:
            try:
                _wait(lambda: _went_on(folder, before), "training to go on")  # noqa: B023
                resumed += number > 0
                if number == count:
                    launcher.send_signal(signal.SIGTERM)
                    break
                rank = draw.randrange(2)
                time.sleep(draw.random())
                _kill(folder, rank)
                began = time.monotonic()
                launcher.wait(PATIENCE)
                ends.append(time.monotonic() - began)
            finally:
                if number < count:
                    launcher.terminate()
                launcher.wait(PATIENCE)
        last = folder.read_events()[0][-1]
        if not isinstance(last, RunFailed) or f"Rank {rank} " not in last.error:
            problems.append(f"{number}: rank {rank}, but the log ends with {last}")
    return {"kills": count, "resumed": resumed, "seconds": ends, "unclear": problems}


def _starts(folder: RunFolder) -> int:
    return sum(isinstance(event, RunStarted) for event in folder.read_events()[0])


def _went_on(folder: RunFolder, before: int) -> bool:
    """Whether a new attempt has begun, and saved something of its own."""
    if _starts(folder) <= before:
        return False
    started = [e for e in folder.read_events()[0] if isinstance(e, RunStarted)][-1]
    latest = folder.latest_checkpoint()
    return latest is not None and latest.step > started.step


def _kill(folder: RunFolder, rank: int) -> None:
    """Kill one of the processes that train the run; its lock names rank 0's."""
    holder = run_lock.holder(folder.path / LOCK_FILE)
    assert holder is not None
    leader = psutil.Process(holder.pid)
    others = [child for child in leader.parent().children() if child.pid != leader.pid]
    (leader if rank == 0 else others[rank - 1]).kill()


def _wait(condition: Any, what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > end:
            raise SystemExit(f"waited in vain for {what}")
        time.sleep(0.05)


def main() -> int:
    """Measure what was asked for; returns 1 when a number is not reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.distributed", description=__doc__)
    parser.add_argument("only", nargs="*", help="curves, speed, kills")
    parser.add_argument("--share", type=float, default=1.0, help="of the full numbers")
    options = parser.parse_args()
    wanted = set(options.only) or {"curves", "speed", "kills"}
    rows: list[tuple[str, str, str, bool]] = []
    results: dict[str, Any] = {"share": options.share}

    def count(full: int, least: int = 1) -> int:
        return max(least, round(full * options.share))

    with tempfile.TemporaryDirectory(prefix="megatron-distributed-") as name:
        runs = Path(name) / "runs"
        if "curves" in wanted:
            found = results["curves"] = curves(runs, count(200, 20))
            for key in ("2 processes, float32", "4 processes, float32"):
                rows.append(
                    (f"losses apart, {key}", f"{found[key]:.1e}", "1e-3", found[key] <= AGREEMENT)
                )
            for key in ("2 processes, as preset", "4 processes, as preset"):
                rows.append((f"losses apart, {key}", f"{found[key]:.1e}", "-", True))
        if "speed" in wanted:
            for preset, (steps, least) in SPEED_PRESETS.items():
                found = speed(runs, preset, count(steps, least), count(3))
                results[f"speed, {preset}"] = found
                reached = found["times"] >= SPEEDUP
                what = f"characters/s, 2 processes to 1, {preset}"
                rows.append((what, f"{found['times']:.2f}", "1.7", reached))
        if "kills" in wanted:
            seed = int.from_bytes(os.urandom(4), "big")
            found = results["kills"] = {**kills(runs, count(20), seed), "seed": seed}
            longest = max(found["seconds"])
            clear = found["kills"] - len(found["unclear"])
            rows.append(
                (
                    "clear ends, longest",
                    f"{clear} in {longest:.1f} s",
                    f"{found['kills']} in 30 s",
                    clear == found["kills"] and longest <= LONGEST_END,
                )
            )
            rows.append(
                (
                    "resumed",
                    str(found["resumed"]),
                    str(found["kills"]),
                    found["resumed"] == found["kills"],
                )
            )
    print_table("Several processes", ("figure", "result", "target", "reached"), rows)
    write_json("distributed", results)
    return 0 if all(reached for *_, reached in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
