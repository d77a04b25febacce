"""Draw curves as rows of coloured text: the one place that knows plotext.

plotext 5 draws lines, axes and labels. Version 6 dropped `plotext.plot` and aborts the process on a
NaN; so we stay with the last release of 5, which is pure Python, and what it is asked for here is
so little that a later library could stand in its place: everything else about a chart (limits,
ticks, clipping, marks, reference lines) is ours already.

It is imported at the first drawing, not with this module. It is only ever given finite points
inside the limits of the axes (it does not return from a point far outside), at most two a column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from megatron_tui.plot.overlays import (
    Mark,
    Reference,
    Span,
    add_layers,
    add_run,
    frame_of,
)
from megatron_tui.plot.plotext_cells import join_dots
from megatron_tui.terminal.ascii import as_ascii

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
        self._kind: tuple[bool, Callable[[float], str], bool] | None = None

    def draw(self, plot: Plot, width: int, height: int) -> list[list[Span]]:
        """Return `height` rows of `width` cells.

        Raises:
            ImportError: plotext is not installed.
        """
        x_limits = plot.x_limits or _x_extent(plot.curves)
        lines = [_prepare(curve, x_limits, max(8, width - 8), plot.log_y) for curve in plot.curves]
        y_limits = plot.y_limits or self._fit(plot, x_limits, lines)
        plotext = _new_figure(width, height)
        palette = [AXIS]
        for curve, line in zip(plot.curves, lines, strict=True):
            palette.append(curve.colour)
            for xs, ys in _pieces(line, y_limits):
                # Without colours, what is not the run's own train loss shows its sign.
                signed = self._ascii or not (self._colours or curve.sign in "*.")
                marker = curve.sign if signed else "braille"
                plotext.plot(xs, ys, marker=marker, color=len(palette) - 1)
        _set_axes(plotext, plot, x_limits, y_limits, width, height)
        rows = _rows(plotext.build(), palette, height)
        frame = frame_of(rows, x_limits, y_limits, width)
        references = [
            Reference(y, reference.label)
            for reference in plot.references
            if math.isfinite(y := _scaled(reference.y, plot.log_y))
        ]
        marks = [replace(mark, y=_scaled(mark.y, plot.log_y)) for mark in plot.marks]
        rows = add_layers(rows, frame, references, marks, plot.cursor, width)
        if self._ascii:
            return [[(as_ascii(text), colour) for text, colour in row] for row in rows]
        return rows

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
    if not rough > abs(high) * 1e-14:
        return []  # so far out that no numbers lie between the two
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def buckets(xs: Sequence[float], ys: Sequence[float], limits: Limits, columns: int) -> list[Point]:
    """Return the smallest and the largest point of each of `columns` columns, in order.

    Columns depend on the limits alone, so a finished column never changes while the curve grows. A
    value that is not finite stays as a gap. A line that comes from outside the limits, or goes on
    there, is cut at them.
    """
    low, high = limits
    width = (high - low) / columns or 1.0
    points: list[Point] = []
    current: int | None = None
    smallest = largest = (0.0, 0.0)
    last: Point | None = None

    def close() -> None:
        if current is not None:
            points.extend(sorted({smallest, largest}))

    def add(x: float, y: float) -> None:
        nonlocal current, smallest, largest
        column = int((x - low) / width)
        if column != current:
            close()
            current, smallest, largest = column, (x, y), (x, y)
        elif y < smallest[1]:
            smallest = (x, y)
        elif y > largest[1]:
            largest = (x, y)

    for x, y in zip(xs, ys, strict=True):
        if not _usable(y):
            close()
            current = last = None
            if low <= x <= high:
                points.append((x, math.nan))
            continue
        if last is not None and last[0] < low < x:
            add(low, between(last, (x, y), low))
        if last is not None and last[0] < high < x:
            add(high, between(last, (x, y), high))
        if low <= x <= high:
            add(x, y)
        if x > high:
            break
        last = (x, y)
    close()
    return points


def between(first: Point, second: Point, place: float) -> float:
    """Return the height of a straight line at `place`."""
    share = (place - first[0]) / (second[0] - first[0])
    return first[1] + share * (second[1] - first[1])


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
    """Split a line at its gaps and where it runs above or below the chart, cut at the edge."""
    low, high = limits
    pieces: list[list[Point]] = [[]]
    last: Point | None = None
    for point in line:
        if not math.isfinite(point[1]):
            last = None
            pieces.append([])
            continue
        if last is None:
            part = [point] if low <= point[1] <= high else []
        else:
            part = _within(last, point, limits)
        if part and pieces[-1] and part[0] != pieces[-1][-1]:
            pieces.append([])
        pieces[-1] += part[1:] if pieces[-1] else part
        last = point
    return [([x for x, _ in piece], [y for _, y in piece]) for piece in pieces if piece]


def _within(first: Point, second: Point, limits: Limits) -> list[Point]:
    """Return the two ends of what is inside the limits of a straight line; nothing if none is."""
    low, high = limits
    if max(first[1], second[1]) < low or min(first[1], second[1]) > high:
        return []
    ends = []
    for (x, y), (other_x, other_y) in ((first, second), (second, first)):
        edge = min(high, max(low, y))
        if edge != y:
            x += (edge - y) / (other_y - y) * (other_x - x)
        ends.append((x, edge))
    return ends


def _new_figure(width: int, height: int) -> Any:
    """Return plotext, which draws on one figure of its own, with that figure empty again."""
    import plotext

    plotext.clear_figure()
    plotext.limit_size(False, False)  # else the size of the real terminal caps ours
    plotext.plot_size(width, height)
    plotext.theme("clear")
    plotext.xaxes(True, False)
    plotext.yaxes(True, False)
    join_dots(plotext.active())
    return plotext


def _set_axes(
    plotext: Any, plot: Plot, x_limits: Limits, y_limits: Limits, width: int, height: int
) -> None:
    plotext.xlim(*x_limits)
    plotext.ylim(*y_limits)
    xs = ticks(x_limits, max(2, width // 16))
    plotext.xticks(xs, [plot.x_label(x) for x in xs])
    ys = ticks(y_limits, max(2, height // 3), log=plot.log_y)
    labels = [plot.y_label(10**y if plot.log_y else y) for y in ys]
    # One width for all labels: the left edge of the chart does not move when the axis does.
    plotext.yticks(ys, [label.rjust(4) for label in labels])


_ESCAPE = re.compile(r"\x1b\[([0-9;]*)m")


def _rows(ansi: str, palette: list[str], height: int) -> list[list[Span]]:
    """Turn plotext's escapes into runs of one colour."""
    rows = []
    for line in ansi.rstrip("\n").split("\n")[:height]:
        runs: list[Span] = []
        colour, position = AXIS, 0
        for match in _ESCAPE.finditer(line):
            add_run(runs, line[position : match.start()], colour)
            code = match[1]
            colour = palette[int(code[5:])] if code.startswith("38;5;") else AXIS
            position = match.end()
        add_run(runs, line[position:], colour)
        rows.append(runs)
    return rows
