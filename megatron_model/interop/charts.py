"""Curves as pictures in a page (SVG): axes, lines that differ in more than colour, the best point.

Each chart is drawn twice, wide and narrow, and the style sheet shows the one that fits: letters
keep their size that way.
"""

from __future__ import annotations

import bisect
import html
import math
from collections.abc import Callable, Sequence

from msgspec import Struct

from megatron_model.interop.page import plain, short

POINTS = 700
"""Points of a line that are drawn; of more, the smallest and largest of equal stretches."""
TITLED = 120
"""Points of a line that say their numbers under the pointer."""


class Line(Struct, frozen=True):
    """One curve; `style` is its class in the style sheet, which gives colour and dashes."""

    label: str
    steps: Sequence[float]
    values: Sequence[float]
    style: str
    marked: bool = False
    """Whether each point is drawn as a dot: an evaluation, not a mean over steps."""


class Level(Struct, frozen=True):
    """A value to compare with, drawn across the chart."""

    label: str
    value: float


def chart(
    title: str,
    lines: Sequence[Line],
    *,
    height: int = 340,
    narrow: int = 300,
    wide_width: int = 800,
    narrow_width: int = 350,
    levels: Sequence[Level] = (),
    best: tuple[float, float] | None = None,
    from_zero: bool = False,
    number: Callable[[float], str] = short,
    unit: str = "",
) -> str:
    """Return a chart over the steps, or a sentence where there is nothing to draw.

    Args:
        title: what it shows, for who cannot see it.
        lines: points that are not finite are left out.
        height: in pixels, wide; `narrow` on a small screen.
        wide_width: in pixels, as `narrow_width`.
        levels: values to compare with; those far outside the curves are left out.
        best: step and value of the point to mark.
        from_zero: whether the axis begins at zero.
        number: writes a value of a point.
        unit: of the values, above the axis.
    """
    lines = [_finite(line) for line in lines]
    lines = [line for line in lines if line.steps]
    if not lines:
        return '<p class="none">Nothing was measured.</p>'
    drawn = "".join(
        _draw(title, lines, width, high, kind, levels, best, from_zero, number, unit)
        for kind, width, high in (("wide", wide_width, height), ("narrow", narrow_width, narrow))
    )
    return f'<div class="chart">{drawn}</div>'


def legend(entries: Sequence[tuple[str, str, bool]]) -> str:
    """Return what each line is: style, words in HTML, and whether its points are dots."""
    items = "".join(
        f'<li><svg class="swatch" viewBox="0 0 34 12" aria-hidden="true"><path class="line {style}"'
        f' d="M1 6H33"/>{_dot(17, 6, style) if dots else ""}</svg>{words}</li>'
        for style, words, dots in entries
    )
    return f'<ul class="legend">{items}</ul>'


def _dot(x: float, y: float, style: str) -> str:
    return f'<circle class="dot {style}" cx="{x:g}" cy="{y:g}" r="3.2"/>'


def _finite(line: Line) -> Line:
    pairs = [
        (s, v)
        for s, v in zip(line.steps, line.values, strict=True)
        if math.isfinite(v) and abs(v) < 1e30
    ]
    return Line(line.label, [s for s, _ in pairs], [v for _, v in pairs], line.style, line.marked)


