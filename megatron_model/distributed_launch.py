"""Start a run on several devices of this machine with torchrun, and stand in for it. No torch.

torchrun has a session of its own, so that what a terminal sends reaches this process alone: it asks
the run to stop through its folder, as any other program would, and waits. Of what is printed it
shows the lines that are for people, and appends the rest (torchrun's own) to the run's trainer.log.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from megatron_model.command_folder import CommandFolder
from megatron_model.device import available_cores
from megatron_model.errors import RequestError
from megatron_model.event_log import EventLog, last_event
from megatron_model.events import RunFailed, RunFinished, RunHandedOver
from megatron_model.handover import last_words, open_trainer_log
from megatron_model.run_folder import RunFolder
from megatron_model.text import safe

LINE_MARK = "\x1e"
"""Begins a line for people; `safe` lets no such character through, so nothing else can."""
ASK_AGAIN_SECONDS = 3.0


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that train together."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes_here() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def say_status(status: int) -> None:
    """Tell the process that started torchrun what this run's exit status is to be."""
    if os.environ.get("MEGATRON_LINE_MARK"):
        sys.stderr.write(f"{LINE_MARK * 2}{status}\n")
        sys.stderr.flush()


def command_of(
    folder: RunFolder, devices: int, max_restarts: int, arguments: Sequence[str]
) -> list[str]:
    """Return the command that trains the run in `folder` with so many processes."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # This machine's own address: its name may lead elsewhere, or nowhere.
    torchrun += ["--local-addr=127.0.0.1", f"--nproc-per-node={devices}"]
    # What the ranks print is read here; a folder for it would be left behind each time.
    torchrun += [f"--log-dir={os.devnull}"]
    torchrun += [f"--max-restarts={max_restarts}", "-m", "megatron_model"]
    return [*torchrun, "train", "--resume", str(folder.path.resolve()), *arguments]


def launch(
    folder: RunFolder, devices: int, *, max_restarts: int = 0, arguments: Sequence[str] = ()
) -> int:
    """Train the run in `folder` on so many devices to its end; returns the exit status.

    Args:
        folder: the run, new or not.
        devices: how many processes train together.
        max_restarts: how often torchrun starts them again after one was lost.
        arguments: what else is for ``train``.
    """
    return _Launch(folder).run(command_of(folder, devices, max_restarts, arguments), devices)


class _Launch:
    """torchrun at work, and this process in its place."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder
        self._signal = 0
        self._signals = 0
        self._asked = 0.0
        self._status: int | None = None
        try:
            self._log = open_trainer_log(folder)
        except OSError as error:
            raise RequestError(
                f"Cannot write {safe(str(error.filename))}: {error.strerror}."
            ) from None

    def run(self, command: list[str], devices: int) -> int:
        """Run the command to its end."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, self._go_on_alone)
        with subprocess.Popen(
            command,
            env=_environment(devices),
            stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as child:
            reader = threading.Thread(target=self._read, args=(child,), daemon=True)
            reader.start()
            code = self._wait(child)
            # Not for ever: a process that was left behind would hold the pipe open.
            reader.join(5.0)
        return self._result(code)

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(0.2)
            if not self._signal:
                continue
            now = time.monotonic()
            if self._folder.is_active() and now - self._asked > ASK_AGAIN_SECONDS:
                # Again: what comes before a trainer is ready is not meant for it.
                self._asked = now
                with contextlib.suppress(RequestError):
                    CommandFolder(self._folder.path).send("stop")
            elif not self._folder.is_active() and self._signals > 1:
                child.terminate()

    def _read(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stderr is not None
        mark = LINE_MARK.encode()
        for line in child.stderr:
            if line.startswith(mark * 2):
                with contextlib.suppress(ValueError):
                    self._status = int(line[2:])
            elif line.startswith(mark):
                with contextlib.suppress(OSError):
                    os.write(2, line[1:])
            else:
                with contextlib.suppress(OSError):
                    os.write(self._log, line)

    def _result(self, code: int) -> int:
        if self._status is not None:
            return self._status
        last = last_event(self._folder.events_path)
        if code:
            if not isinstance(last, (RunFailed, RunFinished, RunHandedOver)):
                self._say_failed()
            return 1
        if isinstance(last, RunFailed):
            return 1
        return 128 + self._signal if self._signal else 0

    def _say_failed(self) -> None:
        """Write down that the ranks ended without a word, which nobody else is left to do."""
        text = f"The processes that trained this run ended without a word. {self._last_words()}"
        with contextlib.suppress(OSError):
            os.write(2, f"{safe(text, one_line=True)}\n".encode())
        if self._folder.is_active() or not self._folder.events_path.exists():
            return
        with contextlib.suppress(OSError, RequestError):
            log = EventLog(self._folder.events_path)
            log.record(RunFailed(step=self._folder.state().step, error=text), sync=True)
            log.close()

    def _last_words(self) -> str:
        words = last_words(self._folder)
        return f"trainer.log ends with: {words}" if words else ""

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self._signal = self._signal or number
        self._signals += 1

    def _go_on_alone(self, _number: int, _frame: FrameType | None) -> None:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        for descriptor in (1, 2):
            os.dup2(self._log, descriptor)


def _environment(devices: int) -> dict[str, str]:
    environment = {**os.environ, "MEGATRON_LINE_MARK": LINE_MARK}
    root = str(Path(__file__).parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // devices)))
    if sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")
    return environment
