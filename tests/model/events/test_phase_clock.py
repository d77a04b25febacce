"""The pace of a run and what interrupts it: what the time that is left rests on."""

from __future__ import annotations

import pytest

from megatron_model.events.phase_clock import PhaseClock, occasions


def test_the_pace_leaves_out_what_is_no_step() -> None:
    clock = PhaseClock()
    clock.start(0, 0.0)
    clock.turn("compiling", 100.0)
    clock.turn("training", 130.0)
    assert clock.pace(0, 30.0) is None
    clock.report(10, 35.0)
    assert clock.pace(10, 35.0) == pytest.approx(0.5)
    clock.turn("evaluating", 135.0)
    clock.turn("training", 155.0)
    clock.report(20, 60.0)
    assert clock.pace(20, 60.0) == pytest.approx(0.5)
    assert clock.cost("evaluating", "sampling") == 20.0


def test_a_pause_in_the_middle_of_an_evaluation_costs_nothing() -> None:
    clock = PhaseClock()
    clock.start(0, 0.0)
    clock.turn("evaluating", 10.0)
    clock.pause(12.0)
    clock.resume(500.0)
    assert clock.phase == "evaluating"
    clock.turn("training", 503.0)
    assert clock.cost("evaluating") == 5.0


def test_the_pace_follows_the_machine() -> None:
    clock = PhaseClock()
    clock.start(0, 0.0)
    for i in range(1, 21):
        clock.report(10 * i, 10.0 * i)
    for i in range(1, 9):
        clock.report(200 + 10 * i, 200 + 40.0 * i)
    assert clock.pace(280, 520.0) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("every", "step", "steps", "left"),
    [(0, 5, 10, 0), (5, 0, 10, 2), (5, 5, 10, 1), (5, 10, 10, 0), (4, 9, 10, 1), (4, 0, 10, 3)],
)
def test_occasions_that_are_left(every: int, step: int, steps: int, left: int) -> None:
    assert occasions(every, step, steps) == left
