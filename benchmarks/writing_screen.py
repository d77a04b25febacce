"""What the screen costs while a text is written, in a real pseudo-terminal.

python -m benchmarks.writing_screen; it is also a part of `benchmarks.generate`.

A model of a size that writes about a thousand characters a second is made (a few steps: what it
writes does not matter here), opened in the workbench at 120x40, and written with by keys. The
interface is the main thread of the process; the model writes in another one.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import print_table, write_json
from benchmarks.ui import CORPUS, Terminal

CHARACTERS = 10_000
SHAPE = {"layers": 4, "embed_dim": 256, "heads": 4, "ff_dim": 1024}
TARGET = 0.15
TABS_TO_SAMPLING = 4
F4 = b"\x1bOS"


class Cost(NamedTuple):
    """How fast it wrote, what the interface took of one core, and what went to the terminal."""

    characters_per_second: float
    interface_share: float
    bytes_per_second: float


def make_run(folder: Path) -> Path:
    """Train a few steps of the model; return its run."""
    command = [sys.executable, "-m", "megatron_model", "train", CORPUS, "--preset", "cpu"]
    command += ["--name", "wide", "--runs-dir", str(folder), "--set", "training.steps=2"]
    command += ["--set", "training.compile=off"]
    for name, value in SHAPE.items():
        command += ["--set", f"model.{name}={value}"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "wide"


def cpu_seconds(pid: int, thread: int) -> float:
    """Return the processor time that one thread has had."""
    fields = Path(f"/proc/{pid}/task/{thread}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def press(terminal: Terminal, *keys: bytes) -> None:
    """Type one key after the other, as a person would."""
    for key in keys:
        terminal.press(key)
        terminal.read(0.2)


def measure(folder: Path) -> Cost:
    """Write `CHARACTERS` characters in the workbench."""
    run = make_run(folder)
    command = [sys.executable, "-m", "megatron_tui", str(run), "--runs-dir", str(folder)]
    terminal = Terminal(command)
    try:
        terminal.read(8)
        press(terminal, F4)
        terminal.read(2)
        press(terminal, *[b"\t"] * TABS_TO_SAMPLING, b"\r", b"\x1b[H", *[b"\x1b[3~"] * 6)
        press(terminal, *[digit.encode() for digit in str(CHARACTERS)], b"\r", b"i")
        terminal.press(b"\r")
        if terminal.read(20, until=b"writing") is None:
            raise RuntimeError("the workbench did not begin to write")
        begun, written = time.perf_counter(), len(terminal.written)
        before = cpu_seconds(terminal.pid, terminal.pid)
        if terminal.read(120, until=b"done") is None:
            raise RuntimeError("the workbench did not come to the end of its text")
        seconds = time.perf_counter() - begun
        used = cpu_seconds(terminal.pid, terminal.pid) - before
        sent = sum(len(data) for _, data in terminal.written[written:])
    finally:
        terminal.close()
    return Cost(CHARACTERS / seconds, used / seconds, sent / seconds)


def report(cost: Cost) -> None:
    """Print what was measured."""
    row = (
        f"{cost.characters_per_second:,.0f}",
        f"{cost.interface_share:.1%}",
        f"{TARGET:.0%}",
        f"{cost.bytes_per_second / 1000:.1f} KB/s",
    )
    print_table(
        "the screen while a text is written, 120x40",
        ("characters/s", "interface, of one core", "target", "to the terminal"),
        [row],
    )


def main() -> None:
    """Measure, print and write."""
    with tempfile.TemporaryDirectory() as folder:
        cost = measure(Path(folder))
    report(cost)
    write_json("writing_screen", cost._asdict())


if __name__ == "__main__":
    main()
