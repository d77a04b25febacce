"""The state of a run as a fold over its events: what every screen shows and `runs` prints.

`RunState.apply` does no I/O and reads no clock, so a recorded run and a live one look the same.
"""

from __future__ import annotations

import bisect
import itertools
import math
import operator
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, TypeVar, cast

from msgspec.structs import replace

from megatron_model.events import schema as events
from megatron_model.events.describe import Level, describe, resume_hint
from megatron_model.events.phase_clock import RECENT, PhaseClock, occasions
from megatron_model.events.schema import Event, Phase

Status: TypeAlias = Literal[
    "new", "running", "paused", "stopped", "finished", "failed", "interrupted"
]
"""``finished``: all that was asked for is done; ``stopped``: it was told to end before that."""

SERIES_LIMIT = 8192
NEWEST = 64
"""Points at the end of a curve that are not thinned."""
SAMPLES_LIMIT = 500
LOG_LIMIT = 1000
LAST_MOMENT = 253_402_300_800.0
"""The end of the year 9999 in Unix seconds: a later time is damage."""
MOST_SECONDS = 1e11
"""Three thousand years: no run was trained for so long."""
TEXT_LIMIT = 50_000
"""Characters of one text that are kept: a few thousand are read, and a log may hold anything."""


@dataclass
class Series:
    """A growing curve of (step, elapsed seconds, value), thinned beyond `SERIES_LIMIT` points.

    Thinning keeps the smallest and the largest value of equal stretches of steps, so that spikes
    survive and the beginning stays as fine as the rest; a stretch without a finite value is kept as
    a gap.
    """

    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    _width: float = field(default=0.0, compare=False, repr=False)
    """Steps of a stretch when the curve was thinned last; 0 while it was not."""

    def __len__(self) -> int:
        return len(self.steps)

    def append(self, step: int, seconds: float, value: float) -> None:
        """Add a point, in place of one at the same step."""
        self.extend((step,), (seconds,), (value,))

    def extend(
        self, steps: Sequence[int], seconds: Sequence[float], values: Sequence[float]
    ) -> None:
        """Add points of rising steps, in place of those from the first of them on."""
        if self.steps and self.steps[-1] >= steps[0]:
            self.cut(steps[0] - 1)
        if self._width and len(steps) > 4 * NEWEST:
            # Thinned as the rest is, so that the rest need not be thinned again at once.
            keep = _thinned(steps, values, self.steps[0], self._width)
            steps, seconds, values = _picked(keep, steps, seconds, values)
        self.steps.extend(steps)
        self.seconds.extend(seconds)
        self.values.extend(values)
        if len(self.steps) > SERIES_LIMIT:
            first, last = self.steps[0], self.steps[-NEWEST]
            self._width = (last - first) / (SERIES_LIMIT // 4)
            keep = _thinned(self.steps, self.values, first, self._width)
            self.steps, self.seconds, self.values = _picked(
                keep, self.steps, self.seconds, self.values
            )

    def cut(self, step: int) -> None:
        """Drop the points after `step`."""
        count = bisect.bisect_right(self.steps, step)
        if count < len(self.steps):
            del self.steps[count:], self.seconds[count:], self.values[count:]
            self._width = 0.0  # what is left may be short


def _picked(
    keep: Sequence[int], steps: Sequence[int], seconds: Sequence[float], values: Sequence[float]
) -> tuple[list[int], list[float], list[float]]:
    pick = operator.itemgetter(*keep)
    return list(pick(steps)), list(pick(seconds)), list(pick(values))


def _thinned(steps: Sequence[int], values: Sequence[float], first: int, width: float) -> list[int]:
    """Return which points stay where two are kept of each `width` steps, counted from `first`."""
    keep: list[int] = []
    # The newest points stay whole: they are what a person is looking at.
    start, end = 0, len(values) - NEWEST
    while start < end:
        limit = math.ceil(first + ((steps[start] - first) // width + 1) * width)
        stop = bisect.bisect_left(steps, limit, start + 1, end)
        keep += _extremes(values, start, stop) if stop - start > 2 else range(start, stop)
        start = stop
    return [*keep, *range(end, len(values))]


def _extremes(values: Sequence[float], start: int, stop: int) -> list[int]:
    """Return where the smallest and the largest finite values are, or the first if none is."""
    window = values[start:stop]
    smallest, largest = min(window), max(window)
    if math.isfinite(smallest) and math.isfinite(largest):  # NaN is the least if it is the first
        low, high = start + window.index(smallest), start + window.index(largest)
    else:
        finite = [i for i in range(start, stop) if math.isfinite(values[i])]
        low = min(finite, key=values.__getitem__, default=start)
        high = max(finite, key=values.__getitem__, default=start)
    return [low] if low == high else [min(low, high), max(low, high)]


@dataclass(frozen=True)
class LogLine:
    """One line of the run's log for people; `level` is info, good, warning or error."""

    time: float
    level: Level
    text: str


@dataclass
class RunState:
    """Everything known about a run, folded from its events."""

    status: Status = "new"
    phase: Phase | None = None
    started: events.RunStarted | None = None
    step: int = 0
    elapsed_seconds: float = 0.0
    first_step: int = 0
    """The step at which this session of the run began: 0, or that of the checkpoint it resumed."""
    first_elapsed: float = 0.0
    last_time: float = 0.0
    train_loss: Series = field(default_factory=Series)
    val_loss: Series = field(default_factory=Series)
    learning_rate: Series = field(default_factory=Series)
    gradient_norm: Series = field(default_factory=Series)
    speed: Series = field(default_factory=Series)
    memory: Series = field(default_factory=Series)
    device: events.DeviceSampled | None = None
    ranks: events.RanksMeasured | None = None
    """How the processes do that train together; None where one trains alone."""
    best_val_loss: float | None = None
    best_step: int | None = None
    samples: deque[events.SampleGenerated] = field(
        default_factory=lambda: deque(maxlen=SAMPLES_LIMIT)
    )
    last_checkpoint_step: int | None = None
    """Step of the newest checkpoint: the last one written, or that which the run began with."""
    data_wait: float | None = None
    """Share of the time of the latest report in which the steps waited for their batches."""
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=LOG_LIMIT))
    error: str | None = None
    finish_reason: str | None = None
    handed_over: bool = False
    """Whether the run was handed over, and the next process has not started yet."""
    phase_progress: float | None = None
    """Share of the phase at hand that is done, where that is known."""
    clock: PhaseClock = field(default_factory=PhaseClock)
    taken_over: events.WeightsTakenOver | None = None
    """Which weights the run began with, where those were another model's."""
    changes: list[events.SettingChanged] = field(default_factory=list)
    """The settings that were changed while the run trained, in order."""

    @property
    def running(self) -> bool:
        """Whether the events say that a trainer is at work (its process may have died since)."""
        return self.status in ("running", "paused")

    @property
    def remaining_seconds(self) -> float | None:
        """Seconds of training left, by the pace of this session and what interrupts it.

        None until the pace is known.
        """
        if self.started is None or not self.running:
            return None
        if self.started.max_seconds:
            return max(0.0, self.started.max_seconds - self.elapsed_seconds)
        pace = self.clock.pace(self.step, self.elapsed_seconds)
        if pace is None:
            return None
        step, steps = self.step, self.started.steps
        evaluations = occasions(self.started.evaluate_every, step, steps)
        saves = occasions(self.started.checkpoint_every, step, steps)
        at_hand = self.clock.phase
        rest = self.clock.cost(at_hand) if at_hand not in (None, "training") else 0.0
        return (
            max(0, steps - step) * pace
            + evaluations * self.clock.cost("evaluating", "sampling")
            + saves * self.clock.cost("saving")
            + rest * (1.0 - (self.phase_progress or 0.0))
        )

    @property
    def characters_per_step(self) -> int:
        """Characters that one step learns from; 0 while that is not known."""
        started = self.started
        return (
            started.batch_size * (started.sequence_length or started.block_size) if started else 0
        )

    @property
    def progress(self) -> float:
        """Share of the run that is done, from 0 to 1, by steps or by its time budget."""
        if self.started is None:
            return 0.0
        if self.started.max_seconds:
            return _share(self.elapsed_seconds, self.started.max_seconds)
        return _share(self.step, self.started.steps)

    def apply_all(self, happened: Sequence[Event]) -> None:
        """Take in many events: as `apply` does, but the curves grow by many points at once."""
        reports: list[events.MetricsReported] = []
        memory: list[tuple[int, float, float]] = []
        start = taken = heard = 0  # of the stretch at hand: its first event, the next one, report
        kinds = [*map(type, happened), None]
        for index in [i for i, kind in enumerate(kinds) if kind is not events.MetricsReported]:
            new = cast("Sequence[events.MetricsReported]", happened[taken:index])
            self._train_last(new)
            reports += new
            taken = index + 1
            if kinds[index] is events.DeviceSampled:
                self.device = device = cast("events.DeviceSampled", happened[index])
                memory.append((device.step, self.elapsed_seconds, float(device.used)))
                continue
            self._hear_last(happened[start:index])
            self._note(reports[heard:])
            if kinds[index] is events.RunStarted:  # it goes back to an earlier step
                self._draw(reports, memory)
                reports, memory = [], []
            for event in happened[index:taken]:
                self.apply(event)
            start, heard = taken, len(reports)
        self._draw(reports, memory)

    def apply(self, event: Event) -> None:
        """Take in one event."""
        self._hear_last((event,))
        match event:
            case events.RunStarted():
                self._start(event)
            case events.PhaseChanged(phase=phase):
                self.phase, self.phase_progress = phase, None
                self.clock.turn(phase, event.time)
            case events.CorpusProgress(done=done, total=total):
                self.phase_progress = done / total if total else 1.0
            case events.WorkProgress(share=share):
                self.phase_progress = share
            case events.StepCompleted(step=step, elapsed_seconds=seconds):
                self.step = step
                self._trained(seconds)
            case events.MetricsReported():
                self._train_last([event])
                self._note([event])
                self._draw([event], [])
            case events.Evaluated():
                self._evaluate(event)
            case events.SampleGenerated(prompt=prompt, text=text):
                if len(prompt) + len(text) > TEXT_LIMIT:
                    event = replace(event, prompt=prompt[:TEXT_LIMIT], text=text[:TEXT_LIMIT])
                self.samples.append(event)
            case events.CheckpointSaved(step=step):
                self.last_checkpoint_step = step
            case events.DeviceSampled():
                self.device = event
                self.memory.append(event.step, self.elapsed_seconds, float(event.used))
            case events.RanksMeasured():
                self.ranks = event
            case events.RunHandedOver(step=step, elapsed_seconds=seconds):
                self.status, self.phase, self.handed_over = "running", "loading", True
                self.step = step
                self._trained(seconds)
            case events.WeightsTakenOver():
                self.taken_over = event
            case events.SettingChanged():
                self._change(event)
            case events.RunPaused():
                self.status, self.phase = "paused", "paused"
                self.clock.pause(event.time)
            case events.RunResumed():
                self.clock.resume(event.time)
                self.status, self.phase = "running", self.clock.phase or "training"
            case events.RunFinished():
                self.status = "stopped" if event.reason == "stopped" else "finished"
                self.phase, self.step = None, event.step
                self._trained(event.elapsed_seconds)
                self.finish_reason = event.reason
            case events.RunFailed(error=error):
                self.status, self.phase, self.error = "failed", None, error
            case _:
                pass
        self._write_down(event)

    def _start(self, event: events.RunStarted) -> None:
        self.status, self.phase, self.started = "running", "training", event
        self.error = self.finish_reason = self.phase_progress = None
        self.handed_over, self.ranks = False, None
        self._rewind(event.step)
        self.step = self.first_step = event.step
        if event.step or self.last_checkpoint_step:  # what was saved later could not be read
            self.last_checkpoint_step = event.step or None
        self._trained(event.elapsed_seconds)
        self.first_elapsed = self.elapsed_seconds
        self.clock.start(event.step, self.elapsed_seconds)

    def _rewind(self, step: int) -> None:
        """Forget what the log holds beyond the checkpoint that the run resumed from."""
        curves = (self.train_loss, self.learning_rate, self.gradient_norm, self.speed, self.memory)
        for series in (*curves, self.val_loss):
            series.cut(step)
        while self.samples and self.samples[-1].step > step:
            self.samples.pop()
        while self.changes and self.changes[-1].step > step:
            self.changes.pop()
        pairs = zip(self.val_loss.values, self.val_loss.steps, strict=True)
        self.best_val_loss, self.best_step = min(pairs, default=(None, None))

    def _change(self, event: events.SettingChanged) -> None:
        self.changes.append(event)
        # What no run can be set to is damage, and changes nothing.
        if self.started is not None and 0 <= event.new < 2**63:
            if event.key == "training.steps":
                self.started = replace(self.started, steps=int(event.new))
            if event.key == "training.max_seconds":
                self.started = replace(self.started, max_seconds=float(event.new))

    def _train_last(self, reports: Sequence[events.MetricsReported]) -> None:
        """Take from reports, one behind the other, how long the run was trained."""
        for report in reversed(reports):
            if self._trained(report.elapsed_seconds):
                return

    def _note(self, reports: Sequence[events.MetricsReported]) -> None:
        """Take from reports, one behind the other, where the run stands and at what pace."""
        if not reports:
            return
        self.step, self.data_wait = reports[-1].step, reports[-1].data_wait
        recent = reports[-RECENT - 1 :]
        both = ([r.step for r in recent], [r.elapsed_seconds for r in recent])
        if any(not all(map(operator.lt, some, some[1:])) for some in both):
            recent = reports  # a log that goes back: which reports count shows only one by one
        for report in recent:
            self.clock.report(report.step, report.elapsed_seconds)

    def _draw(
        self,
        reports: Sequence[events.MetricsReported],
        memory: Sequence[tuple[int, float, float]],
    ) -> None:
        """Add reports and (step, seconds, bytes) of memory to the curves."""
        for part, steps in _rising(reports, [r.step for r in reports]):
            seconds = [r.elapsed_seconds for r in part]
            if not (min(seconds) >= 0 and max(seconds) < MOST_SECONDS):
                seconds = [s if 0 <= s < MOST_SECONDS else 0.0 for s in seconds]
            self.train_loss.extend(steps, seconds, [r.train_loss for r in part])
            self.learning_rate.extend(steps, seconds, [r.learning_rate for r in part])
            self.gradient_norm.extend(steps, seconds, [r.gradient_norm for r in part])
            self.speed.extend(steps, seconds, [r.tokens_per_second for r in part])
        for points, _ in _rising(memory, [point[0] for point in memory]):
            self.memory.extend(*zip(*points, strict=True))

    def _evaluate(self, event: events.Evaluated) -> None:
        self._trained(event.elapsed_seconds)
        self.val_loss.append(event.step, self.elapsed_seconds, event.val_loss)
        if self.best_val_loss is None or event.val_loss < self.best_val_loss:
            self.best_val_loss, self.best_step = event.val_loss, event.step

    def _hear_last(self, happened: Sequence[Event]) -> None:
        """Take in when the run was last heard of; what is not a date is ignored."""
        for event in reversed(happened):
            if 0 <= event.time < LAST_MOMENT:
                self.last_time = event.time
                return

    def _trained(self, seconds: float) -> bool:
        """Take in how long the run was trained; what cannot be is not believed."""
        if 0 <= seconds < MOST_SECONDS:
            self.elapsed_seconds = seconds
            return True
        return False

    def _write_down(self, event: Event) -> None:
        """Add what happened to the log for people."""
        words = describe(event)
        if words is None:
            return
        text = words.text + words.at
        if isinstance(event, events.RunFinished):
            text += resume_hint(event, self.last_checkpoint_step)
        self.log.append(LogLine(event.time, words.level, text[:TEXT_LIMIT]))


_Item = TypeVar("_Item")


def _rising(
    items: Sequence[_Item], steps: Sequence[int]
) -> Iterator[tuple[Sequence[_Item], Sequence[int]]]:
    """Split items where their steps do not rise: a log may say the same twice, or go back."""
    if items and all(map(operator.lt, steps, steps[1:])):
        yield items, steps
        return
    ends = [i for i, rises in enumerate(map(operator.lt, steps, steps[1:]), 1) if not rises]
    for start, end in itertools.pairwise([0, *ends, len(items)]):
        if start < end:
            yield items[start:end], steps[start:end]


def _share(done: float, whole: float) -> float:
    """Return how much of a whole is done, from 0 to 1."""
    return min(1.0, max(0.0, done / whole)) if whole > 0 else 0.0
