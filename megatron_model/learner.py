"""What computes: a model, its optimizer and its batches; takes one step, measures one loss.

The trainer says when; nothing here knows of schedules, reports or files.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn

from megatron_model.architectures import build_model
from megatron_model.compiled import Library, can_compile, compile_all, library_loss
from megatron_model.config import RunConfig
from megatron_model.dataset import Batches, TokenArray
from megatron_model.device import available_cores, choose_device, choose_precision, describe_device
from megatron_model.evaluation import eager_loss, evaluate_steps
from megatron_model.events import Event, Noticed, PhaseChanged, RankMeasured, WorkProgress
from megatron_model.measurement import COMPILE_FROM_SECONDS
from megatron_model.muon import MuonOptimizer
from megatron_model.optimizer import Optimizer, build_optimizer
from megatron_model.preflight import Preflight, preflight
from megatron_model.steps import Step, eager_step, library_step

COMPILE_FROM_STEPS = 500
"""Steps of a run on an accelerator from which compiling its model is earned back."""

State = dict[str, Tensor]


class Learner:
    """One model on one device.

    `ranks` is the number of processes that train it together.

    Args:
        config: what was asked.
        vocab_size: different characters.
        train, validation: the token arrays of the two splits.
    """

    ranks = 1

    def __init__(
        self, config: RunConfig, vocab_size: int, train: TokenArray, validation: TokenArray
    ) -> None:
        self.config = config
        self._vocab_size = vocab_size
        self.device = self._choose_device()
        self.dtype = self._choose_dtype()
        self.validation = validation
        # The weights are drawn on the CPU, so that a seed means the same model on every device.
        torch.manual_seed(config.training.seed)
        self.model: nn.Module = self._build_model()
        self._optimizer: Optimizer = self._build_optimizer()
        self._batches = Batches(
            train,
            length=config.sequence_length,
            batch_size=config.training.batch_size,
            seed=config.training.seed,
            device=self.device,
            token_dropout=config.training.token_dropout,
            blank=vocab_size,
            rows=self._share,
        )
        self._cost = self._work_out()
        self.micro_batch = self._cost.micro_batch
        self.compiled = self._compiling_pays()
        self._step: Step | None = None
        self._block_loss = eager_loss(self.model, self.dtype)

    def _choose_device(self) -> torch.device:
        return choose_device(self.config.training.device)

    def _choose_dtype(self) -> torch.dtype:
        return choose_precision(self.config.training.precision, self.device)

    def _build_model(self) -> nn.Module:
        return build_model(self.config.model, self._vocab_size).to(self.device)

    def _build_optimizer(self) -> Optimizer:
        return build_optimizer(self.model, self.config.training)

    def _work_out(self) -> Preflight:
        """Return what this run costs here."""
        return preflight(
            self.config, vocabulary_size=self._vocab_size, device=describe_device(str(self.device))
        )

    @property
    def _share(self) -> slice:
        """Which sequences of a step are worked on here."""
        return slice(None)

    @property
    def _rows(self) -> int:
        """How many these are."""
        return len(range(self.config.training.batch_size)[self._share])

    def _libraries(self) -> tuple[Library, Library]:
        """Return the compiled step and the compiled loss, whether they are there yet or not."""
        return (
            Library("step", self.config, self._vocab_size, self.dtype),
            Library("loss", self.config, self._vocab_size, self.dtype),
        )

    def _compiling_pays(self) -> bool:
        """Whether this run's steps are to be compiled: as asked, or where it is earned back."""
        wish = self.config.training.compile
        if wish == "off" or self.micro_batch < self._rows:
            return False
        if self.device.type != "cpu":
            return wish == "on" or self.config.training.steps >= COMPILE_FROM_STEPS
        if not can_compile(self.config, self.device):
            return False
        if wish == "on" or all(library.ready for library in self._libraries()):
            return True
        return (self._cost.seconds or 0.0) >= COMPILE_FROM_SECONDS

    def prepare(self, step: int) -> Generator[Event, None, None]:
        """Get ready for the steps after `step`; compile them first where that pays."""
        if self.compiled and self.device.type == "cpu":
            libraries = self._libraries()
            if not all(library.ready for library in libraries):
                yield PhaseChanged(step=step, phase="compiling")
                for share in compile_all(libraries):
                    yield WorkProgress(step=step, share=share)
            if self._take_libraries(libraries):
                return
            self.compiled = False
            yield Noticed(step=step, text="compiling did not work here; training goes on without")
        if self.compiled:
            yield PhaseChanged(step=step, phase="compiling")
        self._step = self._eager_step()

    def _take_libraries(self, libraries: tuple[Library, Library]) -> bool:
        """Compute with these from now on, if they are there."""
        step, loss = libraries
        ready = step.ready and loss.ready
        if not ready or not isinstance(self._optimizer, MuonOptimizer):
            return False
        self._step = library_step(step, self.model, self._optimizer)
        self._block_loss = library_loss(loss, self.model, self.dtype)
        return True

    def _eager_step(self) -> Step:
        model: Any = torch.compile(self.model) if self.compiled else self.model
        return eager_step(
            model,
            self._optimizer,
            self.config.training,
            dtype=self.dtype,
            micro_batch=self.micro_batch,
        )

    def change(self, config: RunConfig) -> None:
        """Go on with other rates from the next step on."""
        self.config = config
        self._optimizer.config = config.training

    def batch(self, number: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return what update `number`, to be taken with `scale` next, reads: (B, T) twice."""
        if self.config.model.dropout:
            # Reseeded at every step, so that a resume needs no generator state.
            torch.manual_seed(self.config.training.seed + 1_000_003 * (number + 1))
        return self._batches.get(number)

    def step(
        self, number: int, scale: float, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take update `number` with `scale` times the peak rates; return loss and gradient norm.

        Nothing here waits for the device.
        """
        assert self._step is not None
        return self._step(number, scale, inputs, targets)

    def can_halve(self) -> bool:
        """Whether the batch can be gone through in smaller parts than now."""
        return self.micro_batch > 1

    def halve(self) -> None:
        """Go through the batch in smaller parts from now on; nothing of the step has happened."""
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.micro_batch = math.ceil(self.micro_batch / 2)
        self.compiled = False
        self._step = self._eager_step()

    def validate(self) -> Generator[float, None, float]:
        """Yield the share done, return the mean loss over the whole validation split."""
        return evaluate_steps(
            self.model,
            self.validation,
            block_size=self.config.model.block_size,
            device=self.device,
            block_loss=self._block_loss,
        )

    def writer(self) -> nn.Module:
        """Return the model as it is now, to write with."""
        return self.model

    def weights(self) -> State:
        """Return the model's weights by name."""
        return dict(self.model.state_dict())

    def optimizer_state(self) -> State:
        """Return every tensor of the optimizer's state by name."""
        return self._optimizer.state_tensors()

    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(weight.isfinite().all()) for weight in self.model.parameters())

    def numbers(self) -> dict[str, Any]:
        """Return what decides how steps are computed, for an exact resume."""
        return {
            "ranks": self.ranks,
            "micro_batch": self.micro_batch,
            "compiled": self.compiled,
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
        }

    def load(self, weights: State, optimizer: State, numbers: dict[str, Any]) -> None:
        """Go back to a saved state."""
        self._load_tensors(weights, optimizer)
        alike = int(numbers.get("ranks", 1)) == self.ranks
        if alike:
            # Another split of the batch would add up in another order, and round differently.
            self.micro_batch = int(numbers["micro_batch"])
            self.compiled = bool(numbers["compiled"])
        # Auto is decided by a measurement that may come out otherwise on another day.
        if self.config.training.precision == "auto":
            self.dtype = getattr(torch, numbers["precision"])
        self._block_loss = eager_loss(self.model, self.dtype)
        if alike and not self.config.training.threads:
            torch.set_num_threads(min(int(numbers["threads"]), available_cores()))

    def _load_tensors(self, weights: State, optimizer: State) -> None:
        self.model.load_state_dict(weights)
        self._optimizer.load_state_tensors(optimizer)

    def measure_ranks(self) -> list[RankMeasured]:
        """Return how each of the processes that train together does; none where one does alone."""
        return []

    def finish(self) -> None:
        """Let everything go that works for this learner; nothing is computed after it."""
