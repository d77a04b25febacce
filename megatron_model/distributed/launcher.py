"""Start a run on several devices of this machine, a process for each, and wait for them. No torch.

Not by torchrun, whose store listens on every address and unpickles what it is given: here the
processes meet in a private folder. Each has a session of its own, so that what a terminal sends
reaches this process alone: it asks the run to stop through its folder, as any other program would.
Of what is printed it shows the lines that are for people, and appends the rest to the run's
trainer.log. A run on several machines is started by a torchrun of the user's own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import NamedTuple

from megatron_model.device import available_cores
from megatron_model.events.log import EventLog, last_event
from megatron_model.events.schema import RunFailed, RunFinished, RunHandedOver
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import RunFolder
from megatron_model.run.handover import last_words, open_trainer_log
from megatron_model.util.errors import RequestError
from megatron_model.util.python_child import start_python
from megatron_model.util.streams import say
from megatron_model.util.text import safe

LINE_MARK = "\x1e"
"""Begins a line for people; `safe` lets no such character through, so nothing else can."""
MEETING_VARIABLE = "MEGATRON_MEETING"
"""Names the folder where the ranks of one machine meet, in their environment."""
LAUNCHER_VARIABLE = "MEGATRON_LAUNCHER"
"""Names the process that started them."""
REFUSED = 2
"""Exit status of a rank for what was asked, and will be refused as often as it is tried."""
ASK_AGAIN_SECONDS = 3.0
LOOK_SECONDS = 0.1
PARTING_SECONDS = 30.0
"""How long the ranks may take to end once one of them failed, before they are killed."""


def started_by_torchrun() -> bool:
    """Whether this is one of several processes that train together."""
    return "LOCAL_RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def processes_here() -> int:
    """Return how many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def say_status(status: int) -> None:
    """Tell the process that started the ranks what this run's exit status is to be."""
    if os.environ.get("MEGATRON_LINE_MARK"):
        say(f"{LINE_MARK * 2}{status}")


def launch(
    folder: RunFolder, devices: int, *, max_restarts: int = 0, arguments: Sequence[str] = ()
) -> int:
    """Train the run in `folder` on so many devices to its end; returns the exit status.

    Args:
        folder: the run, new or not.
        devices: how many processes train together.
        max_restarts: how often they are started again after one was lost.
        arguments: what else is for ``train``.

    Raises:
        RequestError: the processes cannot be started.
    """
    return _Launch(folder, devices, max_restarts, arguments).run()


