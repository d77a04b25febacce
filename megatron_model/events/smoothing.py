"""The running mean of a curve, which sets in slowly: charts and comparisons smooth alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

_SETTLING_POINTS = 10
"""How slowly smoothing sets in: the steep beginning of a run is not dragged along."""


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
