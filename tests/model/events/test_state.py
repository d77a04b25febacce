"""The fold over a run's events: what every screen and `runs` show."""

from __future__ import annotations

import copy
import math

import pytest

from megatron_model.events import state as run_state
from megatron_model.events.schema import (
    CheckpointSaved,
    DeviceSampled,
    Evaluated,
    Event,
    MetricsReported,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleGenerated,
    StepCompleted,
    WorkProgress,
    decode_event,
    encode_event,
)
from megatron_model.events.state import RunState, Series
from megatron_model.run.folder import RunFolder


def started(
    step: int = 0, steps: int = 100, elapsed: float = 0.0, budget: float = 0.0
) -> RunStarted:
    return RunStarted(
        step=step,
        name="tale",
        corpus="tale.txt",
        characters=1000,
        vocabulary_size=30,
        parameters=5000,
        steps=steps,
        device="cpu",
        max_seconds=budget,
        elapsed_seconds=elapsed,
    )


def report(step: int, loss: float = 1.0, elapsed: float | None = None) -> MetricsReported:
    return MetricsReported(
        step=step,
        train_loss=loss,
        learning_rate=1e-3,
        gradient_norm=0.5,
        tokens_per_second=100.0,
        elapsed_seconds=float(step) if elapsed is None else elapsed,
    )


def evaluated(step: int, loss: float) -> Evaluated:
    return Evaluated(
        step=step, val_loss=loss, bits_per_character=loss / math.log(2), elapsed_seconds=float(step)
    )


def fold(*happened: Event) -> RunState:
    state = RunState()
    for event in happened:
        state.apply(event)
    return state


def test_a_run_of_which_nothing_is_known_is_new() -> None:
    state = RunState()
    assert (state.status, state.step, state.progress) == ("new", 0, 0.0)
    assert state.remaining_seconds is None
    assert state.best_val_loss is None
    assert not state.running


@pytest.mark.parametrize(
    ("happened", "status", "running"),
    [
        ([], "running", True),
        ([RunPaused(step=1)], "paused", True),
        ([RunPaused(step=1), RunResumed(step=1)], "running", True),
        ([RunFinished(step=9, reason="completed", elapsed_seconds=1.0)], "finished", False),
        ([RunFinished(step=9, reason="budget", elapsed_seconds=1.0)], "finished", False),
        ([RunFinished(step=9, reason="stopped", elapsed_seconds=1.0)], "stopped", False),
        ([RunFailed(step=9, error="no room")], "failed", False),
        ([RunFailed(step=9, error="no room"), started(8)], "running", True),
        ([RunFinished(step=9, reason="stopped", elapsed_seconds=1.0), started(9)], "running", True),
    ],
)
def test_the_status_is_what_happened_last(
    happened: list[Event], status: str, running: bool
) -> None:
    state = fold(started(), *happened)
    assert (state.status, state.running) == (status, running)


def test_a_failure_says_why_until_the_run_goes_on() -> None:
    state = fold(started(), RunFailed(step=3, error="no room"))
    assert state.error == "no room"
    assert state.log[-1].level == "error"
    state.apply(started(3))
    assert state.error is None


def test_an_end_says_how() -> None:
    state = fold(started(), report(5), RunFinished(step=9, reason="budget", elapsed_seconds=7.0))
    assert (state.finish_reason, state.step, state.elapsed_seconds) == ("budget", 9, 7.0)
    assert state.phase is None
    assert "step 9" in state.log[-1].text


def test_the_curves_are_what_was_reported() -> None:
    state = fold(started(), report(10, 2.0), evaluated(10, 1.9), report(20, 1.5))
    assert (state.train_loss.steps, state.train_loss.values) == ([10, 20], [2.0, 1.5])
    assert (state.val_loss.steps, state.val_loss.values) == ([10], [1.9])
    assert state.train_loss.seconds == [10.0, 20.0]
    assert state.gradient_norm.values == [0.5, 0.5]
    assert state.speed.values == [100.0, 100.0]
    assert (state.step, state.elapsed_seconds) == (20, 20.0)


def test_the_phase_and_its_progress_are_followed() -> None:
    state = fold(
        started(), PhaseChanged(step=5, phase="evaluating"), WorkProgress(step=5, share=0.4)
    )
    assert (state.phase, state.phase_progress) == ("evaluating", 0.4)
    state.apply(PhaseChanged(step=5, phase="training"))
    assert (state.phase, state.phase_progress) == ("training", None)


def test_memory_is_followed() -> None:
    state = fold(
        started(),
        StepCompleted(step=4, elapsed_seconds=2.0),
        DeviceSampled(step=4, kind="ram", name="this process", used=7, peak=8, total=9),
    )
    assert (state.memory.steps, state.memory.seconds, state.memory.values) == ([4], [2.0], [7.0])
    assert state.device is not None
    assert state.device.peak == 8


# The best


def test_the_best_is_the_lowest_validation_loss() -> None:
    state = fold(started(), evaluated(10, 2.0), evaluated(20, 1.5), evaluated(30, 1.7))
    assert (state.best_val_loss, state.best_step) == (1.5, 20)


def test_the_best_is_forgotten_when_a_resume_goes_back_before_it() -> None:
    state = fold(started(), evaluated(10, 2.0), evaluated(20, 1.5), started(12))
    assert (state.best_val_loss, state.best_step) == (2.0, 10)
    state.apply(started(5))
    assert (state.best_val_loss, state.best_step) == (None, None)


def test_a_second_validation_of_a_step_takes_the_place_of_the_first() -> None:
    state = fold(started(), evaluated(10, 2.0), evaluated(10, 1.9))
    assert (state.val_loss.steps, state.val_loss.values) == ([10], [1.9])


