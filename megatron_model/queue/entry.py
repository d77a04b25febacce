"""One entry of the queue: a run that was asked for, and what became of it; a small JSON file.

A file that is damaged, or is not what it should be, is an entry that says so: it can be removed,
and harms no other. No torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import Struct, structs

from megatron_model.config.fields import RunConfig, recorded_config
from megatron_model.run.about import About, check_about
from megatron_model.run.folder import check_run_name
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded, write_atomically
from megatron_model.util.text import safe

State: TypeAlias = Literal["waiting", "held", "running", "done", "failed", "damaged"]
"""What becomes of an entry; `damaged` is found, never written."""

OnInterruption: TypeAlias = Literal["resume", "mark"]
"""What becomes of a run that ended without a word: it goes on, or it is marked as failed."""

LARGEST = 1 << 18
"""Bytes of a file."""


class QueueEntry(Struct, frozen=True, kw_only=True):
    """A run that was asked for: every setting of it, its place, and how far it came."""

    id: int = 0
    """What people call it by; the name of its file."""
    state: State = "waiting"
    order: float = 0.0
    """The entry with the least of those that wait is begun first."""
    name: str = ""
    """What the run is to be called, or would be if no other were called so."""
    config: RunConfig = RunConfig()
    start: str = ""
    """The model whose weights it begins with, if any: a file or folder."""
    start_corpus: str = ""
    """The text that plain weights were trained on."""
    tags: tuple[str, ...] = ()
    """What the run is tagged with: those of a sweep have one in common."""
    on_interruption: OnInterruption = "resume"
    run: str = ""
    """The name of its run, once it was begun."""
    identity: str = ""
    """What marks the folder of that name as this entry's own; see `RunFolder.read_identity`."""
    problem: str = ""
    """Why it failed, or how it ended if it did not reach its end: a sentence."""
    boot: str = ""
    """The start of the machine in which it was begun last."""
    log_size: int = 0
    """Bytes that the run's log had then; what follows was written since."""
    reached: int = 0
    """The step of the last checkpoint when it was interrupted last."""
    stalls: int = 0
    """How often in a row it was interrupted without having come any further."""

    @property
    def waits(self) -> bool:
        """Whether it has a place in the line."""
        return self.state in ("waiting", "held")

    @property
    def title(self) -> str:
        """What it is called: its run's name, or the one it is to have."""
        return self.run or self.name

    def check(self) -> None:
        """Raise `RequestError` where it cannot be an entry: names lead nowhere else."""
        check_run_name(self.name)
        if self.run:
            check_run_name(self.run)
        check_about(About(tags=self.tags))
        if not self.config.data.corpus:
            raise RequestError("It names no corpus.")


def read_entry(path: Path, number: int) -> QueueEntry:
    """Return the entry in a file; one that cannot be read is `damaged` and says why."""
    try:
        raw: Any = msgspec.json.decode(read_bounded(path, LARGEST, links=False))
        if not isinstance(raw, dict):
            raise RequestError("it is no object")
        config = recorded_config(raw.pop("config", None))
        entry = msgspec.convert(raw, QueueEntry)
        entry = structs.replace(entry, id=number, config=config)
        entry.check()
    except OSError as error:
        why = error.strerror or str(error)
    except RecursionError:
        why = "too deep a nesting"
    except ValueError as error:  # also what msgspec and the settings raise
        why = str(error)
    else:
        return entry
    why = safe(why, one_line=True).rstrip(".")
    problem = f"{safe(str(path), one_line=True)} is no entry of a queue: {why}."
    return QueueEntry(id=number, state="damaged", problem=problem)


def write_entry(path: Path, entry: QueueEntry) -> None:
    """Write an entry whole, or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    write_atomically(path, msgspec.json.format(msgspec.json.encode(entry)))
