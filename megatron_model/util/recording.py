"""Work for a CUDA card that is recorded once and then asked for as a single order: a CUDA graph."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Protocol, TypeAlias

import torch

WARM_UPS = 3
"""Times that the work is done before it is recorded: libraries and compilers choose meanwhile."""


class Recording(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Do it once more, with what stands in its tensors now."""


Record: TypeAlias = Callable[[Callable[[], None]], Recording]
"""Does some work a few times, and records it."""


_trainers: weakref.WeakSet[object] = weakref.WeakSet()


def train_here(trainer: object) -> None:
    """Take note that `trainer` uses this process's card for as long as it lives."""
    _trainers.add(trainer)


def trained_here() -> bool:
    """Whether somebody trains on a card in this process.

    While one thread records, torch refuses the card's random numbers, and their seed, to all
    others: dropout would end the run.
    """
    return bool(_trainers)


def record_on_card(work: Callable[[], None]) -> Recording:
    """Record `work` as a CUDA graph; the random generator is left as it was.

    Raises:
        RuntimeError: it does what cannot be recorded, or memory is out.
    """
    generator = torch.cuda.get_rng_state()
    try:
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                work()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the card meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    finally:
        torch.cuda.set_rng_state(generator)
    return graph
