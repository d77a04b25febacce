"""A curve in one line of a few cells: eight heights of blocks, its least value to its largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

BLOCKS = "▁▂▃▄▅▆▇█"
LARGEST = 1e100


def resampled(values: Sequence[float], count: int) -> tuple[float, ...]:
    """Return at most `count` values: the means of as many equal parts; damage is left out."""
    good = [value for value in values if math.isfinite(value) and abs(value) < LARGEST]
    if len(good) <= count:
        return tuple(good)
    ends = [place * len(good) // count for place in range(count + 1)]
    return tuple(
        math.fsum(good[start:end]) / (end - start)
        for start, end in zip(ends, ends[1:], strict=False)
    )


def spark(values: Sequence[float], width: int) -> str:
    """Return the curve; empty where there are not two points to join."""
    points = resampled(values, width)
    if len(points) < 2:
        return ""
    low, high = min(points), max(points)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((point - low) * scale)] for point in points)
