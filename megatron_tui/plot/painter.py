"""Draw curves as rows of coloured text: the one place that knows plotext.

plotext is imported at the first drawing, not with this module. It is only ever given finite points
inside the limits of the axes (it does not return from a point far outside), at most two a column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from megatron_tui.chart_layers import (
    Mark,
    Reference,
    Run,
    add_layers,
    add_run,
    frame_of,
    to_ascii,
)

AXIS = "chart-axis"
"""The theme variable that axes and labels are drawn in."""

LARGEST = 1e100
"""From here on a value counts as not a number: arithmetic with it would overflow."""

Limits: TypeAlias = tuple[float, float]
Point: TypeAlias = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Points from left to right; a value that is not finite breaks the line."""

    xs: Sequence[float]
    ys: Sequence[float]
    colour: str
    sign: str = "*"
    """What draws it where there is no braille."""


@dataclass(frozen=True)
class Plot:
    """What one chart shows; curves are drawn in order, the last one on top."""

    curves: tuple[Curve, ...] = ()
    marks: tuple[Mark, ...] = ()
    x_limits: Limits | None = None
    y_limits: Limits | None = None
    log_y: bool = False
    settling: bool = True
    """Whether the first few per cent may be cut off to show what follows them larger."""
    references: tuple[Reference, ...] = ()
    cursor: float | None = None
    x_label: Callable[[float], str] = field(default="{:,.0f}".format, compare=False)
    y_label: Callable[[float], str] = field(default="{:.2f}".format, compare=False)

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(_usable(y) for curve in self.curves for y in curve.ys)


class Painter:
    """Draws plots of one chart after another, keeping its axes still while they still fit."""

    def __init__(self, *, ascii_only: bool = False, colours: bool = True) -> None:
        self._ascii = ascii_only
        self._colours = colours
        self._y_limits: Limits | None = None
        self._kind: object = None

    def draw(self, plot: Plot, width: int, height: int) -> list[list[Run]]:
        """Return `height` rows of `width` cells.

        Raises:
            ImportError: plotext is not installed.
        """
        x_limits = plot.x_limits or _x_extent(plot.curves)
        lines = [_prepare(curve, x_limits, max(8, width - 8), plot.log_y) for curve in plot.curves]
        y_limits = plot.y_limits or self._fit(plot, x_limits, lines)
        figure = _new_figure(width, height)
        palette = [AXIS]
        for curve, line in zip(plot.curves, lines, strict=True):
            palette.append(curve.colour)
            for xs, ys in _pieces(line, y_limits):
                # Without colours, what is not the run's own train loss shows its sign.
                signed = self._ascii or not (self._colours or curve.sign in "*.")
                marker = curve.sign if signed else "braille"
                figure.plot(xs, ys, marker=marker, color=len(palette) - 1)
        _set_axes(figure, plot, x_limits, y_limits, width, height)
        rows = _rows(figure.build(), palette, height)
        frame = frame_of(rows, x_limits, y_limits, width)
        references = [
            Reference(y, reference.label)
            for reference in plot.references
            if math.isfinite(y := _scaled(reference.y, plot.log_y))
        ]
        marks = [replace(mark, y=_scaled(mark.y, plot.log_y)) for mark in plot.marks]
        rows = add_layers(rows, frame, references, marks, plot.cursor, width)
        return to_ascii(rows) if self._ascii else rows

    def _fit(self, plot: Plot, x_limits: Limits, lines: list[list[Point]]) -> Limits:
        kind = (plot.log_y, plot.y_label, plot.settling)
        if self._kind != kind:
            self._y_limits, self._kind = None, kind
        # The fall of the first few steps would squeeze everything after it into the bottom rows.
        settled = x_limits[0] + 0.04 * (x_limits[1] - x_limits[0])
        finite = [(x, y) for line in lines for x, y in line if math.isfinite(y)]
        values = [y for x, y in finite if x >= settled]
        if len(values) < 8 or not plot.settling:
            values = [y for _, y in finite]
        values += [_scaled(mark.y, plot.log_y) for mark in plot.marks]
        self._y_limits = fit_limits(values, self._y_limits)
        return self._y_limits


def _usable(value: float) -> bool:
    return math.isfinite(value) and abs(value) < LARGEST


def fit_limits(values: Sequence[float], old: Limits | None = None) -> Limits:
    """Return round limits around `values`; `old` ones stay while the values fill 40 % of them."""
    finite = [value for value in values if _usable(value)]
    if not finite:
        return old or (0.0, 1.0)
    low, high = min(finite), max(finite)
    if old and old[0] <= low and high <= old[1] and high - low > 0.4 * (old[1] - old[0]):
        return old
    size = max(abs(low), abs(high))
    # Equal values get an axis of their own size, not a magnified nothing.
    span = high - low if high - low > 1e-9 * size else size
    if span < 1e-100:
        span = 1.0
    quantum = 10.0 ** math.floor(math.log10(span)) / 2
    bottom, top = math.floor(low / quantum) * quantum, math.ceil(high / quantum) * quantum
    return (bottom, top) if top > bottom else (bottom, bottom + quantum)


