"""The keeper: begins the runs that wait, one after the other on each device, and notes what came.

What it knows is in the files of the queue and of the runs, so that it can be killed at any moment:
an entry is marked as running before its trainer is started, the trainer goes on without the
keeper, and the next keeper takes up what it finds. No torch: it lives as long as the queue.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from functools import partial

from msgspec import structs

from megatron_model.config.fields import all_fields, get_setting
from megatron_model.events.log import last_event
from megatron_model.events.schema import RunFailed, RunFinished, RunHandedOver
from megatron_model.queue.devices import DeviceLocks, devices_of, let_go, run_on
from megatron_model.queue.entry import QueueEntry
from megatron_model.queue.folder import Queue
from megatron_model.run import lock
from megatron_model.run.about import About, read_about, write_about
from megatron_model.run.folder import HAND_OVER_SECONDS, RunFolder, free_name
from megatron_model.util.errors import SAYS, RequestError
from megatron_model.util.files import last_line
from megatron_model.util.python_child import start_with_log
from megatron_model.util.text import plural, safe

LOOK_SECONDS = 0.5
"""How often it looks at the queue and at what runs."""
STALLS = 3
"""How often in a row a run may end without a word and without having come further."""


def keep(queue: Queue, say: Callable[[str], None]) -> bool:
    """Keep the queue until nothing waits and nothing runs; returns whether another keeper does.

    Raises:
        RequestError: the folder of the queue cannot be read or written.
    """
    with queue.locked():  # makes its folder
        pass
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(lock.hold(queue.keeper_lock)):
            return True
        keeper = Keeper(queue, say)
        while True:
            keeper.look()
            with queue.locked():
                # Whoever adds an entry now sees no keeper any more, and starts one.
                if not any(each.state in ("waiting", "running") for each in queue.entries()):
                    stack.close()
                    return False
            time.sleep(LOOK_SECONDS)


class Keeper:
    """What is done whenever the queue is looked at; only one process does it at a time."""

    def __init__(self, queue: Queue, say: Callable[[str], None]) -> None:
        self._queue = queue
        self._say = say
        self._locks = DeviceLocks(queue.path)
        self._children: dict[int, subprocess.Popen[bytes]] = {}
        """The trainers that this process started, by their entries."""
        self._in_the_way: RunFolder | None = None
        """A run of somebody else on a device that is waited for."""
        self._told = ""

    def look(self) -> None:
        """Note how those that run are getting on, and begin those whose turn it is."""
        busy: frozenset[str] = frozenset()
        entries = self._queue.entries()
        for entry in entries:
            if entry.state == "running" and self._follow(entry):
                busy |= _devices_or_none(entry)
        # Again: one that was interrupted may wait now.
        for entry in self._queue.entries():
            if entry.state != "waiting":
                continue
            try:
                devices = devices_of(entry.config)
                # An earlier entry that waits for several devices is not overtaken on any of them.
                if not busy & devices:
                    self._begin(entry, devices)
            except RequestError as error:
                self._end(entry, "failed", str(error))
                continue
            except OSError as error:  # a full disk, say; it may pass
                self._tell(f"entry {entry.id} cannot be begun: {error.strerror or error}")
            busy |= devices

    # What runs

    def _follow(self, entry: QueueEntry) -> bool:
        """Whether an entry still runs; one that does not is marked with what became of it."""
        folder = self._folder(entry)
        entry = self._recognise(entry, folder)
        child = self._children.get(entry.id)
        status = None if child is None else child.poll()
        if child is not None and status is None:
            return True
        if child is None and not self._locks.are_free(_devices_or_none(entry)):
            return True  # its trainer, from before this keeper, gets ready or ends
        if folder.is_active() or self._was_handed_over(entry, folder):
            return True
        self._children.pop(entry.id, None)
        self._conclude(entry, self._recognise_again(entry, folder), status)
        return False

    def _folder(self, entry: QueueEntry) -> RunFolder:
        return RunFolder(self._queue.runs_dir / entry.run)

    def _is_own(self, entry: QueueEntry, folder: RunFolder) -> bool:
        """Whether the run of this name is the one that the entry began."""
        if not entry.run or not os.path.isfile(folder.path / "run.toml"):
            return False
        if entry.identity:
            return folder.read_identity() == entry.identity
        try:  # it was begun a moment ago, or the keeper died at that moment
            return folder.read_config() == entry.config
        except RequestError:
            return False

    def _recognise(self, entry: QueueEntry, folder: RunFolder) -> QueueEntry:
        """Note which folder is the entry's run as soon as it is there, and tag it."""
        if entry.identity or not self._is_own(entry, folder):
            return entry
        if entry.tags:
            about = read_about(folder)
            tags = tuple(dict.fromkeys([*about.tags, *entry.tags]))
            with contextlib.suppress(RequestError):  # the run is worth more than its tag
                write_about(folder, About(about.note, tags))
        identity = folder.read_identity()
        changed = self._change(entry, lambda now: structs.replace(now, identity=identity))
        return changed or entry

    def _recognise_again(self, entry: QueueEntry, folder: RunFolder) -> RunFolder | None:
        return folder if self._is_own(self._recognise(entry, folder), folder) else None

    def _was_handed_over(self, entry: QueueEntry, folder: RunFolder) -> bool:
        """Whether another process is about to go on with the run, such as the workbench."""
        if _size(folder) <= entry.log_size:
            return False
        last = last_event(folder.events_path)
        return (
            isinstance(last, RunHandedOver)
            and abs(time.time() - last.time) < HAND_OVER_SECONDS
            and entry.boot == lock.boot_id()
        )

    def _conclude(self, entry: QueueEntry, folder: RunFolder | None, status: int | None) -> None:
        """Mark an entry whose trainer is gone with what became of its run."""
        words, refused = self._last_words(entry)
        last = None
        if folder is not None and (_size(folder) > entry.log_size or status == 0):
            last = last_event(folder.events_path)
        if isinstance(last, RunFailed):
            self._end(entry, "failed", last.error)
        elif isinstance(last, RunFinished) and last.reason == "stopped":
            # A machine that shuts down in order stops what runs; nobody meant the run.
            if entry.boot != lock.boot_id():
                self._interrupted(entry, folder)
            else:
                self._end(entry, "done", f"It was stopped at step {last.step:,}.")
        elif isinstance(last, RunFinished):
            self._end(entry, "done")
        elif refused:
            self._end(entry, "failed", words)
        elif status is not None and 0 < status < 128:
            self._end(entry, "failed", words or f"Its trainer ended with exit status {status}.")
        else:
            self._interrupted(entry, folder)

    def _interrupted(self, entry: QueueEntry, folder: RunFolder | None) -> None:
        """Put a run that ended without a word in line again, or mark it, as was asked."""
        checkpoint = folder.latest_checkpoint() if folder is not None else None
        step = checkpoint.step if checkpoint is not None else 0
        stalls = 0 if step > entry.reached else entry.stalls + 1
        came = f"at step {step:,}" if step else "before its first checkpoint"
        if stalls >= STALLS:
            problem = f"It ended without a word {plural(stalls, 'time')} {came}."
            self._end(entry, "failed", problem)
        elif folder is not None and entry.on_interruption == "mark":
            self._end(entry, "failed", f"It was interrupted {came}; retry goes on from there.")
        else:
            self._say(f"entry {entry.id}: interrupted {came}, goes on")
            self._change(
                entry,
                lambda now: structs.replace(now, state="waiting", reached=step, stalls=stalls),
            )

    def _last_words(self, entry: QueueEntry) -> tuple[str, bool]:
        """Return the last line that the trainer wrote, and whether it refused what was asked."""
        line = last_line(self._queue.log(entry.id)).decode(errors="replace")
        return safe(line.removeprefix(SAYS), one_line=True), line.startswith(SAYS)

    # What is begun

    def _begin(self, entry: QueueEntry, devices: frozenset[str]) -> None:
        """Start the trainer of an entry, unless somebody else uses a device of it."""
        if self._in_the_way is not None and self._in_the_way.is_active():
            # Cheaper than to look at every run; those on other devices are looked at below.
            with contextlib.suppress(RequestError):
                if devices & devices_of(self._in_the_way.read_config()):
                    return
        taken = self._locks.take(devices)
        if taken is None:
            return
        try:
            self._in_the_way = run_on(devices, self._queue.runs_dir)
            if self._in_the_way is not None:
                name = safe(self._in_the_way.name, one_line=True)
                self._tell(f"waiting: {name} trains on {', '.join(sorted(devices))}")
                return
            # What it says of an earlier attempt must not be taken for this one's.
            self._queue.log(entry.id).unlink(missing_ok=True)
            begun = self._change(entry, self._marked, state="waiting")
            if begun is not None:
                self._say(f"entry {begun.id}: {begun.run} begins")
                self._start(begun, taken)
        finally:
            let_go(taken)  # the trainer holds them now

    def _marked(self, entry: QueueEntry) -> QueueEntry | None:
        """Return an entry that is to be begun, with its run's name: before anything is started.

        None while the folder of that name is about to be made for another entry.
        """
        folder = self._folder(entry)
        own = self._is_own(entry, folder)
        name = entry.run if own else free_name(self._queue.runs_dir, entry.name)
        if any(each.state == "running" and each.run == name for each in self._queue.entries()):
            return None
        return structs.replace(
            entry,
            state="running",
            problem="",
            run=name,
            identity=entry.identity if own else "",
            log_size=_size(folder) if own else 0,
            boot=lock.boot_id(),
        )

    def _start(self, entry: QueueEntry, devices: Sequence[int]) -> None:
        try:
            self._children[entry.id] = start_with_log(
                self._queue.log(entry.id),
                "megatron_model",
                *self.command(entry),
                anew=True,
                pass_fds=tuple(devices),
            )
        except (OSError, ValueError) as error:  # a text with a NUL can be no argument
            reason = getattr(error, "strerror", None) or str(error)
            self._end(entry, "failed", f"Its trainer cannot be started: {reason}.")

    def command(self, entry: QueueEntry) -> list[str]:
        """Return what the trainer is asked, every setting in words."""
        words = ["train", f"--runs-dir={self._queue.runs_dir}"]
        folder = self._folder(entry)
        if self._is_own(entry, folder):
            return [*words, f"--resume={folder.path}"]
        if entry.start:
            words.append(f"--from={entry.start}")
        if entry.start_corpus:
            words.append(f"--from-corpus={entry.start_corpus}")
        words += [
            f"--set={key}={get_setting(entry.config, key)}"
            for key in all_fields()
            if key != "data.corpus"
        ]
        return [*words, f"--name={entry.run}", "--", entry.config.data.corpus]

    # What is written down

    def _end(self, entry: QueueEntry, state: str, problem: str = "") -> None:
        problem = safe(problem, one_line=True)
        self._say(f"entry {entry.id}: {state}{', ' + problem if problem else ''}")
        self._change(entry, partial(structs.replace, state=state, problem=problem))

    def _change(
        self, entry: QueueEntry, new: Callable[[QueueEntry], QueueEntry | None], state: str = ""
    ) -> QueueEntry | None:
        """Write an entry anew, unless somebody turned it into something else meanwhile."""
        wanted = state or entry.state

        def changed(now: QueueEntry) -> QueueEntry | None:
            return new(now) if now.state == wanted else None

        return self._queue.change(entry.id, changed)

    def _tell(self, text: str) -> None:
        """Say something that is true for longer than one look, once."""
        if text != self._told:
            self._told = text
            self._say(text)


def _devices_or_none(entry: QueueEntry) -> frozenset[str]:
    try:
        return devices_of(entry.config)
    except RequestError:
        return frozenset()


def _size(folder: RunFolder) -> int:
    try:
        return folder.events_path.stat().st_size
    except OSError:
        return 0
