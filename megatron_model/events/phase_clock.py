"""How long each kind of work in a run takes, from its events: what an ETA rests on."""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass, field

from megatron_model.events.schema import Phase

RECENT = 8
"""So many reports decide the pace: it follows a machine that becomes slower or faster."""


@dataclass
class PhaseClock:
    """The pace of the steps alone, and what each evaluation, sample and checkpoint costs.

    Steps are timed by seconds trained, in which pauses do not count; the work between them by the
    times of its events.
    """

    costs: dict[Phase, float] = field(default_factory=dict)
    """Seconds that each kind of work took lately."""
    phase: Phase | None = None
    _since: float = 0.0
    _counted: float = 0.0
    """Seconds of the phase at hand before a pause in its middle."""
    _paces: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    _step: int = 0
    _seconds: float = 0.0
    _other: float = 0.0
    """Seconds of other work since the last report."""

    def start(self, step: int, seconds: float) -> None:
        """Begin a session; the pace of the one before says little about this one."""
        self._paces.clear()
        self._step, self._seconds, self._other = step, seconds, 0.0
        self.phase = "training"

    def turn(self, phase: Phase, time: float) -> None:
        """Take in that another kind of work began."""
        if self.phase not in (None, "training", "paused"):
            spent = self._counted + max(0.0, time - self._since)
            self._other += spent
            before = self.costs.get(self.phase)
            self.costs[self.phase] = spent if before is None else (before + spent) / 2
        self.phase, self._since, self._counted = phase, time, 0.0

    def pause(self, time: float) -> None:
        """Stop counting."""
        self._counted += max(0.0, time - self._since)

    def resume(self, time: float) -> None:
        """Continue the same kind of work."""
        self._since = time
        if self.phase == "paused":
            self.phase = "training"

    def report(self, step: int, seconds: float) -> None:
        """Take in the end of a stretch of steps, at so many seconds trained."""
        if (pace := self._stretch(step, seconds)) is not None:
            self._paces.append(pace)
        self._step, self._seconds, self._other = step, seconds, 0.0

    def pace(self, step: int, seconds: float) -> float | None:
        """Return the seconds that a step takes; None before the first one of this session."""
        if self._paces:
            # The lower one of two: the first stretch may have compiled something.
            return statistics.median_low(self._paces)
        return self._stretch(step, seconds)

    def cost(self, *phases: Phase) -> float:
        """Return the seconds that these kinds of work take together, as far as is known."""
        return sum(self.costs.get(phase, 0.0) for phase in phases)

    def _stretch(self, step: int, seconds: float) -> float | None:
        spent = seconds - self._seconds - self._other
        return spent / (step - self._step) if step > self._step and spent > 0 else None


def occasions(every: int, step: int, steps: int) -> int:
    """Return how often something done every so many steps, and at the end, is still to come."""
    if not every or step >= steps:
        return 0
    return steps // every - step // every + (steps % every > 0)
