"""The training loop: what it says, in which order, and that an interruption changes nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch

from megatron_model.checkpoint import TrainingState
from megatron_model.config import RunConfig, with_settings
from megatron_model.errors import RunFailedError
from megatron_model.events import Evaluated, Event, StepFinished, StepTaken, WorkProgress
from megatron_model.trainer import Trainer
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
    interval = ["StepTaken", "StepFinished", *evaluation, "PhaseChanged", "StepTaken"]
    assert kinds(seen) == ["PhaseChanged", *interval, *interval, *evaluation, "StepTaken"]
    assert [e.step for e in seen if isinstance(e, StepTaken)] == [1, 2, 3, 4, 5]
    assert [e.step for e in seen if isinstance(e, StepFinished)] == [2, 4]
    phases = [e.phase for e in seen if kinds([e]) == ["PhaseChanged"]]  # type: ignore[attr-defined]
    assert phases == ["training", *["evaluating", "sampling", "training"] * 2, *phases[-2:]]
    assert phases[-2:] == ["evaluating", "sampling"]


def test_a_report_is_the_mean_of_its_interval() -> None:
    each = {"training.steps": 4, "training.log_every": 1}
    losses = [
        e.train_loss for e in make_trainer(tiny_config(each)).run() if isinstance(e, StepFinished)
    ]
    pairs = [
        e.train_loss
        for e in make_trainer(tiny_config({**each, "training.log_every": 2})).run()
        if isinstance(e, StepFinished)
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
        if isinstance(event, StepTaken):
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
        if isinstance(event, StepTaken) and event.step == 5:
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
    whole = next(event for event in seen[made_up:] if isinstance(event, StepTaken))
    assert whole.step == 4


def budget_run(clock: Clock, per_step: float, seconds: float, **changes: object) -> list[Event]:
    """Train on a time budget where a step takes `per_step` seconds and nothing else takes any."""
    config = tiny_config(
        {
            "training.max_seconds": seconds,
            "training.schedule": "linear",
            "training.cooldown": 1.0,
            "training.warmup_steps": 0,
            "training.steps": 3,
            "training.log_every": 1,
            "training.evaluate_every": 100,
            **changes,
        }
    )
    seen = []
    for event in make_trainer(config, clock=clock).run():
        seen.append(event)
        if isinstance(event, StepTaken):
            clock.now += per_step
    return seen


def test_a_time_budget_ends_the_run_whatever_the_steps() -> None:
    seen = budget_run(Clock(), per_step=1.0, seconds=10.0)
    steps = [event.step for event in seen if isinstance(event, StepTaken)]
    assert steps[-1] in (10, 11)  # and not after training.steps
    assert [e.step for e in seen if isinstance(e, Evaluated)] == [steps[-1]]


def test_the_schedule_ends_with_the_budget() -> None:
    seen = budget_run(Clock(), per_step=1.0, seconds=10.0)
    rates = [event.learning_rate for event in seen if isinstance(event, StepFinished)]
    assert rates[-1] < 0.11 * rates[0]
    assert rates == sorted(rates, reverse=True)


def test_a_pause_costs_no_budget_and_no_speed() -> None:
    clock = Clock()
    config = tiny_config({"training.steps": 4, "training.log_every": 1})
    trainer = make_trainer(config, clock=clock)
    seen = []
    for event in trainer.run():
        seen.append(event)
        if isinstance(event, StepTaken):
            clock.now += 1.0
            trainer.stopwatch.pause()
            clock.now += 1000.0
            trainer.stopwatch.resume()
    elapsed = [event.elapsed_seconds for event in seen if isinstance(event, StepTaken)]
    assert elapsed == pytest.approx([0.0, 1.0, 2.0, 3.0])


def test_speed_counts_the_steps_alone() -> None:
    clock = Clock(tick=0.5)  # an update and a report read the clock twice each: half a second each
    config = tiny_config({"training.steps": 2, "training.log_every": 2})
    report = next(e for e in make_trainer(config, clock=clock).run() if isinstance(e, StepFinished))
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
        run_until(make_trainer(config), lambda event: isinstance(event, StepTaken))


def test_a_validation_loss_that_is_no_number_ends_the_run() -> None:
    config = tiny_config({"training.log_every": 100, "training.evaluate_every": 2})
    with pytest.raises(RunFailedError, match="validation loss at step 2 is not a finite number"):
        run_until(make_trainer(config), lambda event: isinstance(event, StepTaken))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_that_is_no_number_cannot_be_saved(value: float) -> None:
    trainer = make_trainer(tiny_config({"training.log_every": 100}))
    assert trainer.state().numbers["step"] == 0
    poison(trainer, value)
    with pytest.raises(RunFailedError, match="finite"):
        trainer.state()


def test_clipping_bounds_the_gradient_and_its_norm_is_reported_before_it() -> None:
    config = tiny_config({"training.steps": 2, "training.log_every": 1})
    free = [e for e in make_trainer(config).run() if isinstance(e, StepFinished)]
    clipped = make_trainer(with_settings(config, {"training.gradient_clip": 1e-3}))
    tight = [e for e in clipped.run() if isinstance(e, StepFinished)]
    assert tight[0].gradient_norm == pytest.approx(free[0].gradient_norm)
    assert tight[0].gradient_norm > 1e-2


def test_a_sample_begins_after_the_runs_prompt_without_what_the_corpus_lacks() -> None:
    config = tiny_config({"training.steps": 1, "training.sample_prompt": "the 雪 k"})
    drawn = [e for e in make_trainer(config).run() if kinds([e]) == ["SampleGenerated"]]
    assert [(e.prompt, len(e.text)) for e in drawn] == [("the  k", 4)]  # type: ignore[attr-defined]


def test_no_sample_is_drawn_where_none_is_wanted() -> None:
    config = tiny_config({"training.steps": 1, "training.sample_length": 0})
    assert "SampleGenerated" not in kinds(list(make_trainer(config).run()))
