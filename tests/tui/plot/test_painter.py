"""Charts: any data is drawn, within the frame, and what rests is not repainted."""

from __future__ import annotations

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_model.events.schema import Evaluated, MetricsReported
from megatron_model.events.state import RunState
from megatron_tui.plot.chart import changed_span
from megatron_tui.plot.overlays import Mark, Reference
from megatron_tui.plot.painter import (
    Curve,
    Painter,
    Plot,
    buckets,
    fit_limits,
    growing_limit,
    ticks,
)
from megatron_tui.training import readouts as figures
from megatron_tui.training.chart_view import ChartView
from megatron_tui.training.curves import METRICS, loss_plot, metric_plot, smooth
from megatron_tui.training.other_runs import OtherRun
from tests.tui.conftest import recorded_events

VALUES = st.floats(allow_nan=True, allow_infinity=True)


def draw(ys: list[float], *, log_y: bool = False, width: int = 60, height: int = 12) -> list[str]:
    plot = Plot((Curve(range(len(ys)), ys, "chart-train"),), log_y=log_y)
    return ["".join(text for text, _ in row) for row in Painter().draw(plot, width, height)]


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, max_size=40), st.booleans())
def test_any_values_are_drawn_within_the_frame(ys: list[float], log_y: bool) -> None:
    rows = draw(ys, log_y=log_y)
    assert len(rows) == 12
    assert all(len(row) <= 60 for row in rows)


@pytest.mark.parametrize("ys", [[1.0], [2.0] * 50, [1e300, -1e300, 0.0], [1e-320, 1e-310]])
def test_degenerate_series_are_drawn(ys: list[float]) -> None:
    assert len(draw(ys)) == 12


def test_a_spike_far_outside_fixed_limits_costs_nothing() -> None:
    began = time.monotonic()
    plot = Plot((Curve([0, 1, 2, 3], [0.5, 1e5, 0.5, -1e9], "x"),), y_limits=(0.0, 1.0))
    assert len(Painter().draw(plot, 60, 12)) == 12
    assert time.monotonic() - began < 5


def test_colours_are_names_of_theme_variables() -> None:
    plot = Plot(
        (Curve([0, 9], [1, 2], "chart-raw"), Curve([0, 9], [3, 4], "chart-train")),
        marks=(Mark(5, 2, "chart-validation"),),
    )
    found = {colour for row in Painter().draw(plot, 60, 12) for _, colour in row}
    assert found == {"chart-axis", "chart-raw", "chart-train", "chart-validation"}


def test_buckets_keep_the_extremes_of_every_column() -> None:
    ys = [1.0] * 1000
    ys[500], ys[501] = 9.0, -3.0
    points = buckets(range(1000), ys, (0, 1000), 50)
    assert (500, 9.0) in points
    assert (501, -3.0) in points
    assert len(points) <= 100


def test_finished_columns_do_not_change_when_the_curve_grows() -> None:
    ys = [math.sin(x / 7) for x in range(900)]
    before = buckets(range(500), ys[:500], (0, 1000), 50)
    after = buckets(range(900), ys, (0, 1000), 50)
    assert after[: len(before) - 2] == before[:-2]


def test_limits_rest_while_values_fill_them() -> None:
    limits = fit_limits([1.0, 4.2])
    assert fit_limits([1.1, 4.0], limits) == limits
    assert fit_limits([1.1, 1.2], limits) != limits
    assert fit_limits([1.0, 9.0], limits)[1] >= 9.0


def test_the_step_axis_doubles_until_it_is_whole() -> None:
    assert growing_limit(900, 1000) == 1000
    assert growing_limit(400, 1000) == 500
    assert growing_limit(1, 1000) >= 1
    assert growing_limit(1000, 1000) == 1000


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 9))
def test_ticks_are_inside_and_few(low: float, span: float, wanted: int) -> None:
    limits = (low, low + span)
    found = ticks(limits, wanted)
    assert all(limits[0] - span * 1e-6 <= tick <= limits[1] + span * 1e-6 for tick in found)
    assert len(found) <= 2 * wanted + 2


def test_log_ticks_are_round_values() -> None:
    values = [round(10**tick, 6) for tick in ticks((math.log10(1.2), math.log10(5)), 4, log=True)]
    assert values
    assert set(values) <= {1.5, 2.0, 3.0, 4.0, 5.0}


