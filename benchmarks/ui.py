"""What the screen costs: the workbench in a real pseudo-terminal, against the same run without one.

python -m benchmarks.ui [--seconds S] [--rounds N]

Training speed inside the workbench - watched, and with keys pressed all the time - between two
stretches of the same run without a screen, because a machine's own speed drifts; the time from a
key press to its picture while training; the first frame, beside that of the smallest Textual app;
and the bytes a second that a run in training sends to the terminal. 120 columns and 40 rows, two
torch threads where there are two cores, and once more one alone.
"""

from __future__ import annotations

import argparse
import fcntl
import math
import os
import pty
import select
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path
from typing import Any

from benchmarks.report import print_table, write_json
from megatron_model.events.schema import MetricsReported
from megatron_model.run.folder import RunFolder

CORPUS = "builtin:python-reference"
COLUMNS, ROWS = 120, 40
SYNC_QUESTION, SYNC_ANSWER = b"\x1b[?2026$p", b"\x1b[?2026;2$y"
TRIVIAL = (
    "from textual.app import App; from textual.widgets import Static\n"
    "class A(App):\n    def compose(self): yield Static('megatron')\nA().run()"
)


class Terminal:
    """A program in a pseudo-terminal of its own, and everything it wrote with its moment."""

    def __init__(self, command: list[str]) -> None:
        self.written: list[tuple[float, bytes]] = []
        self.started = time.perf_counter()
        self.pid, self._descriptor = pty.fork()
        if self.pid == 0:
            fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
            os.environ.update(TERM="xterm-256color", COLORTERM="truecolor", LANG="C.UTF-8")
            os.execvp(command[0], command)

    def read(self, seconds: float, until: bytes | None = None) -> float | None:
        """Take in what comes for `seconds`; return when `until` was there, from now, if it came."""
        begun = time.perf_counter()
        since = len(self.written)
        while (left := begun + seconds - time.perf_counter()) > 0:
            ready, _, _ = select.select([self._descriptor], [], [], left)
            if not ready:
                break
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:
                break
            self.written.append((time.perf_counter(), data))
            if SYNC_QUESTION in data:
                os.write(self._descriptor, SYNC_ANSWER)
            if until and until in b"".join(part for _, part in self.written[since:]):
                return time.perf_counter() - begun
        return None

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._descriptor, keys)

    def close(self) -> None:
        """End the program and wait for it."""
        os.kill(self.pid, signal.SIGTERM)
        end = time.perf_counter() + 30
        while time.perf_counter() < end:
            self.read(0.1)
            if os.waitpid(self.pid, os.WNOHANG)[0]:
                break
        else:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        os.close(self._descriptor)


def workbench(runs_dir: Path, what: str = CORPUS) -> Terminal:
    """Open the workbench on a corpus or a run."""
    return Terminal([sys.executable, "-m", "megatron_tui", what, "--runs-dir", str(runs_dir)])