# Resuming


def test_a_resume_rewinds_everything_to_its_step() -> None:
    state = fold(
        started(),
        report(10),
        SampleGenerated(step=10, prompt="", text="early"),
        report(20),
        evaluated(20, 1.0),
        SampleGenerated(step=20, prompt="", text="late"),
        report(30),
        started(20, elapsed=21.0),
    )
    assert state.train_loss.steps == [10, 20]
    assert state.val_loss.steps == [20]
    assert (state.step, state.elapsed_seconds) == (20, 21.0)
    assert [sample.text for sample in state.samples] == ["early", "late"]
    state.apply(started(15))
    assert state.train_loss.steps == [10]
    assert [sample.text for sample in state.samples] == ["early"]


def test_a_run_that_begins_anew_forgets_everything() -> None:
    state = fold(started(), report(10), evaluated(10, 1.0), started(0))
    assert (len(state.train_loss), len(state.val_loss), state.best_val_loss) == (0, 0, None)


# Time


def test_the_time_left_follows_from_the_pace() -> None:
    state = fold(started(steps=100), report(20, elapsed=10.0))
    assert state.remaining_seconds == pytest.approx(40.0)
    assert state.progress == pytest.approx(0.2)


def test_the_time_left_after_a_resume_follows_from_the_new_pace() -> None:
    # 50 steps took 500 seconds on a slow machine; here 10 steps take 1.
    state = fold(started(steps=100), report(50, elapsed=500.0), started(50, elapsed=500.0))
    assert state.remaining_seconds is None
    state.apply(StepCompleted(step=60, elapsed_seconds=501.0))
    assert state.remaining_seconds == pytest.approx(4.0)


def test_a_budget_decides_what_is_left_and_done() -> None:
    state = fold(started(steps=10, budget=60.0), report(500, elapsed=15.0))
    assert state.remaining_seconds == pytest.approx(45.0)
    assert state.progress == pytest.approx(0.25)
    state.apply(report(900, elapsed=70.0))
    assert (state.remaining_seconds, state.progress) == (0.0, 1.0)


def test_a_run_that_ended_has_no_time_left() -> None:
    state = fold(
        started(), report(10), RunFinished(step=10, reason="stopped", elapsed_seconds=10.0)
    )
    assert state.remaining_seconds is None


# Long runs


def test_a_long_curve_is_thinned_and_keeps_its_spikes() -> None:
    spikes = {12_345: 99.0, 54_321: -7.0, 99_998: 50.0}
    curve = Series()
    for step in range(1, 100_001):
        curve.append(step, step / 10, spikes.get(step, 1.0 + 1 / step))
        assert len(curve) <= run_state.SERIES_LIMIT
    kept = dict(zip(curve.steps, curve.values, strict=True))
    assert spikes.items() <= kept.items()
    assert curve.steps == sorted(set(curve.steps))
    assert curve.seconds == [step / 10 for step in curve.steps]
    assert curve.steps[-60:] == list(range(99_941, 100_001))
    assert curve.steps[0] < 10
    gaps = [b - a for a, b in zip(curve.steps, curve.steps[1:], strict=False)]
    assert max(gaps) < 200, "no part of the curve may be lost"


def test_a_value_that_is_no_number_does_not_hide_its_neighbours() -> None:
    curve = Series()
    for step in range(20_000):
        curve.append(step, 0.0, math.nan if step % 3 else float(step))
    assert sum(map(math.isfinite, curve.values)) > 1000


def test_a_long_run_takes_bounded_memory() -> None:
    state = fold(started(steps=10**6))
    for step in range(1, 3000):
        state.apply(SampleGenerated(step=step, prompt="", text="x"))
        state.apply(CheckpointSaved(step=step, path="p"))
    assert len(state.samples) == run_state.SAMPLES_LIMIT
    assert len(state.log) == run_state.LOG_LIMIT
    assert state.samples[-1].step == 2999
    assert state.last_checkpoint_step == 2999


# Live and recorded are the same


def test_a_recorded_run_folds_as_the_live_one(finished_run: RunFolder) -> None:
    live = fold(*finished_run.read_events()[0])
    again = fold(
        *[
            event
            for line in finished_run.events_path.read_bytes().splitlines()
            if (event := decode_event(line)) is not None
        ]
    )
    assert live == again == finished_run.state()
    assert (live.status, live.step, live.best_step) == ("finished", 18, live.best_step)
    assert live.train_loss.steps == list(range(2, 19, 2))
    assert live.val_loss.steps == [6, 12, 18]


def test_folding_changes_no_event(finished_run: RunFolder) -> None:
    happened = finished_run.read_events()[0]
    before = [encode_event(event) for event in copy.deepcopy(happened)]
    fold(*happened)
    assert [encode_event(event) for event in happened] == before


@pytest.mark.parametrize(
    ("before", "words"),
    [
        ([started(0)], "nothing was saved, so it can only start over"),
        (
            [started(0), CheckpointSaved(step=30, path="c", val_loss=None)],
            "it can be resumed from step 30",
        ),
        ([started(0), CheckpointSaved(step=50, path="c", val_loss=None)], "it can be resumed"),
        ([started(20)], "it can be resumed from step 20"),
        (
            [started(0), CheckpointSaved(step=30, path="c", val_loss=None), started(10)],
            "it can be resumed from step 10",
        ),
    ],
)
def test_a_run_that_was_stopped_says_from_where_it_can_go_on(
    before: list[Event], words: str
) -> None:
    state = fold(*before, RunFinished(step=50, reason="stopped", elapsed_seconds=9.0))
    assert state.log[-1].text == f"stopped at step 50; {words}"