def test_smoothing_is_a_mean_that_skips_what_is_no_number() -> None:
    assert smooth([2.0] * 20, 0.9) == pytest.approx([2.0] * 20)
    smoothed = smooth([1.0, math.nan, 3.0], 0.9)
    assert math.isnan(smoothed[1])
    assert 1.0 < smoothed[2] < 3.0
    assert smooth([1.0, 5.0], 0.0) == [1.0, 5.0]


def test_only_different_cells_are_repainted() -> None:
    before = [("abc  ", "x"), ("def", "y")]
    assert changed_span(before, [("abc  ", "x"), ("dXf", "y")]) == (6, 7)
    assert changed_span(before, list(before)) is None
    # The colour of a blank cannot be seen.
    assert changed_span([("a ", "x")], [("a", "x"), (" ", "y")]) is None


def state_of_the_recorded_run() -> RunState:
    state = RunState()
    for event in recorded_events():
        state.apply(event)
    return state


def test_the_loss_plot_shows_raw_smooth_validation_and_best() -> None:
    state = state_of_the_recorded_run()
    plot = loss_plot(state, ChartView())
    assert [curve.colour for curve in plot.curves] == [
        "chart-raw",
        "chart-train",
        "chart-validation",
    ]
    assert plot.marks[0].x == state.best_step
    assert plot.x_limits == (0.0, 437.0)
    raw = loss_plot(state, ChartView().smoother(0))
    assert [curve.colour for curve in raw.curves] == ["chart-train", "chart-validation"]
    by_time = loss_plot(state, ChartView(x_axis="time"))
    assert by_time.x_limits == (0.0, state.elapsed_seconds)


def test_an_empty_state_has_empty_plots() -> None:
    assert loss_plot(RunState(), ChartView()).empty
    assert all(metric_plot(RunState(), ChartView(), metric).empty for metric in METRICS)


@pytest.mark.parametrize("y", [0.3, 1.1, 1.266, 2.5, 3.33, 4.9])
def test_a_mark_is_in_the_cell_of_the_point_it_marks(y: float) -> None:
    limits = {"x_limits": (0.0, 10.0), "y_limits": (0.0, 5.0)}
    curve = Curve([4.0], [y], "chart-validation")
    rows = Painter().draw(Plot((curve,), **limits), 60, 15)  # type: ignore[arg-type]
    lone = ["".join(text for text, _ in row) for row in rows]
    rows = Painter().draw(Plot((curve,), (Mark(4.0, y, "x"),), **limits), 60, 15)  # type: ignore[arg-type]
    marked = ["".join(text for text, _ in row) for row in rows]
    dots = [
        (i, j) for i, row in enumerate(lone) for j, c in enumerate(row) if "\u2800" < c < "\u2900"
    ]
    assert dots == [(i, row.index("◆")) for i, row in enumerate(marked) if "◆" in row]


# Zoomed windows, shared cells, labels


def drawn(plot: Plot, width: int = 60, height: int = 12) -> list[str]:
    rows = Painter().draw(plot, width, height)
    return ["".join(text for text, _ in row) for row in rows]


def dots(rows: list[str]) -> int:
    """Return how many cells hold braille."""
    return sum(0x2800 < ord(character) < 0x2900 for row in rows for character in row)


def test_a_line_whose_points_lie_outside_the_window_crosses_it() -> None:
    curve = Curve([0.0, 100.0], [1.0, 3.0], "chart-train")
    rows = drawn(Plot(curves=(curve,), x_limits=(40.0, 60.0)))
    assert dots(rows) >= 40
    assert buckets([0.0, 100.0], [1.0, 3.0], (40.0, 60.0), 10) == [(40.0, 1.8), (60.0, 2.2)]
    # One neighbour on each side of what is inside; a gap stays a gap.
    xs, ys = [0.0, 50.0, 100.0, 150.0], [0.0, 5.0, 10.0, 99.0]
    assert buckets(xs, ys, (40.0, 60.0), 10) == [(40.0, 4.0), (50.0, 5.0), (60.0, 6.0)]
    assert buckets(xs, [0.0, math.nan, 10.0, 9.0], (60.0, 70.0), 10) == []
    assert buckets(xs, ys, (151.0, 160.0), 10) == buckets([], [], (0.0, 1.0), 10) == []


def test_a_line_from_below_to_above_the_chart_crosses_it() -> None:
    curve = Curve([0.0, 1.0, 2.0], [-100.0, 100.0, -100.0], "chart-train")
    rows = drawn(Plot(curves=(curve,), y_limits=(-1.0, 1.0)))
    assert dots(rows) >= 10
    middle = [row.strip("│┤ ") for row in rows[:10]]
    assert all(middle), "it is seen in every row"


