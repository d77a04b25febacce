"""The other runs in the loss chart: the parents of a fork, and the runs it is compared with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_model.events.state import RunState
from megatron_model.run.archive import archive_of, runs_dir_of
from megatron_model.run.comparison import Compared
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.comparison.lines import colour_of, sign_of

GENERATIONS = 16
"""A fork of a fork of a fork: so many are followed back."""


@dataclass(frozen=True, eq=False)
class OtherRun:
    """Another run in the chart: compared with (`sign` is a letter), or the parent of a fork."""

    name: str
    state: RunState
    sign: str
    colour: str
    until: float = math.inf
    """The step from which on its curve is not shown."""


def lettered(runs: Sequence[Compared]) -> list[OtherRun]:
    """Return the runs compared with as curves with a letter each."""
    return [
        OtherRun(run.name, run.state, sign_of(place), colour_of(place))
        for place, run in enumerate(runs)
    ]


def ancestors(folder: RunFolder) -> list[OtherRun]:
    """Return the runs that this one was forked from, the oldest first, each up to its branch.

    One that was deleted ends the list: the rest is unknown.
    """
    found: list[OtherRun] = []
    seen: set[Path] = {folder.path}
    until = math.inf
    while (parent := folder.read_parent()) is not None and len(found) < GENERATIONS:
        name, step = parent
        until = min(until, step)
        runs_dir = runs_dir_of(folder)
        path = runs_dir / name
        if path.name == name and not path.exists():  # it may have been put aside
            path = archive_of(runs_dir) / name
        if path in seen or path.name != name:
            break
        seen.add(path)
        try:
            folder = RunFolder.open(path)
            state = folder.state()
        except (RequestError, OSError):
            break
        found.append(OtherRun(f"before: {name}", state, "", "chart-parent", until))
    return found[::-1]
