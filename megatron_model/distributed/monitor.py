"""Notices when one of the processes of a run is gone or hangs, and finds out which, and why.

Every rank has a thread that gives a sign of life to the others through a store that all share (a
private folder, or torchrun's), and looks at theirs. Whatever waits for a lost rank ends by an error
of its own where the connection breaks; where nothing breaks, because a rank was stopped or its
machine vanished, the thread ends the wait.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from msgspec import Struct

from megatron_model.distributed.launcher import LAUNCHER_VARIABLE
from megatron_model.util.errors import RunFailedError
from megatron_model.util.text import safe

PULSE_SECONDS = 0.5
GRACE_SECONDS = 10.0
"""How long a rank that waits for a lost one may need to notice by itself."""
SEARCH_SECONDS = 3.0
"""How long the cause of a broken connection is looked for."""
STORE_SECONDS = 5.0
"""How long the store may need for an answer."""
DEAF_SECONDS = 2.0
QUIET_SECONDS = 2.0
"""Silence that explains a broken connection."""


class RankLostError(RunFailedError):
    """A process that trains with this one is gone; `rank` says which."""

    def __init__(self, finding: RankFailure) -> None:
        super().__init__(finding.text)
        self.rank = finding.rank


class RankFailure(Struct, frozen=True):
    """Which rank the run ends for, and why; an empty text: it has told of its end itself."""

    rank: int
    text: str


class RankMonitor(threading.Thread):
    """The sign of life of this rank, and an eye on the others.

    Args:
        connect: makes a connection to the store.
        rank: of this process.
        size: how many processes train together.
    """

    def __init__(self, connect: Callable[[], Any], *, rank: int, size: int) -> None:
        super().__init__(name="rank watch", daemon=True)
        self._connect = connect
        # One for the thread alone: who waits for an answer holds up the others.
        self._stores = {True: connect(), False: connect()}
        self._rank = rank
        self._size = size
        self.silence = 60.0
        """Seconds without a sign of life after which a rank counts as hung."""
        self.report: Callable[[str], None] = lambda text: None
        """Writes down why the run ends, where the rank that would do it is the one that is gone."""
        self.orphaned: Callable[[], None] = lambda: None
        """Called once when the process that started this one is gone."""
        # Told, where it can be: it may have gone before this rank could look.
        self._parent = int(os.environ.get(LAUNCHER_VARIABLE) or os.getppid())
        self._over = threading.Event()
        self._count = 0
        self._heard: list[tuple[bytes, float]] = [(b"", time.monotonic())] * size
        self._people: list[dict[str, Any]] = []
        self._since: float | None = None
        self._place = _place()
        me = {"host": socket.gethostname(), "pid": os.getpid(), "place": self._place}
        for key, value in {f"who/{rank}": json.dumps(me), f"pulse/{rank}": "0"}.items():
            self._stores[False].set(key, value)
        self._store_answers = True

    def begin(self) -> None:
        """Start; every rank has made its `RankMonitor` by now."""
        names = [f"who/{rank}" for rank in range(self._size)]
        self._people = [json.loads(text) for text in self._stores[False].multi_get(names)]
        self.start()

    def end(self) -> None:
        """From now on the others may end as they like."""
        self._over.set()
        if self.is_alive():
            self.join(2 * STORE_SECONDS)

    def leave_note(self, text: str) -> None:
        """Tell the others why this rank ends; they say it for us. An empty text: it is said."""
        self._over.set()
        with contextlib.suppress(Exception):  # the store may be gone too
            self._stores[False].set(f"note/{self._rank}", safe(text, one_line=True)[:1000])
            self._publish(RankFailure(self._rank, self._because_of(self._rank, text)), False)

    def run(self) -> None:
        """Give signs of life, and look after the others, until the run is over."""
        told = False
        while not self._over.wait(PULSE_SECONDS):
            if os.getppid() != self._parent and not told:
                told = True
                self.orphaned()
            self._beat()
            finding = self._look(own_store=True)
            if finding is None or self._over.is_set():
                continue
            now = time.monotonic()
            self._since = self._since or now
            self._wake(finding)
            if now - self._since > GRACE_SECONDS:
                self.tell(finding)
                os._exit(1)

    def search(self) -> RankFailure | None:
        """Return why a connection broke, after looking for it for a while."""
        end = time.monotonic() + SEARCH_SECONDS
        while True:
            late = time.monotonic() >= end
            finding = self._look(own_store=False, quiet=QUIET_SECONDS if late else None)
            if finding is not None or late:
                return finding
            time.sleep(0.05)

    def tell(self, finding: RankFailure) -> None:
        """Write down why the run ends, if that is for this rank to do."""
        if finding.text and self._rank == self._first_left(finding):
            self.report(finding.text)

    def _first_left(self, finding: RankFailure) -> int:
        left = [r for r in range(self._size) if r != finding.rank and not self._is_dead(r)]
        return min(left, default=self._rank)

    def _beat(self) -> None:
        self._count += 1
        try:
            if not self._store_answers:
                # What was asked on the old connection may be answered late, and out of turn.
                self._stores[True] = self._connect()
            store = self._stores[True]
            store.set(f"pulse/{self._rank}", str(self._count))
            pulses = store.multi_get([f"pulse/{rank}" for rank in range(self._size)])
        except Exception:  # the store has ended, or hangs
            self._store_answers = False
            return
        now, again = time.monotonic(), not self._store_answers
        self._store_answers = True
        for rank, pulse in enumerate(pulses):
            # Silence while the store could not carry a pulse counts against no rank.
            if again or pulse != self._heard[rank][0]:
                self._heard[rank] = (pulse, now)

    def _look(self, *, own_store: bool, quiet: float | None = None) -> RankFailure | None:
        """Return what was found by anybody, or can be seen from here."""
        if self._store_answers:  # not every operation of a store that hangs comes back
            with contextlib.suppress(Exception):
                if self._stores[own_store].check(["found"]):
                    return RankFailure(**json.loads(self._stores[own_store].get("found")))
        finding = self._suspect(quiet)
        if finding is not None:
            self._publish(finding, own_store)
        return finding

    def _suspect(self, quiet: float | None) -> RankFailure | None:
        others = [rank for rank in range(self._size) if rank != self._rank]
        for rank in others:
            if self._is_dead(rank):
                why = "ended without a word: it was killed, or crashed"
                return RankFailure(rank, self._because_of(rank, why))
        now = time.monotonic()
        longest = max(others, key=lambda rank: now - self._heard[rank][1])
        silent = now - self._heard[longest][1]
        # A thread that could not listen has heard no rank: the fault is here, not there.
        deaf = all(now - self._heard[rank][1] > DEAF_SECONDS for rank in range(self._size))
        if not deaf and silent > (self.silence if quiet is None else quiet):
            why = f"has not been heard of for {silent:.0f} s"
            return RankFailure(longest, self._because_of(longest, why))
        return None

    def _publish(self, finding: RankFailure, own_store: bool) -> None:
        if not self._store_answers:
            return
        with contextlib.suppress(Exception):
            text = json.dumps({"rank": finding.rank, "text": finding.text})
            self._stores[own_store].compare_set("found", "", text)

    def _because_of(self, rank: int, why: str) -> str:
        if not why:
            return ""
        who = self._people[rank] if self._people else {"pid": "?", "host": "?"}
        return (
            f"Rank {rank} (process {who['pid']} on {safe(str(who['host']), one_line=True)}) "
            f"{safe(why, one_line=True)}. What follows the last checkpoint is lost; resume the run."
        )

    def _is_here(self, rank: int) -> bool:
        return bool(self._people) and self._people[rank]["place"] == self._place

    def _is_dead(self, rank: int) -> bool:
        """Whether the process of a rank on this machine has ended."""
        if rank == self._rank or not self._is_here(rank):
            return False
        try:
            return bool(psutil.Process(self._people[rank]["pid"]).status() == psutil.STATUS_ZOMBIE)
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:
            return False

    def _wake(self, finding: RankFailure) -> None:
        """End a rank that hangs on this machine, so that what waits for it continues at once."""
        hung = not self._is_dead(finding.rank) and "heard of" in finding.text
        if hung and self._is_here(finding.rank) and self._rank == self._first_left(finding):
            with contextlib.suppress(OSError):
                os.kill(self._people[finding.rank]["pid"], signal.SIGKILL)


def _place() -> str:
    """Return what tells where a process number means the same process as here.

    A name alone does not: machines are called alike, and a container has numbers of its own.
    """
    found = [socket.gethostname()]
    with contextlib.suppress(OSError):
        found += [Path("/proc/sys/kernel/random/boot_id").read_text().strip()]
        found += [os.readlink("/proc/self/ns/pid")]
    return " ".join(found)


@contextlib.contextmanager
def attribute_failure(watch: RankMonitor) -> Iterator[None]:
    """Turn an error in what is exchanged with the others into one that names the rank.

    Raises:
        RankLostError: one of them is gone.
    """
    try:
        yield
    except RankLostError:
        raise
    except RuntimeError as error:
        finding = watch.search()
        if finding is None:
            raise
        raise RankLostError(finding) from error
