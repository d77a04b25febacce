"""Records the tour of README and docs: a real run in a real terminal, driven by keys.

python -m tools.tour [--seconds S]

The workbench runs behind a pseudo-terminal; what it draws is read by a terminal of our own, and
looked at now and then. The looks become docs/pictures/tour.svg and tour.cast.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pyte

from megatron_model.interop.film import Film, Frame, Span, as_cast, as_svg

FOLDER = Path(__file__).parent.parent / "docs" / "pictures"
WIDTH, HEIGHT = 110, 32
KEYS = {
    "f3": "\x1bOR", "f4": "\x1bOS", "f5": "\x1b[15~", "enter": "\r", "escape": "\x1b",
    "ctrl+r": "\x12", "home": "\x1b[H", "right": "\x1b[C",
}  # fmt: skip


class Recorder:
    """The workbench in a terminal, and the looks that were taken at it."""

    def __init__(self, command: list[str]) -> None:
        self._screen = pyte.Screen(WIDTH, HEIGHT)
        self._stream = pyte.ByteStream(self._screen)
        self.frames: list[Frame] = []
        pid, self._terminal = pty.fork()
        if pid == 0:
            os.execvp(command[0], command)
        self.pid = pid
        size = struct.pack("HHHH", HEIGHT, WIDTH, 0, 0)
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, size)

    def watch(self, seconds: float) -> None:
        """Take in what is drawn for a while."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            if select.select([self._terminal], [], [], left)[0]:
                self._stream.feed(os.read(self._terminal, 1 << 16))

    def until(self, condition: Callable[[str], bool], what: str, seconds: float = 60) -> None:
        """Wait for something to stand on the screen; end the program if it does not come."""
        end = time.monotonic() + seconds
        while not condition("\n".join(self._screen.display)):
            if time.monotonic() > end:
                raise SystemExit(f"{what} did not come:\n" + "\n".join(self._screen.display))
            self.watch(0.1)

    def shows(self, text: str, seconds: float = 60) -> None:
        """Wait for a text."""
        self.until(lambda shown: text in shown, text, seconds)

    def press(self, *keys: str) -> None:
        """Press keys, one at a time."""
        for key in keys:
            os.write(self._terminal, KEYS.get(key, key).encode())
            # An escape with something right behind it is another key.
            self.watch(1.0 if key == "escape" else 0.08)

    def look(self, seconds: float) -> None:
        """Take a look that stays for so many seconds."""
        rows = tuple(self._row(number) for number in range(HEIGHT))
        if self.frames and self.frames[-1].rows == rows:
            rows, before = self.frames.pop()
            seconds += before
        self.frames.append(Frame(rows, seconds))

    def _row(self, number: int) -> tuple[Span, ...]:
        spans: list[Span] = []
        cells = self._screen.buffer[number]
        for column in range(WIDTH):
            cell = cells[column]
            if not cell.data and spans:  # the second half of a wide character
                spans[-1] = spans[-1]._replace(cells=spans[-1].width + 1)
                continue
            ink, paper = _colour(cell.fg), _colour(cell.bg)
            if cell.reverse:
                ink, paper = paper or "#0d1117", ink or "#d8dee9"
            style = (ink, paper, cell.bold, cell.underscore)
            last = spans[-1] if spans else None
            if last is not None and not last.cells and last[1:5] == style:
                spans[-1] = last._replace(text=last.text + cell.data)
            else:
                spans.append(Span(cell.data, *style))
        return tuple(spans)


def _colour(name: str) -> str:
    return f"#{name}" if len(name) == 6 and all(c in "0123456789abcdef" for c in name) else ""


def record(runs: Path, seconds: float) -> Film:
    """Go through the workbench as a person would."""
    python = [sys.executable, "-m"]
    recorder = Recorder([*python, "megatron_tui"])
    try:
        recorder.shows("preflight")
        recorder.watch(6)
        recorder.look(2.5)
        recorder.press("ctrl+r")
        recorder.until(lambda shown: "step" in shown and "loss" in shown, "the run")
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            recorder.watch(seconds / 12)
            recorder.look(0.5)
        [run] = list(runs.glob("[!.]*"))
        told = ["megatron_model", "tell", run.name, "stop"]
        subprocess.run([*python, *told], check=True)
        recorder.until(lambda _: any((run / "checkpoints").glob("step-*")), "a checkpoint")
        recorder.watch(2)
        recorder.look(1.5)
        recorder.press("f4")
        recorder.shows("vocabulary")
        recorder.watch(2)
        for letter in "The ":
            recorder.press(letter)
            recorder.look(0.25)
        recorder.press("enter")
        for _ in range(6):
            recorder.watch(0.15)
            recorder.look(0.3)
        recorder.shows("done")
        recorder.look(1.5)
        recorder.press("escape", "x")
        recorder.shows("at the cursor")
        recorder.watch(2)
        recorder.press("home", *["right"] * 11)
        for _ in range(6):
            recorder.press("right")
            recorder.watch(0.3)
            recorder.look(0.5)
        recorder.press("2")
        for _ in range(12):
            recorder.watch(0.5)
            recorder.look(0.35)
        recorder.look(1.5)
        recorder.press("escape")
        recorder.watch(0.5)
        recorder.press("f5")
        recorder.watch(1.5)
        recorder.look(2.5)
    finally:
        os.kill(recorder.pid, signal.SIGTERM)
        os.waitpid(recorder.pid, 0)
    return Film("Megatron, a workbench for character-level transformers", WIDTH, HEIGHT,
                recorder.frames)  # fmt: skip


def main() -> None:
    """Record it anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="how long the run trains")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    os.environ.update(COLORTERM="truecolor", TERM="xterm-256color", TEXTUAL_ANIMATIONS="none")
    os.environ["XDG_CACHE_HOME"] = str(platformdirs.user_cache_path())
    for kind in ("CONFIG", "DATA", "STATE"):
        os.environ.pop(f"XDG_{kind}_HOME", None)
    with tempfile.TemporaryDirectory() as folder:
        # The pictures are nobody's own, and name no path of this machine.
        runs = Path(folder) / "runs"
        os.environ.update(HOME=folder, MEGATRON_RUNS_DIR=str(runs))
        film = record(runs, options.seconds)
    (FOLDER / "tour.svg").write_text(as_svg(film), encoding="utf-8")
    (FOLDER / "tour.cast").write_text(as_cast(film), encoding="utf-8")
    print(f"{len(film.frames)} looks in {FOLDER.name}/")


if __name__ == "__main__":
    main()
