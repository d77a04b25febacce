"""The queue as the workbench sees it: what is in it, and when each run will begin and end."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_model.config.fields import RunConfig
from megatron_model.device import may_have_accelerator
from megatron_model.events.schema import local_time
from megatron_model.queue import Queue, QueueEntry, start_keeper
from megatron_model.run.folder import RunFolder, list_runs
from megatron_model.sweep.grid import Point, add_sweep
from megatron_model.sweep.results import free_sweep_name
from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural
from megatron_tui.services.past_speed import Pace, read_paces, shape_of
from megatron_tui.services.run_log import glance

RECENT = 40
"""Runs whose speed is looked at, the newest."""
ACTIVE = ("running", "waiting")
"""States of entries that a keeper has something to do with."""


@dataclass(frozen=True)
class QueueRow:
    """An entry, and when it is expected to begin and to end; in Unix seconds, if that is known."""

    entry: QueueEntry
    begins: float | None = None
    ends: float | None = None


def forecast(
    entries: Sequence[QueueEntry],
    left: Mapping[int, float | None],
    paces: Mapping[tuple[object, ...], Pace],
    now: float,
) -> list[QueueRow]:
    """Return when each will begin and end, one at a time on each device.

    Args:
        entries: in the order of the queue.
        left: the seconds that those which run have left, by their numbers.
        paces: how fast runs of a shape are on this machine.
        now: in Unix seconds.
    """
    free: dict[str, float | None] = {}
    """When each device is free again; None from a run on whose length nobody knows."""
    rows = []
    for entry in entries:
        device = _device(entry.config)
        if entry.state == "running":
            seconds = left.get(entry.id)
            free[device] = ends = None if seconds is None else now + seconds
            rows.append(QueueRow(entry, None, ends))
        elif entry.state == "waiting":
            begins = free.get(device, now)
            seconds = seconds_of(entry.config, paces)
            ends = None if begins is None or seconds is None else begins + seconds
            free[device] = ends
            rows.append(QueueRow(entry, begins, ends))
        else:
            rows.append(QueueRow(entry))
    return rows


def _device(config: RunConfig) -> str:
    """Return on which device a run will wait for others; without torch, which alone is sure."""
    name = config.training.device
    if name == "auto":
        name = "cuda" if may_have_accelerator() else "cpu"
    return name.removesuffix(":0")


def seconds_of(config: RunConfig, paces: Mapping[tuple[object, ...], Pace]) -> float | None:
    """Return how long a run will take: its budget, or its steps at the pace of earlier runs."""
    training = config.training
    if training.max_seconds:
        return training.max_seconds
    pace = paces.get(shape_of(config)) if training.devices == 1 else None
    return None if pace is None else training.steps * pace.seconds_per_step


def read_queue(queue: Queue, now: float) -> list[QueueRow]:
    """Return what is in a queue; reads files, so not on the screen's thread.

    Raises:
        RequestError: a folder cannot be read.
    """
    entries, runs_dir = queue.entries(), queue.runs_dir
    if not any(entry.state in ACTIVE for entry in entries):
        return [QueueRow(entry) for entry in entries]
    left: dict[int, float | None] = {}
    for entry in entries:
        if entry.state == "running":
            left[entry.id] = glance(RunFolder(runs_dir / entry.run)).remaining_seconds
            if left[entry.id] is None and entry.config.training.max_seconds:
                left[entry.id] = entry.config.training.max_seconds  # it has hardly begun
    return forecast(entries, left, read_paces(list_runs(runs_dir)[:RECENT]), now)


def enqueued(runs_dir: Path, name: str, config: RunConfig, model: Path | None = None) -> str:
    """Put a run behind those that wait, have a keeper at work, and say when its turn comes.

    `model`: the folder of the run whose weights it begins with, if any.

    Raises:
        RequestError: it cannot be written down, or no keeper can be started.
    """
    queue, now = Queue(runs_dir), time.time()
    start = "" if model is None else str(model.absolute())
    number = queue.add(config, name=name, start=start).id
    rows: list[QueueRow] = []
    with contextlib.suppress(RequestError):  # the outlook is a luxury
        rows = [row for row in read_queue(queue, now) if row.entry.state in ACTIVE]
    start_keeper(queue)
    places = [row.entry.id for row in rows]
    if number not in places:
        return f"{name} is in the queue."
    row, before = rows[places.index(number)], places.index(number)
    if not before:
        outlook = "it begins as soon as its device is free"
    else:
        about = "" if row.begins is None else f" about {moment(row.begins, now)},"
        outlook = f"it begins{about} after {plural(before, 'other run')}"
    ends = f", and ends about {moment(row.ends, now)}" if row.ends is not None else ""
    return f"{name} is in the queue: {outlook}{ends}."


def swept(runs_dir: Path, name: str, points: Sequence[Point], model: Path | None = None) -> str:
    """Put the runs of a sweep behind those that wait, and have a keeper at work; say so.

    One that another sweep has the name of gets a number.

    Raises:
        RequestError: they cannot be written down, or no keeper can be started.
    """
    queue = Queue(runs_dir)
    name = free_sweep_name(queue, name)
    add_sweep(queue, name, points, start="" if model is None else str(model.absolute()))
    start_keeper(queue)
    return f"{plural(len(points), 'run')} of the sweep {name} are in the queue: see Runs."


def revived(runs_dir: Path) -> str:
    """Have a keeper at work where one is needed and none is, and say so; or why it cannot be.

    The machine was restarted, say. Empty where there is nothing to tell.
    """
    queue = Queue(runs_dir)
    try:
        left = sum(entry.state in ACTIVE for entry in queue.entries())
        if not left or start_keeper(queue) is None:
            return ""
    except RequestError as error:
        return str(error)
    return f"The queue goes on: {plural(left, 'run')} to train."


def moment(when: float | None, now: float) -> str:
    """Return a time to come as a clock shows it, with the day where it is not within one."""
    if when is None:
        return "-"
    return local_time(when, "%H:%M" if when - now < 20 * 3600 else "%a %H:%M")
