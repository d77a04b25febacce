"""What came of a sweep: its runs by their best validation loss, with what was varied."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

from megatron_model.config.fields import RunConfig, get_setting
from megatron_model.queue import Queue
from megatron_model.run.about import read_about
from megatron_model.run.comparison import differing_keys
from megatron_model.run.folder import list_runs
from megatron_model.sweep.grid import TAG, tag_of
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe


class Outcome(NamedTuple):
    """One run of a sweep, which may not have begun."""

    name: str
    config: RunConfig
    status: str
    """Of the run; of one that has not begun, of its entry in the queue."""
    step: int = 0
    loss: float | None = None
    """The best validation loss, in nats per character."""
    best_step: int | None = None
    seconds: float = 0.0


class SweepResults(NamedTuple):
    """The runs of a sweep, the best one first, and the settings in which they differ."""

    varied: list[str]
    runs: list[Outcome]


def sweep_results(queue: Queue, name: str) -> SweepResults:
    """Return what came of a sweep so far.

    Raises:
        RequestError: there is none of that name, or the runs cannot be read.
    """
    tag = tag_of(name)
    runs = list(_begun(queue, tag))
    known = {outcome.name for outcome in runs}
    for entry in queue.entries():
        if tag in entry.tags and entry.run not in known:
            status = f"{entry.state}: {entry.problem}" if entry.problem else entry.state
            runs.append(Outcome(safe(entry.title, one_line=True), entry.config, status))
    if not runs:
        there = ", ".join(sweep_names(queue)) or "none"
        raise RequestError(f'There is no sweep "{safe(name, one_line=True)}"; there are: {there}.')
    keys = differing_keys([one.config for one in runs])
    runs.sort(key=lambda one: (math.inf if one.loss is None else one.loss, one.name))
    return SweepResults(keys, runs)


def sweep_names(queue: Queue) -> list[str]:
    """Return the names of all sweeps: of runs, and of entries that wait."""
    tags = {tag for entry in queue.entries() for tag in entry.tags}
    tags.update(tag for folder in list_runs(queue.runs_dir) for tag in read_about(folder).tags)
    return sorted(tag.removeprefix(TAG) for tag in tags if tag.startswith(TAG))


def free_sweep_name(queue: Queue, stem: str) -> str:
    """Return a name that no sweep has, made of this one."""
    taken = {tag_of(name) for name in sweep_names(queue)}
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if tag_of(name) not in taken)


def _begun(queue: Queue, tag: str) -> Iterator[Outcome]:
    for folder in list_runs(queue.runs_dir):
        if tag not in read_about(folder).tags:
            continue
        try:
            config, state = folder.read_config(), folder.state()
        except RequestError:
            continue
        yield Outcome(
            safe(folder.name, one_line=True),
            config,
            folder.status(state),
            state.step,
            state.best_val_loss,
            state.best_step,
            state.elapsed_seconds,
        )


def table(results: SweepResults) -> list[list[str]]:
    """Return the results as rows of text under a row of headings."""
    leaves = [key.rpartition(".")[2] for key in results.varied]
    rows = [["rank", "best", "at step", "step", "seconds", *leaves, "run", "status"]]
    for rank, one in enumerate(results.runs, start=1):
        known = one.loss is not None
        rows.append(
            [
                f"{rank}" if known else "-",
                f"{one.loss:.4f}" if known else "-",
                f"{one.best_step:,}" if one.best_step is not None else "-",
                f"{one.step:,}",
                f"{one.seconds:,.1f}",
                *(safe(str(get_setting(one.config, key)), one_line=True) for key in results.varied),
                one.name,
                one.status,
            ]
        )
    return rows
