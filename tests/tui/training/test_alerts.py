"""Alerts: each is a pure function over a run's state."""

from __future__ import annotations

import math

from megatron_model.events.schema import Evaluated, Event, PhaseChanged, RunFailed
from megatron_model.events.state import RunState
from megatron_tui.training import alerts
from tests.tui.conftest import NOW
from tests.tui.plot.test_painter import state_of_the_recorded_run
from tests.tui.training.helpers import report, started


def fold(*events: Event) -> RunState:
    state = RunState()
    for event in (started(), *events):
        state.apply(event)
    return state


def losses(*values: float) -> RunState:
    return fold(*(report(10 * (i + 1), value) for i, value in enumerate(values)))


def evaluated(*values: float, train_falls: bool = True) -> RunState:
    events: list[Event] = []
    for i, value in enumerate(values, 1):
        events.append(report(100 * i, 2.0 - 0.1 * i if train_falls else 2.0 + 0.1 * i))
        events.append(
            Evaluated(step=100 * i, val_loss=value, bits_per_character=1.0, elapsed_seconds=1.0)
        )
    return fold(*events)


def test_a_healthy_run_has_no_alerts() -> None:
    assert alerts.alerts(RunState(), NOW) == []
    assert alerts.alerts(state_of_the_recorded_run(), NOW) == []
    falling = [4.0 * 0.99**i + 0.05 * (-1) ** i for i in range(300)]
    assert alerts.alerts(losses(*falling)) == []


def test_a_failure_says_why_and_what_to_do() -> None:
    state = fold(report(10), RunFailed(step=12, error="Out of [/x] memory. Try a smaller batch."))
    found = alerts.failed(state)
    assert found is not None
    assert (found.text, found.advice) == ("Out of [/x] memory.", "Try a smaller batch.")
    assert found.level == "error"


def test_a_loss_that_is_no_number_is_dated_to_where_it_began() -> None:
    found = alerts.not_a_number(losses(2.0, math.nan, 1.9, math.nan, math.inf))
    assert found is not None and found.step == 40
    assert alerts.not_a_number(losses(math.nan, 2.0)) is None


def test_spikes_are_found_once_each() -> None:
    values = [2.0 + 0.01 * (i % 5) for i in range(60)]
    values[20], values[40], values[41] = 4.0, 5.0, 4.5
    assert [alert.step for alert in alerts.spikes(losses(*values))] == [210, 410]


def test_a_jump_that_does_not_come_back_says_so() -> None:
    found = alerts.spikes(losses(*[2.0] * 30, *[4.0] * 3))
    assert len(found) == 1
    assert "has not come back" in found[0].text


def test_the_beginning_of_a_run_is_no_spike() -> None:
    assert alerts.spikes(losses(1.0, 5.0, 1.0, 9.0)) == []


def test_silence_is_a_stall_after_many_usual_gaps() -> None:
    state = losses(*[2.0] * 20)
    assert state.last_time + 19 < NOW
    assert alerts.stalled(state, state.last_time + 19) is None
    assert alerts.stalled(state, state.last_time + 21) is not None
    assert alerts.stalled(state, None) is None
    state.status = "paused"
    assert alerts.stalled(state, NOW + 1e6) is None


def test_compiling_may_take_its_time() -> None:
    state = fold(PhaseChanged(step=0, time=NOW, phase="compiling"))
    assert alerts.stalled(state, NOW + 200) is None
    assert alerts.stalled(state, NOW + 400) is not None


def test_an_evaluation_may_take_as_long_as_they_do() -> None:
    events: list[Event] = [report(10)]
    for i in range(3):
        events.append(PhaseChanged(step=10, time=NOW + 100 * i, phase="evaluating"))
        events.append(PhaseChanged(step=10, time=NOW + 100 * i + 90, phase="training"))
    events.append(PhaseChanged(step=10, time=NOW + 300, phase="evaluating"))
    state = fold(*events)
    assert alerts.stalled(state, NOW + 400) is None
    assert alerts.stalled(state, NOW + 300 + 5 * 90 + 1) is not None


def test_over_fitting_is_validation_that_rises_while_train_falls() -> None:
    found = alerts.over_fitting(evaluated(2.0, 1.8, 1.9, 2.0, 2.1))
    assert found is not None
    assert found.step == 200
    assert "1.800" in found.advice
    assert alerts.over_fitting(evaluated(2.0, 1.8, 1.9, 2.0)) is None
    assert alerts.over_fitting(evaluated(2.0, 1.8, 1.9, 1.85, 1.9)) is None
    assert alerts.over_fitting(evaluated(2.0, 1.8, 1.9, 2.0, 2.1, train_falls=False)) is None


def test_over_fitting_is_forgotten_at_a_new_best() -> None:
    assert alerts.over_fitting(evaluated(2.0, 1.8, 1.9, 2.0, 2.1, 1.7)) is None
    later = alerts.over_fitting(evaluated(2.0, 1.8, 1.9, 2.0, 2.1, 2.05))
    assert later is not None, "one better validation that is no best changes nothing"
