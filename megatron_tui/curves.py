"""From the state of a run to the plots of the Training screen: axes, smoothing, marks. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from megatron_model.run_state import RunState, Series
from megatron_tui import formatting
from megatron_tui.charts import Curve, Limits, Mark, Plot, fit_limits, growing_limit

SMOOTHING = (0.0, 0.6, 0.8, 0.9, 0.95, 0.98)
"""How much of the past each level of smoothing keeps."""

_SETTLING_POINTS = 10
"""How slowly smoothing sets in: the steep beginning of a run is not dragged along."""


@dataclass(frozen=True)
class ChartView:
    """How a person wants to see the curves."""

    log_y: bool = False
    x_axis: Literal["step", "time"] = "step"
    smoothing: int = 3
    """Index into `SMOOTHING`."""

    def smoother(self, change: int) -> ChartView:
        """Return the view with smoothing changed by so many levels; 0 switches it off."""
        level = 0 if change == 0 else self.smoothing + change
        return replace(self, smoothing=min(len(SMOOTHING) - 1, max(0, level)))


def smooth(values: Sequence[float], kept: float) -> list[float]:
    """Return the running mean that keeps `kept` of its past, less where there is little past."""
    if not kept:
        return list(values)
    mean = 0.0
    result = []
    for index, value in enumerate(values):
        if not math.isfinite(value):
            result.append(math.nan)
            continue
        keep = min(kept, index / (index + _SETTLING_POINTS))
        mean = keep * mean + (1 - keep) * value
        result.append(mean)
    return result


def loss_plot(state: RunState, view: ChartView) -> Plot:
    """Return train loss (raw and smoothed), validation loss, and the best validation."""
    xs = partial(_positions, view=view)
    train, validation = state.train_loss, state.val_loss
    kept = SMOOTHING[view.smoothing]
    curves = [Curve(xs(train), train.values, "chart-raw" if kept else "chart-train")]
    if kept:
        curves.append(Curve(xs(train), smooth(train.values, kept), "chart-train"))
    curves.append(Curve(xs(validation), validation.values, "chart-validation"))
    marks: tuple[Mark, ...] = ()
    if state.best_step in validation.steps and state.best_val_loss is not None:
        index = validation.steps.index(state.best_step)
        marks = (Mark(xs(validation)[index], state.best_val_loss, "chart-validation"),)
    return Plot(
        curves=tuple(curves),
        marks=marks,
        x_limits=_x_limits(state, view),
        log_y=view.log_y,
        x_label=_x_label(view),
    )


def memory_plot(state: RunState, view: ChartView) -> Plot:
    """Return the memory in use, from zero to what the run needed at most."""
    memory = state.memory
    most = _most_memory(state)
    scale, _ = _binary_scale(most)
    gigabytes = [value / scale for value in memory.values]
    return Plot(
        curves=(Curve(_positions(memory, view), gigabytes, "chart-memory"),),
        x_limits=_x_limits(state, view),
        y_limits=(0.0, fit_limits([0.0, most / scale])[1]),
        x_label=_x_label(view),
        y_label=lambda value: f"{value:.3g}",
    )


def memory_unit(state: RunState) -> str:
    """Return the unit of the memory plot's axis."""
    return _binary_scale(_most_memory(state))[1]


def _most_memory(state: RunState) -> float:
    return max([*state.memory.values, float(state.device.peak) if state.device else 0.0])


def _binary_scale(most: float) -> tuple[float, str]:
    return (2.0**30, "GiB") if most >= 2.0**30 else (2.0**20, "MiB")


def _positions(series: Series, view: ChartView) -> Sequence[float]:
    return series.steps if view.x_axis == "step" else series.seconds


def _x_label(view: ChartView) -> Callable[[float], str]:
    return formatting.exact if view.x_axis == "step" else formatting.clock


def _x_limits(state: RunState, view: ChartView) -> Limits:
    if view.x_axis == "step":
        total = float(state.started.steps) if state.started else float(max(1, state.step))
        # A run that ended early fills its chart.
        reached = float(max(1, state.step))
        return 0.0, growing_limit(reached, total) if state.running else reached
    reached = max(1.0, state.elapsed_seconds)
    if not state.running:
        return 0.0, reached
    # The estimate of the end moves all the time; rounding it up keeps the axis still.
    return 0.0, 2.0 ** math.ceil(math.log2(reached / 10)) * 10
