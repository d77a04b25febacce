"""From the state of a run to the plots of the Training screen: curves, references, marks. Pure."""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, TypeAlias

from megatron_model.events.schema import DeviceSampled, RunStarted
from megatron_model.events.smoothing import smooth
from megatron_model.events.state import RunState, Series
from megatron_tui.plot.overlays import Mark, Reference
from megatron_tui.plot.painter import Curve, Limits, Plot, between, fit_limits
from megatron_tui.training.chart_view import SMOOTHING, Axis, ChartView, Unit, in_unit
from megatron_tui.training.other_runs import OtherRun
from megatron_tui.ui import formatting

Metric: TypeAlias = Literal["memory", "gradient", "rate", "speed"]
LONGEST = 3.0
"""A run compared with is shown up to so many times the length of the one on show."""

METRICS: tuple[Metric, ...] = ("memory", "gradient", "rate", "speed")


def loss_plot(state: RunState, view: ChartView, others: Sequence[OtherRun] = ()) -> Plot:
    """Return train loss (raw and smoothed), validation loss, the best of it, and other runs."""
    axis = Axis(state, view.x_axis)
    train, validation = state.train_loss, state.val_loss
    kept = SMOOTHING[view.smoothing]
    curves: list[Curve] = []
    marks: list[Mark] = []
    limits = axis.limits(view, _furthest(axis, others))
    for other in others:
        found, mark = _other_curves(other, axis, view, limits[1])
        curves += found
        if mark is not None:
            marks.append(mark)
    xs = axis.positions(train)
    if view.raw or not kept:
        colour, sign = ("chart-raw", ".") if kept else ("chart-train", "*")
        curves.append(Curve(xs, _in_unit(train.values, view.unit), colour, sign))
    if kept:
        smoothed = _in_unit(smooth(train.values, kept), view.unit)
        curves.append(Curve(xs, smoothed, "chart-train"))
    measured = _in_unit(validation.values, view.unit)
    curves.append(Curve(axis.positions(validation), measured, "chart-validation", "o"))
    if state.best_step in validation.steps and state.best_val_loss is not None:
        place = axis.positions(validation)[validation.steps.index(state.best_step)]
        marks.append(Mark(place, in_unit(state.best_val_loss, view.unit), "chart-validation"))
    return Plot(
        curves=tuple(curves),
        marks=tuple(marks),
        x_limits=limits,
        log_y=view.log_y,
        settling=not view.zoom,
        references=_references(state, view.unit) if view.references else (),
        cursor=axis.place(view.cursor) if view.cursor is not None else None,
        x_label=axis.label,
        y_label=_LOSS_LABELS[view.unit],
    )


Newest: TypeAlias = tuple[int, int, float]
"""How many points a curve has, and step and value of the last one."""


def newest(series: Series) -> Newest | None:
    """Return what differs as soon as a curve does; points are only ever added or thinned out."""
    return (len(series), series.steps[-1], series.values[-1]) if len(series) else None


class LossData(NamedTuple):
    """What the loss plot is made of, in short: the same means the same picture."""

    started: RunStarted | None
    train: Newest | None
    validation: Newest | None
    best_step: int | None
    limits: Limits
    others: tuple[tuple[Newest | None, Newest | None], ...]


class MetricData(NamedTuple):
    """What the plots of the further measurements are made of, in short."""

    started: RunStarted | None
    speed: Newest | None
    device: DeviceSampled | None
    limits: Limits


def loss_data(state: RunState, view: ChartView, others: Sequence[OtherRun] = ()) -> LossData:
    """Return what `loss_plot` makes its picture of."""
    axis = Axis(state, view.x_axis)
    return LossData(
        state.started,
        newest(state.train_loss),
        newest(state.val_loss),
        state.best_step,
        axis.limits(view, _furthest(axis, others)),
        tuple((newest(o.state.train_loss), newest(o.state.val_loss)) for o in others),
    )


def metric_data(state: RunState, view: ChartView) -> MetricData:
    """Return what `metric_plot` makes its pictures of."""
    limits = Axis(state, view.x_axis).limits(view)
    return MetricData(state.started, newest(state.speed), state.device, limits)


def _furthest(axis: Axis, others: Sequence[OtherRun]) -> float:
    """Return how far the chart reaches for the sake of the other runs in it.

    A parent is shown up to the fork, also while its child has not begun.
    """
    compared = parents = 0.0
    for other in others:
        own = Axis(other.state, axis.kind)
        if other.sign:
            compared = max(compared, own.reached)
        else:
            fork = own.place(other.until) if math.isfinite(other.until) else own.reached
            parents = max(parents, min(own.reached, fork))
    return max(parents, min(compared, LONGEST * axis.whole[1]))


