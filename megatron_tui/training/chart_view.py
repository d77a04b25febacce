"""How a person looks at the curves: axes, units, smoothing, the stretch on show, the cursor. Pure.

Places along a run are kept as steps, whatever the axis counts; `Axis` turns one into the other.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from megatron_model.events.state import RunState, Series
from megatron_tui.plot.painter import LARGEST, Limits, growing_limit
from megatron_tui.ui import formatting

Unit: TypeAlias = Literal["nats", "bits", "perplexity"]
XAxis: TypeAlias = Literal["step", "time", "characters"]

X_AXES: tuple[XAxis, ...] = ("step", "time", "characters")
UNITS: tuple[Unit, ...] = ("nats", "bits", "perplexity")
UNIT_TITLES: dict[Unit, str] = {
    "nats": "loss, nats per character",
    "bits": "loss, bits per character",
    "perplexity": "perplexity per character",
}

SMOOTHING = (0.0, 0.6, 0.8, 0.9, 0.95, 0.98)
"""How much of the past each level of smoothing keeps."""

CLOSEST = 12
"""Zooming doubles, at most so many times."""


@dataclass(frozen=True)
class ChartView:
    """How a person wants to see the curves."""

    log_y: bool = False
    x_axis: XAxis = "step"
    unit: Unit = "nats"
    smoothing: int = 3
    """Index into `SMOOTHING`."""
    raw: bool = True
    """Whether the reports show beside their smoothed curve."""
    references: bool = True
    zoom: int = 0
    """The stretch on show is the whole halved so many times."""
    centre: int | None = None
    """The step in its middle; None follows the newest."""
    cursor: int | None = None
    """The step whose values are read out."""

    def smoother(self, change: int) -> ChartView:
        """Return the view with smoothing changed by so many levels; 0 switches it off."""
        level = 0 if change == 0 else self.smoothing + change
        return replace(self, smoothing=min(len(SMOOTHING) - 1, max(0, level)))

    def next_axis(self) -> ChartView:
        """Return the view along the next axis."""
        return replace(self, x_axis=X_AXES[(X_AXES.index(self.x_axis) + 1) % len(X_AXES)])

    def next_unit(self) -> ChartView:
        """Return the view in the next unit."""
        return replace(self, unit=UNITS[(UNITS.index(self.unit) + 1) % len(UNITS)])

    def zoomed(self, change: int) -> ChartView:
        """Return the view of half, or twice, the stretch around the cursor."""
        zoom = min(CLOSEST, max(0, self.zoom + change))
        centre = self.cursor if self.cursor is not None else self.centre
        return replace(self, zoom=zoom, centre=centre if zoom else None)

    def whole(self) -> ChartView:
        """Return the view of the whole run, without a cursor."""
        return replace(self, zoom=0, centre=None, cursor=None)


def in_unit(value: float, unit: Unit) -> float:
    """Turn nats per character into the unit."""
    if unit == "nats":
        return value
    if unit == "bits":
        return value / math.log(2)
    return math.exp(value) if value < 200 else (LARGEST if value == value else math.nan)


class Axis:
    """What stands along the bottom of a run's charts."""

    def __init__(self, state: RunState, kind: XAxis) -> None:
        self._state = state
        self.kind: XAxis = kind
        if kind == "characters" and not state.characters_per_step:
            self.kind = "step"  # an old log does not say

    def positions(self, series: Series) -> Sequence[float]:
        """Return where the points of a curve are."""
        if self.kind == "step":
            return tuple(series.steps)
        if self.kind == "time":
            return tuple(series.seconds)
        characters = self._state.characters_per_step
        return [step * characters for step in series.steps]

    def place(self, step: float) -> float:
        """Return where a step is."""
        if self.kind == "step":
            return step
        if self.kind == "characters":
            return step * self._state.characters_per_step
        return _between(step, self._state.train_loss.steps, self._state.train_loss.seconds)

    def step(self, place: float) -> float:
        """Return the step that is at a place."""
        if self.kind == "step":
            return place
        if self.kind == "characters":
            return place / self._state.characters_per_step
        return _between(place, self._state.train_loss.seconds, self._state.train_loss.steps)

    @property
    def reached(self) -> float:
        """How far the run has come."""
        state = self._state
        return max(1.0, state.elapsed_seconds if self.kind == "time" else self.place(state.step))

    @property
    def whole(self) -> Limits:
        """The limits of the whole run; they rest while it grows."""
        state = self._state
        if not state.running:
            return 0.0, self.reached  # a run that ended early fills its chart
        if self.kind == "time":
            # The estimate of the end moves all the time; rounding it up keeps the axis still.
            return 0.0, 2.0 ** math.ceil(math.log2(max(10.0, self.reached) / 10)) * 10
        total = self.place(state.started.steps) if state.started else self.reached
        return 0.0, growing_limit(self.reached, max(self.reached, total))

    def limits(self, view: ChartView, at_least: float = 0.0) -> Limits:
        """Return the stretch that is on show; the whole reaches at least so far."""
        low, high = self.whole
        high = max(high, at_least)
        if not view.zoom:
            return low, high
        width = (high - low) / 2**view.zoom
        if view.centre is None:
            # In quarters of its width: moving with every point would repaint every cell.
            quarter = width / 4
            end = min(high, math.ceil(self.reached / quarter) * quarter)
        else:
            end = self.place(view.centre) + width / 2
        end = min(high, max(low + width, end))
        return end - width, end

    @property
    def label(self) -> Callable[[float], str]:
        """How places are written."""
        if self.kind == "time":
            return formatting.clock
        return formatting.count if self.kind == "characters" else formatting.exact

    @property
    def title(self) -> str:
        """What is counted."""
        return {"step": "steps", "time": "time trained", "characters": "characters read"}[self.kind]


