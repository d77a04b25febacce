"""How much of its own time a rank needs for a step, and how busy it keeps its cores meanwhile."""

from __future__ import annotations

import math
import time
from typing import Any

import torch


class WorkTimer:
    """What a step takes of a rank's own time, from its batch to the last of its gradients."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []
        self._seconds, self._steps = 0.0, 0
        self._began: Any = None

    def start(self) -> None:
        """A step begins."""
        self._began = self._mark()

    def stop(self) -> None:
        """This rank's own part of the step is done; the device may still be at it."""
        if self._began is None:
            return
        if self._on_gpu:
            self._events.append((self._began, self._mark()))
        else:
            self._seconds += time.perf_counter() - self._began
            self._steps += 1
        self._began = None

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def mean(self) -> float:
        """Return the mean since it was asked for last; not a number without a step."""
        done = [pair for pair in self._events if pair[1].query()]
        self._events = self._events[len(done) :]
        self._seconds += sum(begin.elapsed_time(end) / 1000.0 for begin, end in done)
        self._steps += len(done)
        mean = self._seconds / self._steps if self._steps else math.nan
        self._seconds, self._steps = 0.0, 0
        return mean


class CoreMeter:
    """How much of its cores this process used since it was asked last."""

    def __init__(self) -> None:
        self._wall, self._used = time.perf_counter(), time.process_time()

    def share(self) -> float:
        """Return a share of one, of as many cores as torch has threads."""
        wall, used = time.perf_counter(), time.process_time()
        passed, worked = wall - self._wall, used - self._used
        self._wall, self._used = wall, used
        return min(1.0, worked / (passed * torch.get_num_threads())) if passed else 0.0
