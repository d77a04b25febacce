"""Places along a chart."""

from __future__ import annotations

import math

import pytest

from megatron_tui.training.chart_view import _between


@pytest.mark.parametrize("value", [1e300, -1e300, 1.0, 0.0])
def test_a_report_after_no_time_at_all_leads_to_a_number(value: float) -> None:
    assert math.isfinite(_between(value, [5e-324], [32411.0]))


def test_beyond_the_last_report_the_line_goes_on() -> None:
    assert _between(30.0, [10.0, 20.0], [100.0, 200.0]) == 300.0
