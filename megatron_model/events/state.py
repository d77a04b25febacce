"""The state of a run as a fold over its events: what every screen shows and `runs` prints.

`RunState.apply` does no I/O and reads no clock, so a recorded run and a live one look the same.
"""

from __future__ import annotations

import itertools
import math
from collections import deque
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from msgspec.structs import replace

from megatron_model import events
from megatron_model.events import Event, Phase
from megatron_model.phase_clock import PhaseClock, occasions

Status: TypeAlias = Literal["new", "running", "paused", "finished", "failed", "interrupted"]

SERIES_LIMIT = 8192
SAMPLES_LIMIT = 500
LOG_LIMIT = 1000


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

    def __len__(self) -> int:
        return len(self.steps)

    def append(self, step: int, seconds: float, value: float) -> None:
        """Add a point, in place of one at the same step."""
        self.cut(step - 1)
        self.steps.append(step)
        self.seconds.append(seconds)
        self.values.append(value)
        if len(self.steps) > SERIES_LIMIT:
            self._thin()

    def cut(self, step: int) -> None:
        """Drop the points after `step`."""
        while self.steps and self.steps[-1] > step:
            del self.steps[-1], self.seconds[-1], self.values[-1]

    def _thin(self) -> None:
        keep: list[int] = []
        # The newest points stay whole: they are what a person is looking at.
        end = len(self.values) - 64
        first = self.steps[0]
        width = (self.steps[end] - first) / (SERIES_LIMIT // 4)
        for _, stretch in itertools.groupby(range(end), lambda i: (self.steps[i] - first) // width):
            window = list(stretch)
            finite = [i for i in window if math.isfinite(self.values[i])]
            if not finite:
                keep.append(window[0])
                continue
            extremes = {
                min(finite, key=self.values.__getitem__),
                max(finite, key=self.values.__getitem__),
            }
            keep += sorted(extremes)
        keep += range(end, len(self.values))
        self.steps = [self.steps[i] for i in keep]
        self.seconds = [self.seconds[i] for i in keep]
        self.values = [self.values[i] for i in keep]


@dataclass(frozen=True)
class LogLine:
    """One line of the run's log for people; `level` is info, good, warning or error."""

    time: float
    level: Literal["info", "good", "warning", "error"]
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
    data_wait: float | None = None
    """Share of the time of the latest report in which the steps waited for their batches."""
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=LOG_LIMIT))
    error: str | None = None
    finish_reason: str | None = None
    handed_over: bool = False
    """Whether one process let the run go and the next has not begun yet."""
    phase_progress: float | None = None
    """Share of the phase at hand that is done, where that is known."""
    clock: PhaseClock = field(default_factory=PhaseClock)
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
            return min(1.0, self.elapsed_seconds / self.started.max_seconds)
        return min(1.0, self.step / self.started.steps)

    def apply(self, event: Event) -> None:
        """Take in one event."""
        self.last_time = event.time
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
            case events.StepTaken(step=step, elapsed_seconds=seconds):
                self.step, self.elapsed_seconds = step, seconds
            case events.StepFinished():
                self._report(event)
            case events.Evaluated():
                self._evaluate(event)
            case events.SampleGenerated():
                self.samples.append(event)
            case events.CheckpointSaved(step=step):
                self.last_checkpoint_step = step
                self._say(event, "info", f"checkpoint saved at step {step:,}")
            case events.DeviceSampled():
                self.device = event
                self.memory.append(event.step, self.elapsed_seconds, float(event.used))
            case events.RanksMeasured():
                self.ranks = event
            case events.Noticed(text=text):
                self._say(event, "warning", text)
            case events.Alerted(text=text):
                self._say(event, "error", text)
            case events.RunHandedOver(step=step, elapsed_seconds=seconds):
                self.status, self.phase, self.handed_over = "running", "loading", True
                self.step, self.elapsed_seconds = step, seconds
                self._say(event, "info", f"handed over at step {step:,} to another process")
            case events.SettingChanged():
                self._change(event)
            case events.RunPaused():
                self.status, self.phase = "paused", "paused"
                self.clock.pause(event.time)
                self._say(event, "info", f"paused at step {event.step:,}")
            case events.RunResumed():
                self.clock.resume(event.time)
                self.status, self.phase = "running", self.clock.phase or "training"
                self._say(event, "info", "training goes on")
            case events.RunFinished():
                self.status, self.phase, self.step = "finished", None, event.step
                self.elapsed_seconds, self.finish_reason = event.elapsed_seconds, event.reason
                self._say(event, "good", _FINISH_WORDS[event.reason].format(step=f"{event.step:,}"))
            case events.RunFailed(error=error):
                self.status, self.phase, self.error = "failed", None, error
                self._say(event, "error", error)
            case _:
                pass

    def _start(self, event: events.RunStarted) -> None:
        self.status, self.phase, self.started = "running", "training", event
        self.error = self.finish_reason = self.phase_progress = None
        self.handed_over, self.ranks = False, None
        self._rewind(event.step)
        self.step = self.first_step = event.step
        self.elapsed_seconds = self.first_elapsed = event.elapsed_seconds
        self.clock.start(event.step, event.elapsed_seconds)
        resumed = f"resumed at step {event.step:,}" if event.step else "training began"
        where = f"{event.devices} x {event.device}" if event.devices > 1 else event.device
        self._say(event, "info", f"{resumed} on {where}, {event.parameters:,} parameters")

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
        if self.started is not None and event.key == "training.steps":
            self.started = replace(self.started, steps=int(event.new))
        if self.started is not None and event.key == "training.max_seconds":
            self.started = replace(self.started, max_seconds=float(event.new))
        name = event.key.removeprefix("training.").replace("_", " ")
        old, new = (f"{v:,}" if isinstance(v, int) else f"{v:g}" for v in (event.old, event.new))
        self._say(event, "info", f"{name} changed from {old} to {new} at step {event.step:,}")

    def _report(self, event: events.StepFinished) -> None:
        self.step, self.elapsed_seconds = event.step, event.elapsed_seconds
        self.data_wait = event.data_wait
        self.clock.report(event.step, event.elapsed_seconds)
        for series, value in (
            (self.train_loss, event.train_loss),
            (self.learning_rate, event.learning_rate),
            (self.gradient_norm, event.gradient_norm),
            (self.speed, event.tokens_per_second),
        ):
            series.append(event.step, event.elapsed_seconds, value)

    def _evaluate(self, event: events.Evaluated) -> None:
        self.elapsed_seconds = event.elapsed_seconds
        self.val_loss.append(event.step, event.elapsed_seconds, event.val_loss)
        if self.best_val_loss is None or event.val_loss < self.best_val_loss:
            self.best_val_loss, self.best_step = event.val_loss, event.step
        self._say(event, "info", f"validation {event.val_loss:.4f} at step {event.step:,}")

    def _say(
        self, event: Event, level: Literal["info", "good", "warning", "error"], text: str
    ) -> None:
        self.log.append(LogLine(event.time, level, text))


_FINISH_WORDS = {
    "completed": "finished: all {step} steps are done",
    "budget": "finished: the time budget is used up at step {step}",
    "stopped": "stopped at step {step}; it can be resumed",
}