def metric_plot(state: RunState, view: ChartView, metric: Metric) -> Plot:
    """Return one of the further measurements along the same axis."""
    axis = Axis(state, view.x_axis)
    series = metric_series(state, metric)
    scale, label = 1.0, _METRIC_LABELS[metric]
    y_limits = None
    if metric == "memory":
        # From zero to what the run needed at most.
        most = _most_memory(state)
        scale, _ = _binary_scale(most)
        y_limits = (0.0, fit_limits([0.0, most / scale])[1])
    values = [value / scale for value in series.values]
    return Plot(
        curves=(Curve(axis.positions(series), values, METRIC_COLOURS[metric]),),
        x_limits=axis.limits(view),
        y_limits=y_limits,
        settling=not view.zoom and metric != "rate",
        cursor=axis.place(view.cursor) if view.cursor is not None else None,
        x_label=axis.label,
        y_label=label,
    )


def metric_series(state: RunState, metric: Metric) -> Series:
    """Return the measurements."""
    return {
        "memory": state.memory,
        "gradient": state.gradient_norm,
        "rate": state.learning_rate,
        "speed": state.speed,
    }[metric]


def memory_unit(state: RunState) -> str:
    """Return the unit of the memory plot's axis."""
    return _binary_scale(_most_memory(state))[1]


def _other_curves(
    other: OtherRun, axis: Axis, view: ChartView, end: float
) -> tuple[list[Curve], Mark | None]:
    """Return another run's curves, and its sign where they end, or leave the chart at `end`.

    A run compared with shows one curve, its validation loss where it has one: the eye follows a
    few lines, not twice as many. A parent shows both, dimmed.
    """
    state, own = other.state, Axis(other.state, axis.kind)
    cut = own.place(other.until) if math.isfinite(other.until) else math.inf
    series = [state.val_loss] if other.sign and len(state.val_loss) > 1 else [state.train_loss]
    if not other.sign:
        series.append(state.val_loss)
    kept = SMOOTHING[max(view.smoothing, 1)]
    curves: list[Curve] = []
    for each in series:
        values = smooth(each.values, kept) if each is state.train_loss else each.values
        xs, ys = _until(own.positions(each), _in_unit(values, view.unit), cut)
        curves.append(Curve(xs, ys, other.colour, (other.sign or ".").lower()))
    finite = [(x, y) for c in curves for x, y in zip(c.xs, c.ys, strict=True) if math.isfinite(y)]
    if not other.sign or not finite:
        return curves, None
    last = max((point for point in finite if point[0] <= end), default=None)
    following = min((point for point in finite if point[0] > end), default=None)
    if last is None:
        return curves, None
    x, y = last if following is None else (end, between(last, following, end))
    return curves, Mark(x, y, other.colour, other.sign)


def _until(
    xs: Sequence[float], ys: Sequence[float], end: float
) -> tuple[Sequence[float], Sequence[float]]:
    count = bisect.bisect_right(xs, end)
    return xs[:count], ys[:count]


def _in_unit(values: Sequence[float], unit: Unit) -> Sequence[float]:
    # Copied in any case: a plot is drawn again later, when its run has gone on.
    return tuple(values) if unit == "nats" else [in_unit(value, unit) for value in values]


def _references(state: RunState, unit: Unit) -> tuple[Reference, ...]:
    """Return the losses of guessing blindly, by frequency, and by the last two characters."""
    started = state.started
    if started is None:
        return ()
    known = [
        ("guessing", math.log(started.vocabulary_size) if started.vocabulary_size > 1 else None),
        ("unigram", started.unigram_entropy),
        ("trigram", started.trigram_entropy),
    ]
    label = _LOSS_LABELS[unit]
    return tuple(
        Reference(y, f"{'ln V' if name == 'guessing' and unit == 'nats' else name} {label(y)}")
        for name, value in known
        if value is not None and math.isfinite(y := in_unit(value, unit))
    )


def _most_memory(state: RunState) -> float:
    return max([*state.memory.values, float(state.device.peak) if state.device else 0.0])


def _binary_scale(most: float) -> tuple[float, str]:
    return (2.0**30, "GiB") if most >= 2.0**30 else (2.0**20, "MiB")


def _short(value: float) -> str:
    return f"{value:.3g}"


def _loss_label(value: float) -> str:
    return f"{value:.2f}" if abs(value) < 1000 else formatting.rate(value)


def _perplexity_label(value: float) -> str:
    return f"{value:.1f}" if abs(value) < 1000 else formatting.count(value)


_LOSS_LABELS: dict[Unit, Callable[[float], str]] = {
    "nats": _loss_label,
    "bits": _loss_label,
    "perplexity": _perplexity_label,
}
_METRIC_LABELS: dict[Metric, Callable[[float], str]] = {
    "memory": _short,
    "gradient": formatting.rate,
    "rate": formatting.rate,
    "speed": formatting.count,
}
METRIC_COLOURS: dict[Metric, str] = {
    "memory": "chart-memory",
    "gradient": "chart-validation",
    "rate": "chart-train",
    "speed": "chart-memory",
}
