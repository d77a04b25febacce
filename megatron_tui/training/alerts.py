"""What a person should be told about a run, in words and with what to do. Pure functions.

Each looks at one kind of trouble in a `RunState`; the clock is passed in.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from megatron_model.events.schema import RunStarted
from megatron_model.events.state import RunState, Status
from megatron_model.util.text import safe
from megatron_tui.training.curves import Newest, newest
from megatron_tui.ui import formatting

Kind: TypeAlias = Literal["failed", "not-a-number", "spike", "stall", "over-fitting"]

SPIKE_DEVIATIONS = 8.0
"""A report so many usual deviations above the ones before it is a spike..."""
SPIKE_SHARE = 0.1
"""...if it is also this share of the loss above them."""
SPIKE_MEMORY = 0.9
SPIKE_AFTER = 10
"""Reports before the usual deviation is known."""

RISING_EVALUATIONS = 3
"""So many validations in a row that rise, while the train loss falls, are over-fitting."""

STALL_GAPS = 5.0
STALL_LEAST_SECONDS = 20.0
STALL_IN_PHASE_SECONDS = 300.0
"""Compiling and preparing say little while they work."""


@dataclass(frozen=True)
class Alert:
    """One thing to look at."""

    kind: Kind
    level: Literal["warning", "error"]
    step: int
    text: str
    """What happened."""
    advice: str
    """What to do about it."""


def alerts(state: RunState, now: float | None = None) -> list[Alert]:
    """Return everything there is to say, the most pressing first; without a clock, no stall."""
    return AlertWatch().look(state, now)


class _Seen(NamedTuple):
    """What the alerts follow from, but for the clock."""

    started: RunStarted | None
    status: Status
    error: str | None
    best_step: int | None
    train_loss: Newest | None
    val_loss: Newest | None


class AlertWatch:
    """Looks again and again; walks the curves only when there is something new in them."""

    def __init__(self) -> None:
        self.found: list[Alert] = []
        """Everything there is to say, the most pressing first."""
        self.chosen = 0
        """Which of them is on show."""
        self._seen: _Seen | None = None
        self._urgent: list[Alert] = []
        self._others: list[Alert] = []

    def begin(self) -> None:
        """Another run is looked at."""
        self.chosen = 0

    def look(self, state: RunState, now: float | None = None) -> list[Alert]:
        """Return everything there is to say, the most pressing first; without a clock, no stall."""
        seen = _Seen(
            state.started, state.status, state.error, state.best_step,
            newest(state.train_loss), newest(state.val_loss),
        )  # fmt: skip
        if seen != self._seen:
            self._seen = seen
            self._urgent = [*_some(failed(state)), *_some(not_a_number(state))]
            self._others = [*_some(over_fitting(state)), *reversed(spikes(state))]
        found = [*self._urgent, *_some(stalled(state, now)), *self._others]
        if len(found) != len(self.found):
            self.chosen = 0
        self.found = found
        return found

    def step_to_go_to(self, cursor: int | None) -> int | None:
        """Return the step of the chosen alert; with the cursor there already, choose the next."""
        if not self.found:
            return None
        if self.found[self.chosen].step == cursor:
            self.chosen = (self.chosen + 1) % len(self.found)
        return self.found[self.chosen].step


def _some(alert: Alert | None) -> list[Alert]:
    return [] if alert is None else [alert]


def failed(state: RunState) -> Alert | None:
    """Return why the run failed; the error itself says what to do."""
    if state.status != "failed":
        return None
    text = safe(state.error or "The run failed.", one_line=True)
    what, _, advice = text.partition(". ")
    return Alert("failed", "error", state.step, what.rstrip(".") + ".", advice)


def not_a_number(state: RunState) -> Alert | None:
    """Return the first loss that is NaN or infinity, if every one after it is too."""
    values = state.train_loss.values
    if not values or math.isfinite(values[-1]):
        return None
    first = len(values) - 1
    while first and not math.isfinite(values[first - 1]):
        first -= 1
    return Alert(
        "not-a-number",
        "error",
        state.train_loss.steps[first],
        f"The train loss has been NaN or infinity since step {state.train_loss.steps[first]:,}.",
        "Stop (S) and fork (F) an earlier checkpoint with a lower learning rate.",
    )


def spikes(state: RunState) -> list[Alert]:
    """Return the sudden jumps of the train loss, oldest first."""
    steps, values = state.train_loss.steps, state.train_loss.values
    found: list[Alert] = []
    mean = deviation = 0.0
    usual, inside = 0, False
    for step, value in zip(steps, values, strict=True):
        if not math.isfinite(value):
            continue
        limit = mean + max(SPIKE_DEVIATIONS * deviation, SPIKE_SHARE * abs(mean))
        if usual >= SPIKE_AFTER and value > limit:
            if not inside:
                found.append(_spike(step, mean, value))
            inside = True
            # What is far outside moves the usual value slowly, so that a plateau becomes usual too.
            value = limit
        else:
            inside = False
        usual += 1
        keep = min(SPIKE_MEMORY, (usual - 1) / usual)
        deviation = keep * deviation + (1 - keep) * abs(value - mean) if usual > 1 else 0.0
        mean = keep * mean + (1 - keep) * value
    if found and inside:
        last = found[-1]
        found[-1] = Alert(
            last.kind,
            last.level,
            last.step,
            last.text.rstrip(".") + " and has not come back.",
            "Lower the learning rate (C), or fork (F) the checkpoint before it with a lower one.",
        )
    return found


def stalled(state: RunState, now: float | None) -> Alert | None:
    """Return that nothing was heard for much longer than usual."""
    if now is None or state.status != "running" or not state.last_time:
        return None
    silent = now - state.last_time
    if silent <= patience(state):
        return None
    return Alert(
        "stall",
        "warning",
        state.step,
        f"Nothing was heard from the trainer for {formatting.duration(silent)}.",
        "Look whether the machine is busy or asleep; a trainer that died shows as interrupted.",
    )


def patience(state: RunState) -> float:
    """Return the seconds of silence that are still usual in what the run does now."""
    if state.phase in ("loading", "preparing", "compiling"):
        return STALL_IN_PHASE_SECONDS
    seconds = state.train_loss.seconds[-10:]
    gaps = [after - before for before, after in zip(seconds, seconds[1:], strict=False)]
    usual = statistics.median(gaps) if gaps else STALL_IN_PHASE_SECONDS / STALL_GAPS
    at_hand = state.clock.cost(state.phase) if state.phase not in (None, "training") else 0.0
    return max(STALL_LEAST_SECONDS, STALL_GAPS * max(usual, at_hand))


def over_fitting(state: RunState) -> Alert | None:
    """Return that validation rises while train falls, until validation finds a new best."""
    steps, values = state.val_loss.steps, state.val_loss.values
    best = state.best_step
    if best is None or state.best_val_loss is None:
        return None
    rising = 0
    for index in range(len(values) - 1, 0, -1):
        if steps[index] <= best:
            break
        rising = rising + 1 if values[index] > values[index - 1] else 0
        if rising == RISING_EVALUATIONS and _train_falls(state, steps[index - 1], steps[-1]):
            return Alert(
                "over-fitting",
                "warning",
                best,
                f"Over-fitting since step {best:,}: validation rises, train falls.",
                f"The best, {state.best_val_loss:.3f}, is kept: stop (S), or fork (F) it with more "
                "dropout.",
            )
    return None


def _train_falls(state: RunState, first: int, last: int) -> bool:
    before = _mean_near(state.train_loss.steps, state.train_loss.values, first)
    after = _mean_near(state.train_loss.steps, state.train_loss.values, last)
    return before is not None and after is not None and after < before


def _mean_near(steps: Sequence[int], values: Sequence[float], step: int) -> float | None:
    """Return the mean of the few reports up to `step`."""
    near = [v for s, v in zip(steps, values, strict=True) if s <= step and math.isfinite(v)][-5:]
    return sum(near) / len(near) if near else None


def _spike(step: int, usual: float, value: float) -> Alert:
    return Alert(
        "spike",
        "warning",
        step,
        f"The train loss jumped from {usual:.3f} to {formatting.loss(value)} at step {step:,}.",
        "A single spike heals; if they come often, lower the learning rate (C).",
    )
