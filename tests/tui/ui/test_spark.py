"""A curve in one line: its heights, its width, and what is no number."""

from __future__ import annotations

import math

import pytest

from megatron_tui.ui.spark import resampled, spark


@pytest.mark.parametrize(
    ("values", "width", "expected"),
    [
        ([3.0, 2.0, 1.0], 8, "█▅▁"),
        ([1.0, 1.0], 8, "▁▁"),
        ([1.0], 8, ""),
        ([], 8, ""),
        ([math.nan, 2.0, 1.0, math.inf, 1e300], 8, "█▁"),
        ([8.0, 6.0, 4.0, 2.0], 2, "█▁"),
    ],
)
def test_a_curve_is_drawn(values: list[float], width: int, expected: str) -> None:
    assert spark(values, width) == expected


def test_a_long_curve_is_the_means_of_its_parts() -> None:
    assert resampled([float(n) for n in range(100)], 4) == (12.0, 37.0, 62.0, 87.0)