def growing_limit(reached: float, total: float) -> float:
    """Return the right end of an axis on which `reached` grows to `total`.

    It doubles when it is reached, so that the axis (and with it every drawn cell) rests in between.
    """
    limit = total
    while limit / 2 >= reached and limit > total / 64:
        limit /= 2
    return limit


def ticks(limits: Limits, wanted: int, *, log: bool = False) -> list[float]:
    """Return about `wanted` round positions inside `limits`; on a log scale limits are log10."""
    low, high = limits
    if log:
        values = [
            math.log10(mantissa) + exponent
            for exponent in range(math.floor(low), math.ceil(high) + 1)
            for mantissa in (1, 1.5, 2, 3, 4, 5, 7)
        ]
        inside = [value for value in values if low <= value <= high]
        return inside[:: max(1, math.ceil(len(inside) / max(2, wanted)))]
    rough = (high - low) / max(1, wanted)
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def buckets(xs: Sequence[float], ys: Sequence[float], limits: Limits, columns: int) -> list[Point]:
    """Return the smallest and the largest point of each of `columns` columns, in order.

    Columns depend on the limits alone, so a finished column never changes while the curve grows. A
    value that is not finite stays as a gap.
    """
    low, high = limits
    width = (high - low) / columns or 1.0
    points: list[Point] = []
    current: int | None = None
    smallest = largest = (0.0, 0.0)

    def close() -> None:
        if current is not None:
            points.extend(sorted({smallest, largest}))

    for x, y in zip(xs, ys, strict=True):
        if not low <= x <= high:
            continue
        if not _usable(y):
            close()
            current = None
            points.append((x, math.nan))
            continue
        column = int((x - low) / width)
        if column != current:
            close()
            current, smallest, largest = column, (x, y), (x, y)
        elif y < smallest[1]:
            smallest = (x, y)
        elif y > largest[1]:
            largest = (x, y)
    close()
    return points


def _scaled(value: float, log: bool) -> float:
    if not log:
        return value
    return math.log10(value) if 0 < value < LARGEST else math.nan


def _x_extent(curves: Sequence[Curve]) -> Limits:
    ends = [x for curve in curves if len(curve.xs) for x in (curve.xs[0], curve.xs[-1])]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    return (low, high) if high > low else (low, low + 1.0)


def _prepare(curve: Curve, limits: Limits, columns: int, log: bool) -> list[Point]:
    ys = [_scaled(y, log) for y in curve.ys] if log else curve.ys
    return buckets(curve.xs, ys, limits, columns)


def _pieces(line: list[Point], limits: Limits) -> list[tuple[list[float], list[float]]]:
    """Split a line at its gaps and where it runs above or below the chart, clamped at the edge."""
    low, high = limits
    pieces: list[tuple[list[float], list[float]]] = []
    xs: list[float] = []
    ys: list[float] = []
    for index, (x, y) in enumerate(line):
        outside = not low <= y <= high  # also true for NaN
        if outside:
            following = line[index + 1][1] if index + 1 < len(line) else math.nan
            touches = bool(xs) or low <= following <= high
            if math.isfinite(y) and touches:
                xs.append(x)
                ys.append(min(high, max(low, y)))
            if not low <= following <= high and xs:
                pieces.append((xs, ys))
                xs, ys = [], []
            continue
        xs.append(x)
        ys.append(y)
    if xs:
        pieces.append((xs, ys))
    return pieces


def _new_figure(width: int, height: int) -> Any:
    from plotext._figure import _figure_class  # the public functions share one global figure

    figure = _figure_class()
    figure._limit_size(False, False)  # else the size of the real terminal caps ours
    figure.plot_size(width, height)
    figure.theme("clear")
    figure.xaxes(True, False)
    figure.yaxes(True, False)
    return figure


def _set_axes(
    figure: Any, plot: Plot, x_limits: Limits, y_limits: Limits, width: int, height: int
) -> None:
    figure.xlim(*x_limits)
    figure.ylim(*y_limits)
    xs = ticks(x_limits, max(2, width // 16))
    figure.xticks(xs, [plot.x_label(x) for x in xs])
    ys = ticks(y_limits, max(2, height // 3), log=plot.log_y)
    labels = [plot.y_label(10**y if plot.log_y else y) for y in ys]
    # One width for all labels: the left edge of the chart does not move when the axis does.
    figure.yticks(ys, [label.rjust(4) for label in labels])


_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


def _rows(ansi: str, palette: list[str], height: int) -> list[list[Run]]:
    """Turn plotext's escapes into runs of one colour."""
    rows = []
    for line in ansi.rstrip("\n").split("\n")[:height]:
        runs: list[Run] = []
        colour, position = AXIS, 0
        for match in _ESCAPE.finditer(line):
            add_run(runs, line[position : match.start()], colour)
            code = match[1]
            colour = palette[int(code[5:])] if code.startswith("38;5;") else AXIS
            position = match.end()
        add_run(runs, line[position:], colour)
        rows.append(runs)
    return rows