@given(
    st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=2, max_size=30),
    st.floats(0, 20), st.floats(0.01, 10), st.booleans(),
)  # fmt: skip
@settings(max_examples=50, deadline=None)
def test_no_window_breaks_a_chart(ys: list[float], low: float, span: float, fixed: bool) -> None:
    plot = Plot(
        curves=(Curve(list(map(float, range(len(ys)))), ys, "chart-train"),),
        x_limits=(low, low + span),
        y_limits=(-10.0, 10.0) if fixed else None,
    )
    assert len(drawn(plot, 40, 8)) == 8


def test_curves_that_share_cells_show_the_dots_of_both() -> None:
    upper = Curve([0.0, 10.0], [1.15, 1.15], "chart-train")
    lower = Curve([0.0, 10.0], [1.05, 1.05], "chart-validation")
    limits = {"x_limits": (0.0, 10.0), "y_limits": (0.0, 2.0)}
    alone = [drawn(Plot(curves=(curve,), **limits)) for curve in (upper, lower)]  # type: ignore[arg-type]
    both = drawn(Plot(curves=(upper, lower), **limits))  # type: ignore[arg-type]
    shared = 0
    for one, other, joined in zip("".join(alone[0]), "".join(alone[1]), "".join(both), strict=True):
        if 0x2800 < ord(one) < 0x2900 and 0x2800 < ord(other) < 0x2900:
            shared += 1
            assert ord(joined) == ord(one) | ord(other)
    assert shared > 20
    inks = {ink for row in Painter().draw(Plot(curves=(upper, lower), **limits), 60, 12)  # type: ignore[arg-type]
            for text, ink in row if set(text) & set(map(chr, range(0x2801, 0x2900)))}  # fmt: skip
    assert inks == {"chart-validation"}, "the newer colour wins"


def test_letters_at_one_place_stand_beside_each_other() -> None:
    curve = Curve([0.0, 10.0], [1.0, 2.0], "chart-train")
    marks = (
        *(Mark(10.0, 2.0, "chart-train", sign) for sign in "ABCD"), Mark(10.0, 2.0, "chart-train"),
    )  # fmt: skip
    text = "\n".join(drawn(Plot(curves=(curve,), marks=marks)))
    assert all(text.count(sign) == 1 for sign in "ABCD◆")


def test_a_baseline_keeps_its_label_where_a_curve_ends() -> None:
    curves = tuple(Curve([0.0, 10.0], [y, 3.0], "chart-train") for y in (1.0, 3.0, 5.0))
    references = (
        Reference(3.0, "ln V 3.00"),
        Reference(9.0, "far 9.00"),
        Reference(-9.0, "low -9"),
    )
    marks = (Mark(10.0, 3.0, "chart-train", "A"),)
    rows = drawn(Plot(curves=curves, references=references, marks=marks))
    text = "\n".join(rows)
    assert all(label in text for label in ("ln V 3.00", "far 9.00", "low -9", "A"))


def test_the_legend_names_the_parent_at_every_width() -> None:
    state = state_of_the_recorded_run()
    others = [OtherRun("parent-of-the-fork", state, "", "chart-raw", 200)]
    others += [OtherRun(f"a-long-name-{sign}", state, sign, f"c{sign}") for sign in "ABCD"]
    for width in (46, 54, 60, 80, 120, 200):
        legend = figures.loss_legend(state, ChartView(), width, others).plain
        assert " pa" in legend, (width, legend)
        assert all(f" {sign}" in legend for sign in "ABCD"), (width, legend)


def test_a_run_compared_with_crosses_a_window_between_its_evaluations() -> None:
    state = state_of_the_recorded_run()
    own = RunState()
    for event in recorded_events():
        if not isinstance(event, (Evaluated, MetricsReported)):
            own.apply(event)
    view = ChartView(zoom=6, centre=250)  # the other run was evaluated at 200 and at 300
    plot = loss_plot(own, view, [OtherRun("other", state, "A", "chart-compare-1")])
    rows = Painter().draw(plot, 60, 12)
    inks = {ink for row in rows for text, ink in row if text.strip()}
    assert "chart-compare-1" in inks
    assert dots(["".join(text for text, _ in row) for row in rows]) >= 40
    assert any("A" in text for row in rows for text, _ in row)
