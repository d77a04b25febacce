"""The training loop: what it says, in which order, and that an interruption changes nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import (
    Evaluated,
    Event,
    MetricsReported,
    PhaseChanged,
    SampleGenerated,
    StepCompleted,
    WorkProgress,
)
from megatron_model.training.state import TrainingState
from megatron_model.training.trainer import FIRST_SAMPLE_SECONDS, Trainer
from megatron_model.util.errors import RunFailedError
from tests.model.helpers import history, kinds, make_trainer, tiny_config

Saved = tuple[dict[str, torch.Tensor], TrainingState]


def saved(trainer: Trainer) -> Saved:
    """Return a copy of everything a checkpoint would hold."""
    return copy.deepcopy((trainer.model.state_dict(), trainer.state()))


def resumed(config: RunConfig, state: Saved) -> Trainer:
    trainer = make_trainer(config)
    trainer.load(*copy.deepcopy(state))
    return trainer


class Clock:
    """A clock that goes on by a fixed time whenever it is read, or by hand."""

    def __init__(self, tick: float = 0.0) -> None:
        self.now, self.tick = 100.0, tick

    def __call__(self) -> float:
        self.now += self.tick
        return self.now


def test_what_happens_in_a_run_happens_in_order() -> None:
    config = tiny_config(
        {"training.steps": 5, "training.log_every": 2, "training.evaluate_every": 2}
    )
    trainer = make_trainer(config)
    seen = [event for event in trainer.run() if not isinstance(event, WorkProgress)]
    evaluation = ["PhaseChanged", "Evaluated", "PhaseChanged", "SampleGenerated"]
    interval = ["StepCompleted", "MetricsReported", *evaluation, "PhaseChanged", "StepCompleted"]
    assert kinds(seen) == ["PhaseChanged", *interval, *interval, *evaluation, "StepCompleted"]
    assert [e.step for e in seen if isinstance(e, StepCompleted)] == [1, 2, 3, 4, 5]
    assert [e.step for e in seen if isinstance(e, MetricsReported)] == [2, 4]
    phases = [e.phase for e in seen if kinds([e]) == ["PhaseChanged"]]  # type: ignore[attr-defined]
    assert phases == ["training", *["evaluating", "sampling", "training"] * 2, *phases[-2:]]
    assert phases[-2:] == ["evaluating", "sampling"]


@pytest.mark.parametrize(("width", "heads"), [(21, 3), (3, 3)])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_heads_of_an_odd_width_learn(width: int, heads: int, optimizer: str) -> None:
    shape = {"model.architecture": "modern", "model.embed_dim": width, "model.heads": heads}
    config = tiny_config({**shape, "training.optimizer": optimizer, "training.steps": 30})
    losses = [e.val_loss for e in make_trainer(config).run() if isinstance(e, Evaluated)]
    assert losses[-1] < losses[0]


def test_a_report_is_the_mean_of_its_interval() -> None:
    each = {"training.steps": 4, "training.log_every": 1}
    losses = [
        e.train_loss
        for e in make_trainer(tiny_config(each)).run()
        if isinstance(e, MetricsReported)
    ]
    pairs = [
        e.train_loss
        for e in make_trainer(tiny_config({**each, "training.log_every": 2})).run()
        if isinstance(e, MetricsReported)
    ]
    assert pairs == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2], rel=1e-6)


def test_the_seed_decides_everything() -> None:
    config = tiny_config({"training.steps": 6, "model.dropout": 0.3})
    first = history(list(make_trainer(config).run()))
    torch.rand(5)  # what else the process does with the global generator is of no concern
    again = history(list(make_trainer(config).run()))
    other = history(list(make_trainer(with_settings(config, {"training.seed": 8})).run()))
    assert first == again
    assert not set(first.values()) & set(other.values())


def test_reporting_and_validating_change_nothing_in_the_learning() -> None:
    config = tiny_config({"training.steps": 6})
    busy = {"training.log_every": 1, "training.evaluate_every": 1, "training.sample_length": 9}
    quiet, watched = make_trainer(config), make_trainer(with_settings(config, busy))
    for trainer in (quiet, watched):
        list(trainer.run())
    for name, weight in quiet.model.state_dict().items():
        assert torch.equal(weight, watched.model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("optimizer", "architecture", "dropout"),
    [("adamw", "classic", 0.0), ("muon", "modern", 0.0), ("adamw", "modern", 0.3)],
)
def test_a_resume_at_any_step_changes_no_loss(
    optimizer: str, architecture: str, dropout: float
) -> None:
    config = tiny_config(
        {
            "training.optimizer": optimizer,
            "model.architecture": architecture,
            "model.dropout": dropout,
            "training.steps": 7,
            "training.log_every": 3,
            "training.evaluate_every": 4,
            "training.warmup_steps": 2,
            "training.gradient_clip": 0.5,
        }
    )
    trainer = make_trainer(config)
    states: dict[int, Saved] = {}
    unbroken: list[Event] = []
    for event in trainer.run():
        unbroken.append(event)
        if isinstance(event, StepCompleted):
            states[event.step] = saved(trainer)
    wanted = history(unbroken)
    assert list(states) == [1, 2, 3, 4, 5, 6, 7]
    for step, state in states.items():
        after = resumed(config, state)
        got = history(list(after.run()))
        assert got == {key: loss for key, loss in wanted.items() if key[1] > step}, step
        for name, weight in trainer.model.state_dict().items():
            assert torch.equal(weight, after.model.state_dict()[name]), (step, name)


def test_a_resume_knows_the_best_and_the_time() -> None:
    config = tiny_config({"training.steps": 8, "training.evaluate_every": 4})
    trainer = make_trainer(config, clock=Clock(0.25))
    for event in trainer.run():
        if isinstance(event, StepCompleted) and event.step == 5:
            break
    after = make_trainer(config, clock=Clock())
    after.load(*saved(trainer))
    assert after.best_val_loss == trainer.best_val_loss < math.inf
    assert after.elapsed_seconds == pytest.approx(trainer.elapsed_seconds, abs=0.6)
    assert after.elapsed_seconds > 5


def test_an_interrupted_validation_is_made_up_for() -> None:
    config = tiny_config({"training.steps": 8, "training.evaluate_every": 4})
    unbroken = history(list(make_trainer(config).run()))
    trainer = make_trainer(config)
    for event in trainer.run():
        if isinstance(event, WorkProgress):
            assert trainer.step == 4
            break
    assert trainer.val_loss is None
    after = resumed(config, saved(trainer))
    seen = list(after.run())
    assert history(seen) == {
        key: loss for key, loss in unbroken.items() if key[1] > 4 or key == ("validation", 4)
    }
    # And there is a moment at which it can be saved with the weights it belongs to.
    made_up = next(i for i, event in enumerate(seen) if isinstance(event, Evaluated))
    whole = next(event for event in seen[made_up:] if isinstance(event, StepCompleted))
    assert whole.step == 4


def budget_trainer(
    clock: Clock, seconds: float, *, begun: float | None = None, **changes: object
) -> Trainer:
    config = tiny_config(
        {
            "training.max_seconds": seconds,
            "training.schedule": "linear",
            "training.cooldown": 1.0,
            "training.warmup_steps": 0,
            "training.steps": 3,
            "training.log_every": 1,
            "training.evaluate_every": 100,
            "training.sample_length": 0,
            **changes,
        }
    )
    return make_trainer(config, clock=clock, begun=begun)


def budget_run(
    clock: Clock, per_step: float, seconds: float, *, begun: float | None = None, **changes: object
) -> list[Event]:
    """Train on a time budget where a step takes `per_step` seconds and nothing else takes any."""
    return stepped(budget_trainer(clock, seconds, begun=begun, **changes), clock, per_step)


def stepped(trainer: Trainer, clock: Clock, per_step: float) -> list[Event]:
    seen = []
    for event in trainer.run():
        seen.append(event)
        if isinstance(event, StepCompleted):
            clock.now += per_step
    return seen


def test_a_time_budget_ends_the_run_whatever_the_steps() -> None:
    seen = budget_run(Clock(), per_step=1.0, seconds=10.0)
    steps = [event.step for event in seen if isinstance(event, StepCompleted)]
    assert steps[-1] in (10, 11)  # and not after training.steps
    assert [e.step for e in seen if isinstance(e, Evaluated)] == [steps[-1]]


def last_step(seen: list[Event]) -> int:
    return max(event.step for event in seen if isinstance(event, StepCompleted))


def test_a_time_budget_counts_from_when_the_run_was_asked_for() -> None:
    clock = Clock()
    seen = budget_run(clock, per_step=1.0, seconds=10.0, begun=clock.now - 6.0)
    assert last_step(seen) in (4, 5)
    assert seen[-1].elapsed_seconds == pytest.approx(last_step(seen) - 1 + 6.0)


def test_of_a_time_budget_there_is_time_left_to_write_and_to_save() -> None:
    trainer = budget_trainer(clock := Clock(), 10.0)
    trainer.saving_seconds = 4.0
    assert last_step(stepped(trainer, clock, 1.0)) in (6, 7)
    plain = last_step(budget_run(Clock(), per_step=0.02, seconds=2.0))
    with_sample = last_step(
        budget_run(Clock(), per_step=0.02, seconds=2.0, **{"training.sample_length": 5})
    )
    assert with_sample == plain - round(FIRST_SAMPLE_SECONDS / 0.02)


def test_the_sample_at_the_end_of_a_time_budget_ends_with_it() -> None:
    long = {"training.sample_length": 1000}
    seen = budget_run(Clock(tick=0.01), per_step=0.5, seconds=3.0, **long)
    (last,) = [event.text for event in seen if isinstance(event, SampleGenerated)]
    assert 0 < len(last) < 100
    without = make_trainer(tiny_config({"training.steps": 1, **long}), clock=Clock(tick=0.01))
    (whole,) = [event.text for event in without.run() if isinstance(event, SampleGenerated)]
    assert len(whole) == 1000


def test_the_time_before_the_run_began_is_counted_once() -> None:
    clock = Clock()
    trainer = budget_trainer(clock, 50.0, begun=clock.now - 5.0)
    first = saved(trainer)
    steps = trainer.run()
    assert isinstance(next(steps), PhaseChanged)
    clock.now += 2.0
    trainer.load(*first)  # as after training diverged
    assert trainer.elapsed_seconds == pytest.approx(5.0)
    resuming = budget_trainer(clock, 50.0, begun=clock.now - 3.0)
    resuming.load(*first)
    assert resuming.elapsed_seconds == pytest.approx(5.0 + 3.0)


def test_the_schedule_ends_with_the_budget() -> None:
    seen = budget_run(Clock(), per_step=1.0, seconds=10.0)
    rates = [event.learning_rate for event in seen if isinstance(event, MetricsReported)]
    assert rates[-1] < 0.11 * rates[0]
    assert rates == sorted(rates, reverse=True)


def test_a_pause_costs_no_budget_and_no_speed() -> None:
    clock = Clock()
    config = tiny_config({"training.steps": 4, "training.log_every": 1})
    trainer = make_trainer(config, clock=clock)
    seen = []
    for event in trainer.run():
        seen.append(event)
        if isinstance(event, StepCompleted):
            clock.now += 1.0
            trainer.stopwatch.pause()
            clock.now += 1000.0
            trainer.stopwatch.resume()
    elapsed = [event.elapsed_seconds for event in seen if isinstance(event, StepCompleted)]
    assert elapsed == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_speed_counts_the_steps_alone() -> None:
    clock = Clock(tick=0.5)  # an update and a report read the clock twice each: half a second each
    config = tiny_config({"training.steps": 2, "training.log_every": 2})
    report = next(
        e for e in make_trainer(config, clock=clock).run() if isinstance(e, MetricsReported)
    )
    characters = 2 * config.training.batch_size * config.model.block_size
    assert 0 < report.tokens_per_second <= characters / 1.0
    assert report.elapsed_seconds >= characters / report.tokens_per_second


def poison(trainer: Trainer, value: float = math.nan) -> None:
    with torch.no_grad():
        next(iter(trainer.model.parameters())).flatten()[-1] = value


def run_until(trainer: Trainer, wrong: Callable[[Event], bool]) -> list[Event]:
    seen = []
    for event in trainer.run():
        seen.append(event)
        if wrong(event):
            poison(trainer)
    return seen


def test_a_loss_that_is_no_number_ends_the_run() -> None:
    config = tiny_config({"training.log_every": 3})
    with pytest.raises(RunFailedError, match=r"5 steps in a row up to step 6\b.*lower lear"):
        run_until(make_trainer(config), lambda event: isinstance(event, StepCompleted))


def test_a_validation_loss_that_is_no_number_ends_the_run() -> None:
    config = tiny_config({"training.log_every": 100, "training.evaluate_every": 2})
    with pytest.raises(RunFailedError, match="validation loss at step 2 is NaN or infinity"):
        run_until(make_trainer(config), lambda event: isinstance(event, StepCompleted))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_no_number_cannot_be_saved(value: float) -> None:
    trainer = make_trainer(tiny_config({"training.log_every": 100}))
    assert trainer.state().scalars.step == 0
    poison(trainer, value)
    with pytest.raises(RunFailedError, match="NaN or infinity"):
        trainer.state()


def test_clipping_bounds_the_gradient_and_its_norm_is_reported_before_it() -> None:
    config = tiny_config({"training.steps": 2, "training.log_every": 1})
    free = [e for e in make_trainer(config).run() if isinstance(e, MetricsReported)]
    clipped = make_trainer(with_settings(config, {"training.gradient_clip": 1e-3}))
    tight = [e for e in clipped.run() if isinstance(e, MetricsReported)]
    assert tight[0].gradient_norm == pytest.approx(free[0].gradient_norm)
    assert tight[0].gradient_norm > 1e-2


def test_a_sample_begins_after_the_runs_prompt_without_what_the_corpus_lacks() -> None:
    config = tiny_config({"training.steps": 1, "training.sample_prompt": "the 雪 k"})
    drawn = [e for e in make_trainer(config).run() if kinds([e]) == ["SampleGenerated"]]
    assert [(e.prompt, len(e.text)) for e in drawn] == [("the  k", 4)]  # type: ignore[attr-defined]


def test_no_sample_is_drawn_where_none_is_wanted() -> None:
    config = tiny_config({"training.steps": 1, "training.sample_length": 0})
    assert "SampleGenerated" not in kinds(list(make_trainer(config).run()))
