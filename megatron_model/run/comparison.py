"""Runs beside each other: their curves along one axis, who is ahead, and what differs. No torch."""

from __future__ import annotations

import bisect
import csv
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

from megatron_model.config.fields import RunConfig, differences, get_setting
from megatron_model.events.smoothing import smooth
from megatron_model.events.state import RunState, Series
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import write_asked_for
from megatron_model.util.text import safe

Along: TypeAlias = Literal["step", "time", "characters", "flops"]
"""What runs are compared by: steps, seconds of training, characters read, or arithmetic done."""

AXES: tuple[Along, ...] = get_args(Along)
KEPT = 0.6
"""How much of its past a smoothed value keeps, where nothing else is asked for."""
LARGEST = 1e100


@dataclass(frozen=True, eq=False)
class Compared:
    """A run with what is compared; `config` is None where its run.toml cannot be read."""

    name: str
    state: RunState
    config: RunConfig | None


class Ranked(NamedTuple):
    """A run in the order of its smoothed loss."""

    rank: int
    """From 1; 0 of a run that has no loss."""
    run: Compared
    value: float | None
    """The smoothed loss at its end."""
    level: float | None
    """The same at the farthest place that all of them reached."""


def read_run(folder: RunFolder, state: RunState | None = None) -> Compared:
    """Read a run to compare with; a state that is known already is taken as it is."""
    try:
        config = folder.read_config()
    except RequestError:
        config = None
    name = safe(folder.name, one_line=True)
    return Compared(name, folder.state() if state is None else state, config)


def curve_of(state: RunState) -> Series:
    """Return the curve that runs are compared by: validation loss, or train loss without it."""
    return state.val_loss if len(state.val_loss) > 1 else state.train_loss


def places(state: RunState, series: Series, by: Along) -> Sequence[float]:
    """Return where the points of a curve are; nowhere if the run does not say."""
    if by == "time":
        return tuple(series.seconds)
    scale = per_step(state, by)
    return [step * scale for step in series.steps] if scale else []


def per_step(state: RunState, by: Along) -> float:
    """Return how far a step leads; 0 where that is not known, or not the same for each."""
    if by == "step":
        return 1.0
    characters = float(state.characters_per_step)
    if by == "characters":
        return characters
    each = state.started.flops_per_character if state.started and by == "flops" else None
    scale = characters * (each or 0.0)
    return scale if 0 < scale < LARGEST else 0.0


def smoothed(state: RunState, by: Along, kept: float = KEPT) -> tuple[list[float], list[float]]:
    """Return a run's curve, smoothed: its places and its values, without gaps."""
    series = curve_of(state)
    points = zip(places(state, series, by), smooth(series.values, kept), strict=False)
    good = [(x, y) for x, y in points if math.isfinite(y) and abs(y) < LARGEST]
    return [x for x, _ in good], [y for _, y in good]


def ranked(runs: Sequence[Compared], by: Along = "step", kept: float = KEPT) -> list[Ranked]:
    """Return runs, the one with the lowest smoothed loss first, those without any last."""
    curves = [smoothed(run.state, by, kept) for run in runs]
    common = min((xs[-1] for xs, _ in curves if xs), default=0.0)
    found = [
        (ys[-1] if ys else None, _at(common, xs, ys), run)
        for (xs, ys), run in zip(curves, runs, strict=True)
    ]
    found.sort(key=lambda each: math.inf if each[0] is None else each[0])
    return [
        Ranked(0 if value is None else rank, run, value, level)
        for rank, (value, level, run) in enumerate(found, 1)
    ]


def _at(place: float, xs: Sequence[float], ys: Sequence[float]) -> float | None:
    """Return what a curve is at a place: its last value up to there, or its first."""
    return ys[max(0, bisect.bisect_right(xs, place) - 1)] if ys else None


def differing(runs: Sequence[Compared]) -> list[str]:
    """Return the keys of the settings that are not the same in all runs that have any."""
    return differing_keys([run.config for run in runs if run.config is not None])


def differing_keys(configs: Sequence[RunConfig]) -> list[str]:
    """Return the keys of the settings that are not the same in all."""
    found: dict[str, None] = {}
    for config in configs[1:]:
        found.update(dict.fromkeys(differences(config, configs[0])))
    return list(found)


TITLES = (
    "rank",
    "run",
    "smoothed loss",
    "at the same place",
    "best validation loss",
    "best step",
    "steps",
    "seconds",
)
"""The columns of the table of runs, before those of the settings that differ."""


def table(runs: Sequence[Compared], by: Along = "step") -> tuple[list[str], list[list[object]]]:
    """Return titles, and a row for each run, as they are ranked."""
    keys = differing(runs)
    return [*TITLES, *keys], [
        [
            each.rank or "",
            each.run.name,
            _number(each.value),
            _number(each.level),
            _number(each.run.state.best_val_loss),
            each.run.state.best_step if each.run.state.best_step is not None else "",
            each.run.state.step,
            _number(each.run.state.elapsed_seconds, 1),
            *(_setting(each.run.config, key) for key in keys),
        ]
        for each in ranked(runs, by)
    ]


def as_csv(runs: Sequence[Compared], by: Along = "step") -> str:
    """Return the table as CSV."""
    titles, rows = table(runs, by)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(titles)
    writer.writerows(rows)
    return out.getvalue()


def as_markdown(runs: Sequence[Compared], by: Along = "step") -> str:
    """Return the table as Markdown."""
    titles, rows = table(runs, by)
    lines: list[Sequence[object]] = [
        titles,
        ["---" if title == "run" else "---:" for title in titles],
        *rows,
    ]
    return "".join(f"| {' | '.join(_cell(cell) for cell in line)} |\n" for line in lines)


FORMS: dict[str, Callable[[Sequence[Compared], Along], str]] = {
    ".csv": as_csv,
    ".md": as_markdown,
}
"""What writes the table, by the ending of the file."""


def write_table(path: Path, runs: Sequence[Compared], by: Along = "step") -> None:
    """Write the table in the form that the file's ending names.

    Raises:
        RequestError: it names none, or the file cannot be written.
    """
    form = FORMS.get(path.suffix.lower())
    if form is None:
        shown = safe(str(path), one_line=True)
        raise RequestError(f"{shown} must end in {' or '.join(FORMS)}.")
    write_asked_for(path, form(runs, by).encode(errors="backslashreplace"))


def _number(value: float | None, digits: int = 6) -> object:
    return "" if value is None or not math.isfinite(value) else round(value, digits)


def _setting(config: RunConfig | None, key: str) -> Any:
    return "" if config is None else safe(str(get_setting(config, key)), one_line=True)


def _cell(cell: object) -> str:
    return safe(str(cell), one_line=True).replace("\\", "\\\\").replace("|", "\\|")
