"""The weights of a model in training, copied between two steps for another thread. No torch."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from megatron_model.util.errors import RequestError

if TYPE_CHECKING:
    from megatron_model.run.checkpoint import LoadedModel, ModelState
    from megatron_model.training.trainer import Trainer


@dataclass(frozen=True)
class LiveWeights:
    """A copy of the model as it is now, and what it cost."""

    model: ModelState
    seconds: float
    """How long training waited for the copy."""

    def load(self) -> LoadedModel:
        """Build the model, ready to write: on the CPU, as the device has the run to train."""
        import torch

        return self.model.load(torch.device("cpu"))


class WeightsRequest:
    """A thread waits for the weights; the trainer answers between two steps."""

    def __init__(self) -> None:
        self._answer: queue.SimpleQueue[LiveWeights | RequestError] = queue.SimpleQueue()

    def answer(self, trainer: Trainer) -> None:
        """Hand over a copy of the weights as they are now; without room for one, say so."""
        from megatron_model.run.checkpoint import ModelState, copies_on_host

        began = time.perf_counter()
        try:
            weights = copies_on_host(trainer.model.state_dict())
        except (RuntimeError, MemoryError):  # no reason to end the run
            self._answer.put(RequestError("There is no memory left for a copy of the weights."))
            return
        model = ModelState(
            weights, trainer.tokenizer, trainer.config, trainer.step, trainer.val_loss
        )
        self._answer.put(LiveWeights(model, time.perf_counter() - began))

    def wait(self, given_up: Callable[[], bool], seconds: float = 0.05) -> LiveWeights | None:
        """Return the weights, or None if there came none before `given_up`; asked now and then.

        Raises:
            RequestError: the trainer could not copy them.
        """
        while True:
            last = given_up()  # asked first: the answer may come just before the end
            try:
                answer = self._answer.get(timeout=seconds)
            except queue.Empty:
                if last:
                    return None
                continue
            if isinstance(answer, RequestError):
                raise answer
            return answer