class Run:
    """One run that is trained for a while without a screen, then with one, then without again."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = RunFolder(folder / "paired")
        self._new = [CORPUS, "--preset", "cpu", "--name", "paired"]
        for setting in ("steps=100000", f"threads={threads}", "compile=on"):
            self._new += ["--set", f"training.{setting}"]

    def speeds(self, since: float, until: float = math.inf) -> list[float]:
        """Return the speeds reported between two moments."""
        reports = [e for e in self._folder.read_events()[0] if isinstance(e, MetricsReported)]
        return [event.tokens_per_second for event in reports if since < event.time < until]

    def speed(self, since: float, until: float = math.inf) -> float:
        """Return the median speed between two moments, without the first quarter."""
        found = self.speeds(since, until)
        return statistics.median(found[len(found) // 4 :])

    def headless(self, seconds: float) -> float:
        """Train it without a screen; return the median speed."""
        what = ["--resume", "paired"] if self._folder.path.exists() else self._new
        command = [sys.executable, "-m", "megatron_model", "train", *what]
        begun = time.time()
        process = subprocess.Popen(
            [*command, "--runs-dir", str(self._folder.path.parent)],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        self._wait_for_steps(begun)
        time.sleep(seconds)
        process.send_signal(signal.SIGTERM)
        process.wait()
        return self.speed(begun)

    def on_screen(self, seconds: float) -> dict[str, Any]:
        """Train it in the workbench; return speeds, key times and traffic."""
        begun = time.time()
        terminal = workbench(self._folder.path.parent, "paired")
        terminal.read(20, until=b"loss,")
        terminal.read(4)
        terminal.press(b"r")  # resumes
        self._wait_for_steps(begun, terminal)
        terminal.read(seconds / 2)
        since, half = len(terminal.written), time.perf_counter()
        terminal.read(seconds / 2)
        traffic = sum(len(data) for _, data in terminal.written[since:])
        traffic_rate = traffic / (time.perf_counter() - half)
        watched = time.time()
        waits = key_times(terminal, seconds / 3)
        pressed = time.time()
        terminal.close()
        return {
            "speed": self.speed(begun, watched),
            "speed_with_keys": self.speed(watched, pressed),
            "keys": waits,
            "bytes_per_second": traffic_rate,
        }

    def _wait_for_steps(self, since: float, terminal: Terminal | None = None) -> None:
        deadline = time.perf_counter() + 120
        while time.perf_counter() < deadline:
            if self.speeds(since):
                return
            if terminal is None:
                time.sleep(0.2)
            else:
                terminal.read(0.2)
        raise SystemExit("waited in vain for a run to train")


def paired(seconds: float, threads: int) -> dict[str, Any]:
    """Return what the screen costs a run; its speed without one is taken before and after."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder), threads)
        before, screen, after = run.headless(seconds), run.on_screen(seconds), run.headless(seconds)
        found = {"threads": threads, "headless": (before, after), **screen}
        alone = (before + after) / 2
        found["share"] = screen["speed"] / alone
        found["share_with_keys"] = screen["speed_with_keys"] / alone
        print(f"  {threads or 'all'} threads: {before:,.0f} {screen['speed']:,.0f} {after:,.0f}")
        return found


def key_times(terminal: Terminal, seconds: float) -> list[float]:
    """Return how long each of many keys took to change the screen, in milliseconds.

    Switching to Runs and back paints a whole screen; the word looked for is only on it.
    """
    waits = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for key, word in ((b"\x1b[15~", b"status"), (b"\x1bOR", b"loss,")):  # F5, F3
            terminal.press(key)
            found = terminal.read(5, until=word)
            waits.append(1000 * (5.0 if found is None else found))
            terminal.read(0.15)
    return waits


def first_frame(command: list[str] | None) -> float:
    """Return the milliseconds from the start of the process to its name on the screen."""
    with tempfile.TemporaryDirectory() as folder:
        terminal = workbench(Path(folder)) if command is None else Terminal(command)
        found = terminal.read(20, until=b"megatron")
        terminal.close()
        return 1000 * (20.0 if found is None else found)


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=24, help="length of each part")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    trivial, ours = [], []
    for _ in range(7):
        trivial.append(first_frame([sys.executable, "-c", TRIVIAL]))
        ours.append(first_frame(None))
    rounds = [paired(options.seconds, 0) for _ in range(options.rounds)]
    spare = [paired(options.seconds, 1) for _ in range(max(1, options.rounds // 2))]
    keys = sorted(wait for each in rounds for wait in each["keys"])
    share, pressed = (
        statistics.median(each[name] for each in rounds) for name in ("share", "share_with_keys")
    )
    one = statistics.median(each["share"] for each in spare)
    p95 = keys[int(0.95 * (len(keys) - 1))]
    traffic = statistics.median(each["bytes_per_second"] for each in rounds) / 1000
    frame, smallest = statistics.median(ours), statistics.median(trivial)
    rows = [
        ("training speed, workbench against headless", f"{share:.1%}", "95 %"),
        ("the same, another screen called six times a second", f"{pressed:.1%}", ""),
        ("the same, watched, one torch thread and a core free", f"{one:.1%}", "99 %"),
        ("key to picture while training, median", f"{statistics.median(keys):.0f} ms", ""),
        ("key to picture while training, p95", f"{p95:.0f} ms", "50 ms"),
        ("first frame, median of 7", f"{frame:.0f} ms", "400 ms"),
        ("first frame of the smallest Textual app", f"{smallest:.0f} ms", ""),
        ("to the terminal while training", f"{traffic:.1f} KB/s", "10 KB/s"),
    ]
    print_table("what the screen costs, 120x40", ("what", "measured", "target"), rows)
    write_json(
        "ui",
        {
            "rounds": rounds,
            "one_thread": spare,
            "first_frame": ours,
            "first_frame_trivial": trivial,
        },
    )


if __name__ == "__main__":
    main()
