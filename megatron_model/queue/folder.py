"""The queue beside the runs: a folder with a file for each entry, and what can be done with them.

To change something takes a lock for that moment; to look takes none. No torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

from msgspec import structs

from megatron_model.config.fields import RunConfig
from megatron_model.data.corpus import find_corpus
from megatron_model.queue.entry import OnInterruption, QueueEntry, read_entry, write_entry
from megatron_model.run import lock
from megatron_model.run.folder import free_name
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

FOLDER = ".queue"
"""In the folder of the runs; no run can have a name that begins with a dot."""

_FILE = re.compile(r"([1-9]\d{0,8})\.json")
_SETTLED = 1_000_000_000
"""Nanoseconds after which a file written anew has another time: clocks of files are coarse."""
_Version: TypeAlias = tuple[int, int, int, int]
_PATIENCE = 10.0
"""Seconds to wait for somebody else who changes something."""


class Queue:
    """The entries beside the runs of one folder. Making the object reads nothing."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir = runs_dir.absolute()
        self.path = self.runs_dir / FOLDER
        self.keeper_lock = self.path / "keeper.lock"
        self._known: dict[str, tuple[_Version, QueueEntry]] = {}
        """Entries as they were read last, by the names of their files: a keeper looks often."""

    @property
    def kept(self) -> bool:
        """Whether a keeper is at work."""
        return lock.is_held(self.keeper_lock)

    def entries(self) -> list[QueueEntry]:
        """Return every entry: those that ended and those that run, then the others in their order.

        Raises:
            RequestError: the folder cannot be read.
        """
        self._refuse_link()
        found, versions, now = [], {}, time.time_ns()
        try:
            with os.scandir(self.path) as files:
                for file in files:
                    if match := _FILE.fullmatch(file.name):
                        with contextlib.suppress(FileNotFoundError):  # removed at this moment
                            version = _version(file.stat(follow_symlinks=False))
                            known = self._known.get(file.name)
                            if known is None or known[0] != version:
                                known = version, read_entry(self.path / file.name, int(match[1]))
                            if now - version[2] > _SETTLED:
                                versions[file.name] = known
                            found.append(known[1])
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _cannot("read", self.path, error) from None
        self._known = versions
        return sorted(found, key=lambda each: (each.waits, each.order, each.id))

    def entry(self, number: int) -> QueueEntry:
        """Return one entry.

        Raises:
            RequestError: there is none of that number.
        """
        path = self.file(number)
        if not os.path.lexists(path):
            raise RequestError(
                f"There is no entry {number} in the queue; megatron-model queue list has them."
            )
        return read_entry(path, number)

    def file(self, number: int) -> Path:
        """Return where an entry is kept."""
        return self.path / f"{number}.json"

    def log(self, number: int) -> Path:
        """Return where the trainer of an entry writes what is for people."""
        return self.path / f"{number}.log"

    def add(
        self,
        config: RunConfig,
        *,
        name: str = "",
        start: str = "",
        start_corpus: str = "",
        tags: Sequence[str] = (),
        on_interruption: OnInterruption = "resume",
        held: bool = False,
    ) -> QueueEntry:
        """Put a run behind those that wait.

        Args:
            config: every setting of it, and its corpus.
            name: of the run; if there is one of that name when it begins, a number is added.
            start: the model whose weights it begins with.
            start_corpus: the text that a plain model was trained on.
            tags: what the run is tagged with.
            on_interruption: what becomes of it when it ends without a word.
            held: whether it is to wait until it is released.

        Raises:
            RequestError: its corpus is not there, or it cannot be written down.
        """
        corpus = find_corpus(config.data.corpus)
        data = structs.replace(config.data, corpus=corpus.location)
        entry = QueueEntry(
            state="held" if held else "waiting",
            name=name or self.name_for(corpus.name),
            config=structs.replace(config, data=data),
            start=start,
            start_corpus=start_corpus,
            tags=tuple(dict.fromkeys(tags)),
            on_interruption=on_interruption,
        )
        [entry] = self.add_all([entry])
        return entry

    def add_all(self, entries: Iterable[QueueEntry]) -> list[QueueEntry]:
        """Put entries behind those that wait, in their order, and return them as they are there.

        Raises:
            RequestError: one of them cannot be, and none was added; or they cannot be written down.
        """
        entries = list(entries)
        for entry in entries:
            entry.check()
        with self.locked():
            there = self.entries()
            # The numbers of files that are no entries are taken too.
            number = 1 + max((each.id for each in there), default=0)
            order = 1.0 + max((each.order for each in there), default=0.0)
            added = [
                structs.replace(entry, id=number + place, order=order + place)
                for place, entry in enumerate(entries)
            ]
            for entry in added:
                self.write(entry)
        return added

    def name_for(self, stem: str, ending: str = "") -> str:
        """Return a name for a run, made of these; whether there is one shows when it begins."""
        return free_name(self.path, stem, ending)  # there are no runs

    def move(self, number: int, place: int) -> QueueEntry:
        """Give an entry that waits another place in the line, from 1; past the end is the end.

        Raises:
            RequestError: there is none, it does not wait, or it cannot be written.
        """
        with self.locked():
            entry = self.entry(number)
            if not entry.waits:
                raise RequestError(_not_now(entry, "moved: it does not wait"))
            others = [each for each in self.entries() if each.waits and each.id != number]
            behind = min(max(place, 1), len(others) + 1) - 1
            order = _between([each.order for each in others], behind)
            if order is None:  # no number is left between the two
                line = [*others[:behind], entry, *others[behind:]]
                for index, each in enumerate(line, start=1):
                    self.write(structs.replace(each, order=float(index)))
                return self.entry(number)
            entry = structs.replace(entry, order=order)
            self.write(entry)
            return entry

    def hold(self, number: int) -> QueueEntry:
        """Keep an entry from being begun."""
        return self._turn(number, {"waiting": "held", "held": "held"}, "held: it does not wait")

    def release(self, number: int) -> QueueEntry:
        """Let an entry that was held be begun again."""
        turns = {"waiting": "waiting", "held": "waiting"}
        return self._turn(number, turns, "released: it is not held")

    def retry(self, number: int) -> QueueEntry:
        """Put an entry that ended behind those that wait; its run goes on from its last checkpoint.

        Raises:
            RequestError: there is none, it has not ended, or it cannot be written.
        """
        with self.locked():
            entry = self.entry(number)
            if entry.state not in ("failed", "done"):
                raise RequestError(_not_now(entry, "tried again: it has not ended"))
            order = 1.0 + max(each.order for each in self.entries())
            entry = structs.replace(entry, state="waiting", order=order, problem="", stalls=0)
            self.write(entry)
            return entry

    def remove(self, number: int) -> None:
        """Take an entry out of the queue; what it trained stays.

        Raises:
            RequestError: there is none, or it is running.
        """
        with self.locked():
            if self.entry(number).state == "running":
                raise RequestError(
                    f"Entry {number} is running; stop its run first, and then remove it."
                )
            try:
                self.file(number).unlink()
                self.log(number).unlink(missing_ok=True)
            except OSError as error:
                raise _cannot("remove", self.file(number), error) from None

    def change(
        self, number: int, new: Callable[[QueueEntry], QueueEntry | None]
    ) -> QueueEntry | None:
        """Write what `new` makes of an entry as it is now, if anything, and return that.

        None where there is no such entry any more, or `new` wants nothing.
        """
        with self.locked():
            if not os.path.lexists(self.file(number)):
                return None
            entry = new(read_entry(self.file(number), number))
            if entry is not None:
                self.write(entry)
            return entry

    def write(self, entry: QueueEntry) -> None:
        """Write an entry down; only while the queue is `locked`."""
        try:
            write_entry(self.file(entry.id), entry)
        except OSError as error:
            raise _cannot("write", self.file(entry.id), error) from None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep everybody else from changing the queue.

        Raises:
            RequestError: somebody else does for too long, or the folder cannot be written.
        """
        self._refuse_link()
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise _cannot("make", self.path, error) from None
        path = self.path / "lock"
        try:
            with lock.hold(path, _PATIENCE) as held:
                if not held:
                    raise RequestError("Another process has held the queue for too long.")
                yield
        except OSError as error:
            if error.filename != str(path):
                raise
            raise _cannot("write", path, error) from None

    def _turn(self, number: int, turns: dict[str, str], why_not: str) -> QueueEntry:
        with self.locked():
            entry = self.entry(number)
            if entry.state not in turns:
                raise RequestError(_not_now(entry, why_not))
            entry = structs.replace(entry, state=turns[entry.state])
            self.write(entry)
            return entry

    def _refuse_link(self) -> None:
        if self.path.is_symlink():
            raise RequestError(f"{safe(str(self.path))} is a link; put a folder in its place.")


def _version(about: os.stat_result) -> _Version:
    """Return what is another thing once a file was written anew: that makes a new file."""
    return about.st_ino, about.st_size, about.st_mtime_ns, about.st_mode


def _between(orders: list[float], behind: int) -> float | None:
    """Return a number for the place behind so many of these, which rise; None if there is none."""
    before = orders[behind - 1] if behind else (orders[0] - 2 if orders else 0.0)
    after = orders[behind] if behind < len(orders) else before + 2
    middle = (before + after) / 2
    return middle if before < middle < after else None


def _not_now(entry: QueueEntry, why: str) -> str:
    return f"Entry {entry.id} ({entry.state}) cannot be {why}."


def _cannot(do: str, path: Path, error: OSError) -> RequestError:
    return RequestError(f"Cannot {do} {safe(str(path), one_line=True)}: {error.strerror or error}.")
