"""One update as a single order to a card: recorded once as a CUDA graph, then repeated.

A step is some thousand small operations. Asked for one by one they keep the host busier than the
card: on an H100 most of the time of a step of 11 million parameters was the host's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from megatron_model.training.optimizer import LocalOptimizer
from megatron_model.training.step import Work
from megatron_model.util.recording import Record, Recording


class GraphStep:
    """The update of `eager_step`, repeated as it was recorded; see `Step`.

    Loss and norm lie in the same two tensors each time: they have to be read, on the device,
    before the next step is asked for.

    Args:
        work: the update without what only the host knows.
        optimizer: takes the rates.
        record: how work is recorded.
    """

    def __init__(self, work: Work, optimizer: LocalOptimizer, record: Record) -> None:
        self._work = work
        self._optimizer = optimizer
        self._record = record
        self._recorded: _Recorded | None = None

    def __call__(
        self, number: int, scale: float, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take update `number` with `scale` times the peak rates."""
        recorded = self.prepare(inputs, targets)
        self._optimizer.set_rates(number, scale)
        recorded.inputs.copy_(inputs, non_blocking=True)
        recorded.targets.copy_(targets, non_blocking=True)
        recorded.recording.replay()
        return recorded.found[0], recorded.found[1]

    def prepare(self, inputs: Tensor, targets: Tensor) -> _Recorded:
        """Record the work for batches of this shape, unless it is; no weight changes by it."""
        if self._recorded is None or self._recorded.inputs.shape != inputs.shape:
            self._recorded = None  # its memory first
            self._recorded = self._record_for(inputs.clone(), targets.clone())
        return self._recorded

    def forget(self) -> None:
        """Record anew for the next step: tensors that were recorded are others now."""
        self._recorded = None

    def _record_for(self, inputs: Tensor, targets: Tensor) -> _Recorded:
        wanted = torch.zeros((), dtype=torch.bool, device=inputs.device)
        found: list[Tensor] = []

        def work() -> None:
            found[:] = self._work(inputs, targets, wanted)

        recording = self._record(work)
        wanted.fill_(True)
        return _Recorded(recording, inputs, targets, wanted, found)


class _Recorded(NamedTuple):
    """What was recorded, and the tensors that it reads: a graph does not keep them alive."""

    recording: Recording
    inputs: Tensor
    targets: Tensor
    wanted: Tensor
    found: list[Tensor]
    """Loss and norm."""