def _draw(
    title: str,
    lines: Sequence[Line],
    width: int,
    height: int,
    kind: str,
    levels: Sequence[Level],
    best: tuple[float, float] | None,
    from_zero: bool,
    number: Callable[[float], str],
    unit: str,
) -> str:
    low = min(min(line.values) for line in lines)
    high = max(max(line.values) for line in lines)
    room = (high - low) * 0.6
    levels = [level for level in levels if low - room / 4 <= level.value <= high + room]
    if from_zero:
        low = min(0.0, low)
    low, high = (f([low, high, *(x.value for x in levels)]) for f in (min, max))
    ticks = _ticks(low, high, max(2, height // 60))
    room = (ticks[-1] - ticks[0]) * 30 / height
    below = ticks[0] * 2 - ticks[1]
    if best is not None and best[1] - ticks[0] < room and below >= 0:
        ticks.insert(0, below)  # so that the words for the best point stand under the curves
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    last = max(line.steps[-1] for line in lines)
    first = min(0.0, *(line.steps[0] for line in lines)) if last else 0.0
    words = _words(ticks)
    left = 14 + 7 * max(map(len, words))
    right, top, bottom = width - 14, 26 if unit else 12, height - 34

    def x(step: float) -> float:
        return left + (right - left) * (step - first) / ((last - first) or 1)

    def y(value: float) -> float:
        return bottom - (bottom - top) * (value - low) / ((high - low) or 1)

    parts = [
        f'<svg class="{kind}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{html.escape(title)}">'
    ]
    for tick, word in zip(ticks, words, strict=True):
        parts.append(
            f'<path class="grid" d="M{left} {y(tick):.1f}H{right}"/>'
            f'<text class="tick" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">'
            f"{word}</text>"
        )
    steps = [s for s in _ticks(first, last, max(2, width // 130)) if first <= s <= last]
    parts += _step_axis(steps, x, (left, right, bottom))
    if unit:
        parts.append(f'<text class="unit" x="{left - 8}" y="12" text-anchor="start">{unit}</text>')
    for level in levels:
        parts.append(
            f'<path class="level" d="M{left} {y(level.value):.1f}H{right}"/><text class="tick" '
            f'x="{right}" y="{y(level.value) - 5:.1f}" text-anchor="end">'
            f"{html.escape(level.label)}</text>"
        )
    for line in lines:
        parts += _curve(line, x, y)
    if best is not None:
        parts.append(_best(best, lines, x, y, (left, right, bottom), number))
    for line in lines:
        parts += _titles(line, x, y, number)
    return "".join([*parts, "</svg>"])


_Place = Callable[[float], float]
"""From a step or a value to a pixel."""


def _step_axis(steps: Sequence[float], x: _Place, edges: tuple[float, float, float]) -> list[str]:
    """Return the axis of the steps with its ticks; `edges` are left, right and bottom."""
    left, right, bottom = edges
    parts = []
    for step in steps:
        side = "end" if x(step) > right - 30 else "middle"
        word = short(step) + (" steps" if step == steps[-1] and step else "")
        parts.append(
            f'<path class="notch" d="M{x(step):.1f} {bottom}v5"/><text class="tick" '
            f'x="{x(step):.1f}" y="{bottom + 20}" text-anchor="{side}">{word}</text>'
        )
    return [*parts, f'<path class="axis" d="M{left} {bottom}H{right}"/>']


def _curve(line: Line, x: _Place, y: _Place) -> list[str]:
    points = [(x(s), y(v)) for s, v in _thinned(line)]
    path = "L".join(f"{px:.1f} {py:.1f}" for px, py in points)
    dots = []
    if len(points) == 1 or (line.marked and len(points) <= 60):
        dots = [_dot(round(px, 1), round(py, 1), line.style) for px, py in points]
    return [f'<path class="line {line.style}" d="M{path}"/>', *dots]


def _titles(line: Line, x: _Place, y: _Place, number: Callable[[float], str]) -> list[str]:
    """Return what a browser shows where the pointer rests on a point."""
    return [
        f'<circle class="hover" cx="{x(line.steps[i]):.1f}" cy="{y(line.values[i]):.1f}" r="7">'
        f"<title>{plain(line.label)} {number(line.values[i])} at step {line.steps[i]:,.0f}"
        "</title></circle>"
        for i in _spread(len(line.steps), TITLED)
    ]


def _best(
    best: tuple[float, float],
    lines: Sequence[Line],
    x: Callable[[float], float],
    y: Callable[[float], float],
    edges: tuple[float, float, float],
    number: Callable[[float], str],
) -> str:
    """Mark the best point, with its words under it or above, where fewer curves are in the way."""
    step, value = best
    left, right, bottom = edges
    words = f"best {number(value)} at step {step:,.0f}"
    reach, side = 7.0 * len(words), "end"
    begin = x(step) - reach
    if begin < left:
        begin, side = x(step), "start"
        if x(step) + reach > right:
            begin, side = x(step) - reach / 2, "middle"

    def in_the_way(down: float) -> int:
        middle = y(value) + down - 4
        return sum(
            abs(y(height) - middle) < 11
            for line in lines
            for place in range(12)
            if (height := _height(line, x, begin + reach * place / 11)) is not None
        )

    down = min((24.0, -14.0), key=in_the_way) if y(value) + 30 < bottom else -14.0
    return (
        f'<circle class="best" cx="{x(step):.1f}" cy="{y(value):.1f}" r="6.5"/>'
        f'<text class="bestword" x="{x(step):.1f}" y="{y(value) + down:.1f}" '
        f'text-anchor="{side}">{words}</text>'
    )


def _height(line: Line, x: Callable[[float], float], place: float) -> float | None:
    """Return the value of a line at a place in pixels; None before its start and after its end."""
    after = bisect.bisect_left(line.steps, place, key=x)
    if after == len(line.steps) or (after == 0 and x(line.steps[0]) > place):
        return None
    before = max(0, after - 1)
    first, second = x(line.steps[before]), x(line.steps[after])
    share = (place - first) / ((second - first) or 1.0)
    return line.values[before] + share * (line.values[after] - line.values[before])


def _ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from one not above `low` to one not below `high`."""
    if high <= low:
        low, high = low - (abs(low) or 1.0) / 2, high + (abs(high) or 1.0) / 2
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(f * power for f in (1, 2, 2.5, 5, 10) if f * power >= rough * 0.999)
    begin, end = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
    return [round(i * width, 12 - math.floor(math.log10(width))) for i in range(begin, end + 1)]


def _words(ticks: Sequence[float]) -> list[str]:
    """Return the numbers on an axis, all with as many decimals."""
    words = [short(tick) for tick in ticks]
    if any(not word.lstrip("-").replace(".", "").isdigit() for word in words):
        return words
    places = max(len(word.partition(".")[2]) for word in words)
    return [f"{tick:.{places}f}" if tick else "0" for tick in ticks]


def _thinned(line: Line) -> list[tuple[float, float]]:
    """Return the points to draw: of equal stretches of steps the smallest and the largest."""
    pairs = list(zip(line.steps, line.values, strict=True))
    if len(pairs) <= POINTS:
        return pairs
    first, span = line.steps[0], line.steps[-1] - line.steps[0]
    kept: list[tuple[float, float]] = []
    start = 0
    for stretch in range(1, POINTS // 2 + 1):
        stop = bisect.bisect_right(line.steps, first + span * stretch / (POINTS // 2))
        if part := pairs[start:stop]:
            kept += sorted({min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])})
        start = stop
    return kept


def _spread(count: int, most: int) -> list[int]:
    """Return up to `most` places among `count`, evenly spread, with both ends."""
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)]