def moved_cursor(state: RunState, view: ChartView, columns: int, cells: int) -> ChartView:
    """Return the view with the cursor so many cells further, on a report, and in sight."""
    steps = (state.train_loss if len(state.train_loss) else state.val_loss).steps
    if not steps:
        return view
    axis = Axis(state, view.x_axis)
    low, high = axis.limits(view)
    if view.cursor is None:
        index = len(steps) - 1
    else:
        before = nearest(steps, view.cursor)
        wanted = axis.place(steps[before]) + cells * (high - low) / max(1, columns)
        index = nearest(steps, axis.step(wanted))
        if index == before:
            index = min(len(steps) - 1, max(0, before + (1 if cells > 0 else -1)))
    return looking_at(state, view, steps[index])


def looking_at(state: RunState, view: ChartView, step: int) -> ChartView:
    """Return the view with the cursor at `step`, moved so that it is in sight."""
    axis = Axis(state, view.x_axis)
    low, high = axis.limits(view)
    view = replace(view, cursor=step)
    return view if low <= axis.place(step) <= high else replace(view, centre=step)


def panned(state: RunState, view: ChartView, direction: int) -> ChartView:
    """Return the view half a stretch further."""
    axis = Axis(state, view.x_axis)
    low, high = axis.limits(view)
    start, end = axis.whole
    middle = (low + high) / 2 + direction * (high - low) / 2
    half = (high - low) / 2
    middle = max(start + half, min(end - half, middle))
    return replace(view, centre=round(axis.step(middle))) if view.zoom else view


def nearest(values: Sequence[float], wanted: float) -> int:
    """Return the index of the sorted value nearest to `wanted`."""
    after = bisect.bisect_left(values, wanted)
    if after == 0:
        return 0
    if after == len(values):
        return len(values) - 1
    return after if values[after] - wanted < wanted - values[after - 1] else after - 1


FARTHEST = 1e9
"""How many times the stretch between two reports something is looked for beyond them."""


def _between(value: float, known: Sequence[float], wanted: Sequence[float]) -> float:
    """Interpolate: `known` and `wanted` grow together, from nothing."""
    if not known:
        return value
    index = min(len(known) - 1, bisect.bisect_left(known, value))
    before_known, before_wanted = (known[index - 1], wanted[index - 1]) if index else (0.0, 0.0)
    span = known[index] - before_known
    share = (value - before_known) / span if span > 0 else 1.0
    # A report after almost no time at all would lead beyond all numbers.
    share = max(-FARTHEST, min(FARTHEST, share))
    return before_wanted + share * (wanted[index] - before_wanted)
