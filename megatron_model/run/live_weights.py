"""The weights of a model in training, copied between two steps for somebody else to use."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from megatron_model.errors import RequestError

if TYPE_CHECKING:
    from torch import Tensor

    from megatron_model.checkpoint import LoadedModel
    from megatron_model.trainer import Trainer


@dataclass(frozen=True)
class LentWeights:
    """A copy on the host that training cannot reach, and what it cost."""

    weights: dict[str, Tensor]
    vocabulary: str
    config: Any
    step: int
    val_loss: float | None
    device: Any
    seconds: float
    """How long the training stood still for it."""

    def load(self) -> LoadedModel:
        """Build the model, ready to write, on the device that the run is trained on."""
        from megatron_model.architectures import build_model
        from megatron_model.checkpoint import LoadedModel
        from megatron_model.tokenizer import CharTokenizer

        tokenizer = CharTokenizer.from_vocabulary(self.vocabulary)
        model = build_model(self.config.model, tokenizer.vocab_size)
        model.load_state_dict(self.weights)
        model.to(self.device).eval()
        return LoadedModel(model, tokenizer, self.config, self.step, self.val_loss, self.device)


class WeightsRequest:
    """Somebody waits for the weights; the trainer answers between two steps."""

    def __init__(self) -> None:
        self._answer: queue.SimpleQueue[LentWeights | RequestError] = queue.SimpleQueue()

    def answer(self, trainer: Trainer) -> None:
        """Hand over a copy of the weights as they are now; without room for one, say so."""
        began = time.perf_counter()
        try:
            weights = {
                name: value.detach().to("cpu", copy=True)
                for name, value in trainer.model.state_dict().items()
            }
        except (RuntimeError, MemoryError):  # the run must not end for somebody's curiosity
            self._answer.put(RequestError("There is no memory left for a copy of the weights."))
            return
        self._answer.put(
            LentWeights(
                weights,
                trainer.tokenizer.vocabulary,
                trainer.config,
                trainer.step,
                trainer.val_loss,
                trainer.device,
                time.perf_counter() - began,
            )
        )

    def wait(self, given_up: Callable[[], bool], seconds: float = 0.05) -> LentWeights | None:
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
