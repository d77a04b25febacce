"""Real trainers, workbenches and terminals, and how tests and the torture wait for them.

Nothing sleeps for a time and hopes: every wait is for something that happens, with an end.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from megatron_model.config.fields import with_settings
from megatron_model.events.log import last_event
from megatron_model.events.schema import Event, MetricsReported, RunHandedOver
from megatron_model.run import lock as run_lock
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import LOCK_FILE, RunFolder
from megatron_tui.textual_patches.chunks import HAND_SECONDS
from tests.model.helpers import tiny_config

PATIENCE = 60.0
ENDLESS: Mapping[str, object] = {
    "training.steps": 10_000_000,
    "training.log_every": 20,
    "training.evaluate_every": 10_000_000,
    "training.checkpoint_every": 10_000_000,
    # torch's own optimizers load its compiler, which takes a process longer than all the rest.
    "training.optimizer": "muon",
}
"""A run that goes on until it is told to stop."""


def wait_for(condition: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    """Look again and again until `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:.0f} s in vain for {what}")
        time.sleep(0.01)


def make_run(runs_dir: Path, corpus: Path, name: str = "long", **changes: object) -> RunFolder:
    """Make the folder of a tiny run that does not end by itself."""
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    config = tiny_config({"data.corpus": str(corpus)})
    return RunFolder.create(runs_dir, name, with_settings(config, {**ENDLESS, **dotted}))


@contextlib.contextmanager
def start_trainer(folder: RunFolder, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A headless trainer of the run, which does not outlive the block."""
    command = [sys.executable, "-m", "megatron_model", "train", "--resume", str(folder.path)]
    with subprocess.Popen(
        [*command, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as trainer:
        try:
            yield trainer
        finally:
            trainer.kill()


def reports(folder: RunFolder) -> int:
    """Return how many reports of steps are in the log."""
    return sum(isinstance(event, MetricsReported) for event in folder.read_events()[0])


def wait_for_reports(folder: RunFolder, more: int = 1) -> None:
    """Wait until training went on by so many reports."""
    wanted = reports(folder) + more
    wait_for(lambda: reports(folder) >= wanted, f"{more} more reports of {folder.name}")


def gaps(events: list[Event]) -> list[float]:
    """Return the seconds between the last report before and the first after each hand-over."""
    found: list[float] = []
    before: MetricsReported | None = None
    open_gap = False
    for event in events:
        if isinstance(event, RunHandedOver):
            open_gap = True
        elif isinstance(event, MetricsReported):
            if open_gap and before is not None:
                found.append(event.time - before.time)
            open_gap, before = False, event
    return found


def hand_overs(folder: RunFolder) -> int:
    """Return how often the run changed hands."""
    return sum(isinstance(event, RunHandedOver) for event in folder.read_events()[0])


def last_hand_over(folder: RunFolder) -> int:
    """Return the step at which the run last changed hands."""
    events = folder.read_events()[0]
    return max(event.step for event in events if isinstance(event, RunHandedOver))


def stop(folder: RunFolder) -> None:
    """Stop whichever process trains the run, or is about to, and wait until none does.

    One that does not obey is killed: it would train on for ever.
    """
    asked = -math.inf

    def ended() -> bool:
        nonlocal asked
        if folder.is_active() and time.monotonic() > asked + 1.0:
            # Again: a trainer that is just beginning drops what was meant for the one before it.
            CommandFolder(folder.path).send("stop")
            asked = time.monotonic()
        handed_over = isinstance(last_event(folder.events_path), RunHandedOver)
        return not folder.is_active() and not handed_over

    try:
        wait_for(ended, f"the end of {folder.name}")
    except AssertionError:
        if folder.is_active() and (holder := run_lock.holder(folder.path / LOCK_FILE)):
            os.kill(holder.pid, signal.SIGKILL)
        raise


class Terminal:
    """A program in a terminal of its own, read by a thread until one of the two is gone."""

    def __init__(self, *arguments: str, env: Mapping[str, str] | None = None) -> None:
        self.output = b""
        self._pressed = -math.inf
        self._reading = threading.Event()
        self._reading.set()
        pid, self._master = pty.fork()
        if pid == 0:
            os.environ.update({"TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})})
            for name in ("COLUMNS", "LINES"):
                os.environ.pop(name, None)
            with contextlib.suppress(OSError):
                os.execv(sys.executable, [sys.executable, *arguments])
            os._exit(127)
        self.pid = pid
        self.status: int | None = None
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._reading.wait()
                data = os.read(self._master, 65536)
                if not data:
                    return
                self.output += data

    def stall(self) -> None:
        """Take nothing any more, as a network that hangs."""
        self._reading.clear()

    def press(self, keys: str) -> None:
        """Send keys, no sooner after the last ones than a hand can."""
        time.sleep(max(0.0, self._pressed + 10 * HAND_SECONDS - time.monotonic()))
        os.write(self._master, keys.encode())
        self._pressed = time.monotonic()

    def see(self, text: str, seconds: float = PATIENCE) -> None:
        """Wait until the program has written this."""
        wait_for(lambda: text.encode() in self.output, f"{text!r} on the screen", seconds)

    def close(self) -> None:
        """Hang up, as a connection that drops."""
        with contextlib.suppress(OSError):
            # The reader holds the descriptor; a hang-up is the last one's closing.
            null = os.open(os.devnull, os.O_RDONLY)
            os.dup2(null, self._master)
            os.close(null)
        self._reading.set()

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait for the program's end and return its exit status, negative for a signal."""

        def ended() -> bool:
            if self.status is None:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    self.status = os.waitstatus_to_exitcode(status)
            return self.status is not None

        wait_for(ended, "the end of the workbench", seconds)
        assert self.status is not None
        return self.status

    def kill(self) -> None:
        """End it whatever it does."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            self.status = -signal.SIGKILL
        self.close()


@contextlib.contextmanager
def workbench(
    runs_dir: Path, target: str, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """A workbench in a terminal, with a run open."""
    terminal = Terminal("-m", "megatron_tui", target, "--runs-dir", str(runs_dir), env=env)
    try:
        yield terminal
    finally:
        terminal.kill()


@contextlib.contextmanager
def training_workbench(
    runs_dir: Path, folder: RunFolder, env: Mapping[str, str] | None = None
) -> Iterator[Terminal]:
    """A workbench in a terminal that trains the run."""
    with workbench(runs_dir, folder.name, env) as terminal:
        terminal.see("Resume")
        terminal.press("r")
        wait_for_reports(folder, 2)
        yield terminal
