"""How many threads a step on a CPU is divided among, while others use the machine too.

The threads of a step wait for each other many times in it. Where somebody else has one of the
cores, all wait for the thread that does not get it: on two cores, beside one busy loop, two threads
were slower than one. So there are as many as the others leave cores free.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from megatron_model.util.others import OthersMeter
from megatron_model.util.text import plural

LOOK_SECONDS = 2.0
"""How often the machine is looked at."""
ROOM = 0.3
"""Share of a core that others may use of one that a thread is counted on."""


def threads_beside(cores: int, free: float) -> int:
    """Return how many threads there are to be.

    Args:
        cores: that this process may use.
        free: how many other processes leave, of those that all share.
    """
    return max(1, min(cores, int(free + ROOM)))


class ThreadKeeper:
    """Keeps the number of threads of the thread that asks; to be asked between two steps.

    Args:
        cores: that this process may use.
        clock: seconds; passed in by tests.
        meter: what others use.
        use: takes the number of threads.
    """

    def __init__(
        self,
        cores: int,
        *,
        clock: Callable[[], float],
        meter: OthersMeter | None = None,
        use: Callable[[int], object] = torch.set_num_threads,
    ) -> None:
        self._cores = cores
        self._clock = clock
        self._meter = meter or OthersMeter()
        self._use = use
        self._next = clock()
        self._wanted = 0
        """What the last look would have changed it to; 0: nothing."""

    def look(self, threads: int) -> str:
        """Change the number of `threads` if two looks in a row agree; return what to say of it."""
        if self._clock() < self._next:
            return ""
        others = self._meter.cores()
        if others is None:
            return ""
        self._next = self._clock() + LOOK_SECONDS
        wanted = threads_beside(self._cores, self._meter.there - others)
        # Another program may only have started up; what takes long is seen again.
        before, self._wanted = self._wanted, wanted if wanted != threads else 0
        if wanted == threads or before != wanted:
            return ""
        self._wanted = 0
        self._use(wanted)
        use = f"others use {others:.1f} of {plural(self._meter.there, 'core')}"
        busy = (
            f"the machine is busy ({use})" if wanted < threads else f"there is room again ({use})"
        )
        return f"{busy}: steps are computed by {plural(wanted, 'thread')} from now on"