class _Launch:
    """This process, while the ranks it started train."""

    def __init__(
        self, folder: RunFolder, devices: int, max_restarts: int, arguments: Sequence[str]
    ) -> None:
        self._folder = folder
        self._devices = devices
        self._max_restarts = max_restarts
        self._arguments = ["train", "--resume", str(folder.path.resolve()), *arguments]
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

    def run(self) -> int:
        """Train to the end, or to the last failure that may be tried again."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._stop)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as nohup leaves it
            signal.signal(signal.SIGHUP, self._go_on_alone)
        attempt = 0
        while True:
            lost = self._try(attempt)
            again = lost is not None and lost.can_be_tried_again and not self._signal
            if lost is None or not again or attempt == self._max_restarts:
                return self._result(lost)
            attempt += 1
            self._note(f"{lost}; all start again ({attempt} of {self._max_restarts})")

    def _try(self, attempt: int) -> _Lost | None:
        """Train once; returns the rank that failed first, if one did."""
        with contextlib.ExitStack() as stack:
            try:
                folder = tempfile.TemporaryDirectory(prefix="megatron-", ignore_cleanup_errors=True)
                ranks, reader = self._start(attempt, stack.enter_context(folder))
            except OSError as error:
                raise RequestError(
                    f"Cannot start {self._devices} processes: {error.strerror or error}."
                ) from None
            stack.callback(ranks.end)
            lost = self._wait(ranks)
            # Not for ever: a process that was left behind would hold the pipe open.
            reader.join(5.0)
        return lost

    def _start(self, attempt: int, meeting: str) -> tuple[_Ranks, threading.Thread]:
        reading, writing = os.pipe()
        reader = threading.Thread(target=self._read, args=(reading,), daemon=True)
        reader.start()
        try:
            return _Ranks(self._arguments, self._devices, attempt, meeting, writing), reader
        finally:
            os.close(writing)

    def _wait(self, ranks: _Ranks) -> _Lost | None:
        while ranks.running:
            time.sleep(LOOK_SECONDS)
            if ranks.lost is not None:
                ranks.end()
                break
            if not self._signal:
                continue
            now = time.monotonic()
            if self._folder.is_active() and now - self._asked > ASK_AGAIN_SECONDS:
                # Again: what comes before a trainer is ready is not meant for it.
                self._asked = now
                with contextlib.suppress(RequestError):
                    CommandFolder(self._folder.path).send("stop")
            elif not self._folder.is_active() and self._signals > 1:
                ranks.end()
        return ranks.lost

    def _read(self, descriptor: int) -> None:
        mark = LINE_MARK.encode()
        with open(descriptor, "rb") as said:
            for line in said:
                if line.startswith(mark * 2):
                    with contextlib.suppress(ValueError):
                        self._status = int(line[2:])
                elif line.startswith(mark):
                    with contextlib.suppress(OSError):
                        os.write(2, line[1:])
                else:
                    with contextlib.suppress(OSError):
                        os.write(self._log, line)

    def _note(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(self._log, f"{safe(text, one_line=True)}\n".encode())

    def _result(self, lost: _Lost | None) -> int:
        if self._status is not None:
            return self._status
        last = last_event(self._folder.events_path)
        if lost is not None:
            if not isinstance(last, (RunFailed, RunFinished, RunHandedOver)):
                self._say_failed(lost)
            return 1
        if isinstance(last, RunFailed):
            return 1
        return 128 + self._signal if self._signal else 0

    def _say_failed(self, lost: _Lost) -> None:
        """Write down which rank ended silently, which no other process is left to do."""
        text = f"{lost}, without a word. {self._last_words()}"
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


class _Lost(NamedTuple):
    """A rank that failed."""

    rank: int
    process: int
    code: int
    """Exit status, or a signal's number below zero."""

    def __str__(self) -> str:
        with_what = f"exit status {self.code}"
        if self.code < 0:
            with_what = f"signal {-self.code} ({signal.strsignal(-self.code)})"
        return f"Rank {self.rank} (process {self.process}) ended with {with_what}"

    @property
    def can_be_tried_again(self) -> bool:
        """Whether it may go better another time; what was refused is refused again."""
        return self.code != REFUSED


class _Ranks:
    """The processes of one attempt, each in a session of its own.

    What a terminal sends reaches this process alone, which asks the run to stop in order.

    Raises:
        OSError: one of them cannot be started; the others are ended.
    """

    def __init__(
        self, arguments: list[str], size: int, attempt: int, meeting: str, errors: int
    ) -> None:
        common = _environment(size, attempt, meeting)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._first: _Lost | None = None
        try:
            for rank in range(size):
                self._processes.append(
                    start_python(
                        "megatron_model",
                        *arguments,
                        changes={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                        stdin=subprocess.DEVNULL,
                        # The lines of events are rank 0's alone.
                        stdout=None if rank == 0 else errors,
                        stderr=errors,
                    )
                )
        except BaseException:
            self.end()
            raise

    @property
    def running(self) -> bool:
        """Whether any is left."""
        return None in [process.poll() for process in self._processes]

    @property
    def lost(self) -> _Lost | None:
        """The first that is seen to have failed; of several that of the lowest rank."""
        if self._first is None:
            for rank, process in enumerate(self._processes):
                if process.poll():
                    self._first = _Lost(rank, process.pid, int(process.returncode))
                    break
        return self._first

    def end(self) -> None:
        """End those that are left: they may find out why, and say so, before they have to go."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes:
                if process.poll() is None:
                    process.send_signal(number)
            end = time.monotonic() + PARTING_SECONDS
            for process in self._processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, end - time.monotonic()))


def _environment(devices: int, attempt: int, meeting: str) -> dict[str, str]:
    """Return what all ranks are told, in torchrun's words where it has some."""
    threads = str(max(1, available_cores() // devices))
    # Whatever is set for other programs: these processes talk to no other machine.
    loopback = "lo" if sys.platform == "linux" else "lo0"
    return {
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads),
        "MEGATRON_LINE_MARK": LINE_MARK,
        MEETING_VARIABLE: meeting,
        LAUNCHER_VARIABLE: str(os.getpid()),
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "TORCHELASTIC_RESTART_COUNT": str(attempt),
        "GLOO_SOCKET_IFNAME": loopback,
        "NCCL_SOCKET_IFNAME": f"={loopback}",
        # A status service of NCCL's own, which is not used.
        "NCCL_RAS_ENABLE": "0",
    }
