"""The runs of a sweep: every combination of the values, as entries of the queue with one tag."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.data.corpus import find_corpus
from megatron_model.planning.preflight import preflight
from megatron_model.queue import Queue, QueueEntry
from megatron_model.run.about import About, check_about, read_about
from megatron_model.run.folder import check_run_name, list_runs
from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural

MOST_RUNS = 500
TAG = "sweep-"
"""Begins the tag that the runs of a sweep have in common; its name follows."""


class Point(NamedTuple):
    """One combination."""

    values: dict[str, object]
    """What the varied settings have in it, by dotted key."""
    config: RunConfig

    @property
    def words(self) -> str:
        """The combination, as it stands in the name of its run."""
        return "-".join(f"{key.rpartition('.')[2]}-{value}" for key, value in self.values.items())


def grid(config: RunConfig, varied: Mapping[str, Sequence[object]]) -> list[Point]:
    """Return every combination of the varied settings, the last one changing fastest.

    Raises:
        RequestError: a combination cannot be, or there are too many.
    """
    count = math.prod(len(values) for values in varied.values())
    if count > MOST_RUNS:
        raise RequestError(f"The sweep has {count:,} runs; at most {MOST_RUNS}: take fewer values.")
    points = []
    for combination in itertools.product(*varied.values()):
        values = dict(zip(varied, combination, strict=True))
        try:
            points.append(Point(values, with_settings(config, values)))
        except RequestError as error:
            said = ", ".join(f"{key}={value}" for key, value in values.items())
            raise RequestError(f"A run of the sweep ({said}) cannot be: {error}") from None
    return points


def check_room(points: Sequence[Point], vocabulary: int, disk_free: int | None) -> int:
    """Return the bytes of all checkpoints of a sweep.

    Raises:
        RequestError: there is no room for them.
    """
    needed = sum(
        preflight(point.config, vocabulary_size=vocabulary).checkpoint_bytes for point in points
    )
    if disk_free is not None and needed > disk_free:
        gib = 2**30
        raise RequestError(
            f"The checkpoints of {plural(len(points), 'run')} need {needed / gib:.1f} GiB and "
            f"{disk_free / gib:.1f} GiB are free; take fewer runs or a smaller model."
        )
    return needed


def tag_of(name: str) -> str:
    """Return the tag of the runs of a sweep, in the characters that a tag may have.

    Raises:
        RequestError: the name is too long for a tag.
    """
    tag = TAG + re.sub(r"[^\w.:-]", "-", name)
    try:
        check_about(About(tags=(tag,)))
    except RequestError:
        longest = 50 - len(TAG)
        raise RequestError(f"The name of a sweep has at most {longest} characters.") from None
    return tag


def add_sweep(
    queue: Queue, name: str, points: Sequence[Point], *, start: str = "", start_corpus: str = ""
) -> None:
    """Put the runs of a sweep behind those that wait; those that are there already stay.

    So a sweep that was interrupted while it was added is made whole by asking for it again, and
    nothing is trained twice.

    Args:
        queue: where they wait.
        name: of the sweep.
        points: its combinations.
        start: the model that each begins with, if any.
        start_corpus: the text that plain weights were trained on.

    Raises:
        RequestError: the corpus is not there, the name cannot be one, or nothing can be written.
    """
    check_run_name(name)
    tag = tag_of(name)
    there = [entry.config for entry in queue.entries() if tag in entry.tags]
    there += configs_of_runs(queue, tag)
    missing = []
    corpora: dict[str, str] = {}  # a folder may have many files
    for number, point in enumerate(points):
        corpus = point.config.data.corpus
        if corpus not in corpora:
            corpora[corpus] = find_corpus(corpus).location
        config = with_settings(point.config, {"data.corpus": corpora[corpus]})
        if config not in there:
            missing.append(
                QueueEntry(
                    name=_run_name(name, number, point),
                    config=config,
                    start=start,
                    start_corpus=start_corpus,
                    tags=(tag,),
                )
            )
    queue.add_all(missing)


def configs_of_runs(queue: Queue, tag: str) -> list[RunConfig]:
    """Return the settings of the runs beside a queue that have a tag."""
    found = []
    for folder in list_runs(queue.runs_dir):
        if tag in read_about(folder).tags:
            with contextlib.suppress(RequestError):
                found.append(folder.read_config())
    return found


def _run_name(name: str, number: int, point: Point) -> str:
    wanted = f"{name}-{point.words}"
    try:
        check_run_name(wanted)
    except RequestError:  # too long, with many settings
        return f"{name}-{number + 1:03}"
    return wanted
