"""What computes: a model, its optimizer and its batches; takes one step, measures one loss.

The trainer says when; nothing here knows of schedules, reports or files.
"""

from __future__ import annotations

import contextlib
import math
import os
import textwrap
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.data.batches import Batches, TokenArray
from megatron_model.device import (
    DeviceInfo,
    available_cores,
    choose_device,
    choose_precision,
    measured_device,
)
from megatron_model.events.schema import Event, Notice, PhaseChanged, RankMeasured, WorkProgress
from megatron_model.model.factory import empty_model
from megatron_model.planning.compile_choice import Choice, choose, cost_of_each, is_ready, obstacle
from megatron_model.training.computation import Computations, LocalComputations, Way
from megatron_model.training.fused.library import build_library
from megatron_model.training.graph_step import GraphStep
from megatron_model.training.loss import (
    BlockLoss,
    characters_at_once,
    eager_loss,
    evaluate_steps,
)
from megatron_model.training.model_store import ModelStore, Named, WholeModel
from megatron_model.training.nonfinite import is_out_of_memory
from megatron_model.training.optimizer import build_optimizer
from megatron_model.training.pace import Pace
from megatron_model.training.start import started_model
from megatron_model.training.state import HowComputed
from megatron_model.training.step import Step
from megatron_model.util.c_library import LIMIT_SECONDS
from megatron_model.util.library_store import place
from megatron_model.util.recording import train_here
from megatron_model.util.text import plural, safe

LONGEST_REASON = 160
"""Characters of what a compiler said; some print their whole command line."""
COMPILING_SHARE = 0.5
"""Of what is left of a time budget, the part that compiling may take: the rest is for steps."""

Validate: TypeAlias = Callable[[BlockLoss], Generator[float, None, float]]
"""Yields the share done, returns the mean loss over the whole validation split."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """What a learner is made of; see `build_learner`, and its like for several processes."""

    config: RunConfig
    device: torch.device
    dtype: torch.dtype
    state: ModelStore
    batches: Batches
    micro_batch: int
    """Sequences computed at a time."""
    choice: Choice
    """Whether the steps are to be compiled."""
    computations: Computations
    validate: Validate
    ranks: int = 1
    """Processes that train together."""
    records: bool = False
    """Whether steps are recorded once and then repeated: on a card, by one process."""


class Learner:
    """One model on one device, made of `parts`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._state = parts.state
        self.config = parts.config
        self.device = parts.device
        self.dtype = parts.dtype
        self.ranks = parts.ranks
        self.micro_batch = parts.micro_batch
        self.compiled = parts.choice.compiles
        self._why_uncompiled = parts.choice.why_not
        """Not yet reported."""
        self._step: Step | None = None
        self._block_loss = eager_loss(self.model, self.dtype)
        self._records = parts.records
        self._untried = False
        """Whether what is compiled or recorded in the first step is still to be."""
        self._notices: list[str] = []
        self._pace = Pace() if self.device.type == "cuda" else None
        if self._pace is not None:
            train_here(self)
        self._on_host: nn.Module | None = None
        """A copy to write with, while a device is busy training."""

    @property
    def model(self) -> nn.Module:
        """The model in training."""
        return self._state.model

    def prepare(self, step: int, seconds_left: float = math.inf) -> Generator[Event, None, None]:
        """Get ready for the steps after `step`; compile them first where that pays.

        Args:
            step: how many were taken.
            seconds_left: of the time budget.
        """
        yield from self._say_what_compiling_lacks(step, seconds_left)
        if self._compiles_ahead:
            why = yield from self._compile(step, seconds_left)
            why = why or self._compute_by_kernels()
            if not why:
                return
            self.compiled = False
            yield self._did_not_compile(step, why)
        if self.compiled:
            yield PhaseChanged(step=step, phase="compiling")
        self._compute_by_torch()
        yield from self._record_ahead(step)

    def _record_ahead(self, step: int) -> Generator[Event, None, None]:
        """Compile and record before the first step, where steps are recorded."""
        while isinstance(self._step, GraphStep) and self._untried:
            no_room = False
            try:
                self._step.prepare(*self._parts.batches.get(step))
                self._untried = False
            except Exception as error:  # a compiler, and what it starts, may fail in any way
                no_room = is_out_of_memory(error) and self.can_halve_micro_batch()
                if not no_room:
                    if is_out_of_memory(error):
                        raise
                    self._fall_back(error)
            if no_room:  # outside: what the error holds on to is free by now
                self.halve_micro_batch()
                yield Notice(step=step, text=self.parts_notice())
            for text in self.take_notices():
                yield Notice(step=step, text=text)

    @property
    def _compiles_ahead(self) -> bool:
        return self.compiled and self.device.type == "cpu"

    def _say_what_compiling_lacks(
        self, step: int, seconds_left: float
    ) -> Generator[Event, None, None]:
        """See once more, with the time that is left, whether the steps can be compiled."""
        if self.compiled:
            self._why_uncompiled = obstacle(
                self.config,
                device=self.device.type,
                ready=is_ready,
                seconds_left=seconds_left,
            )
            self.compiled = not self._why_uncompiled
        why, self._why_uncompiled = self._why_uncompiled, ""
        if why:
            yield Notice(step=step, text=f"the steps are not compiled: {why}")

    def _compile(self, step: int, seconds_left: float) -> Generator[Event, None, str]:
        """Compile the kernels, if need be; returns why that cannot be, or nothing."""
        if is_ready():
            return ""
        if notice := place().notice:
            yield Notice(step=step, text=notice)
        yield PhaseChanged(step=step, phase="compiling")
        building = build_library(min(LIMIT_SECONDS, COMPILING_SHARE * seconds_left))
        while True:
            try:
                share = next(building)
            except StopIteration as end:
                return str(end.value)
            yield WorkProgress(step=step, share=share)

    @staticmethod
    def _did_not_compile(step: int, why: str) -> Notice:
        text = f"compiling did not work here ({why}); training goes on without"
        return Notice(step=step, text=text)

    def _compute_by_kernels(self) -> str:
        """Compute with the compiled kernels from now on; returns why that cannot be, or nothing."""
        try:
            self._compute("fused")
        except OSError as error:
            return safe(str(error), one_line=True)
        return ""

    def _compute_by_torch(self) -> None:
        """Compute with torch's operations from now on, compiled and recorded when first used."""
        if self.compiled and self.device.type != "cpu":
            self._compute("torch.compile")
        else:
            self._compute("recorded" if self._records else "eager")

    def _compute(self, way: Way) -> None:
        self._step, self._block_loss = self._parts.computations.make(
            way, dtype=self.dtype, micro_batch=self.micro_batch
        )
        self._untried = way in ("torch.compile", "recorded")

    def change(self, config: RunConfig) -> None:
        """Go on with other rates from the next step on."""
        self.config = config
        self._state.optimizer.config = config.training

    def batch(self, number: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return what update `number`, to be taken with `scale` next, reads: (B, T) twice."""
        if self.config.model.dropout:
            # Reseeded at every step, so that a resume needs no generator state.
            torch.manual_seed(self.config.training.seed + 1_000_003 * (number + 1))
        return self._parts.batches.get(number)

    def step(
        self, number: int, scale: float, inputs: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Take update `number` with `scale` times the peak rates; return loss and gradient norm.

        Nothing here waits for the device.
        """
        assert self._step is not None
        if self._pace is not None:
            self._pace.wait()
        while self._untried:
            try:
                taken = self._step(number, scale, inputs, targets)
            except Exception as error:  # a compiler, and what it starts, may fail in any way
                if is_out_of_memory(error):
                    raise
                self._fall_back(error)
            else:
                self._untried = False
                break
        else:
            taken = self._step(number, scale, inputs, targets)
        if self._pace is not None:
            self._pace.mark()
        return taken

    def _fall_back(self, error: Exception) -> None:
        """Give up compiling, or else recording; the weights have not changed, they do so last."""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        why = textwrap.shorten(safe(reason, one_line=True), LONGEST_REASON)
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.compiled:
            self._notices.append(self._did_not_compile(0, why).text)
            self.compiled = False
        else:
            self._notices.append(f"steps cannot be recorded here ({why}); training is slower")
            self._records = False
        self._compute_by_torch()

    def take_notices(self) -> list[str]:
        """Return the notices about the last step, once."""
        notices, self._notices = self._notices, []
        return notices

    def can_halve_micro_batch(self) -> bool:
        """Whether the batch can be computed in smaller parts than now."""
        return self.micro_batch > 1

    def halve_micro_batch(self) -> None:
        """Compute the batch in smaller parts from now on; nothing of the step has happened."""
        for parameter in self.model.parameters():
            parameter.grad = None
        self._step = None  # what it recorded holds memory
        self.micro_batch = math.ceil(self.micro_batch / 2)
        if self.device.type == "cpu":
            self.compiled = False
        self._compute_by_torch()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def parts_notice(self) -> str:
        """Say that the batch is computed in parts, because memory was out."""
        return (
            f"out of memory: the batch of {self.config.training.batch_size} is computed "
            f"{plural(self.micro_batch, 'sequence')} at a time from now on"
        )

    def validate(self) -> Generator[float, None, float]:
        """Yield the share done, return the mean loss over the whole validation split."""
        return self._parts.validate(self._block_loss)

    def inference_model(self) -> nn.Module:
        """Return the model as it is now, whole, to write with.

        Of a model on an accelerator a copy on the CPU: character by character that is faster, and
        does not wait behind the steps.
        """
        model = self._state.inference_model()
        if self.device.type == "cpu":
            return model
        if self._on_host is None:
            vocab_size = int(model.vocab_size)  # type: ignore[arg-type]
            self._on_host = empty_model(self.config.model, vocab_size)
            self._on_host.eval().requires_grad_(False)
        self._on_host.load_state_dict(model.state_dict())
        return self._on_host

    def weights(self) -> Named:
        """Return the model's weights by name."""
        return self._state.weights()

    def optimizer_state(self) -> Named:
        """Return every tensor of the optimizer's state by name."""
        return self._state.optimizer_state()

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinity."""
        return self._state.is_finite()

    def scalars(self) -> HowComputed:
        """Return what decides how steps are computed, for an exact resume."""
        return HowComputed(
            ranks=self.ranks,
            micro_batch=self.micro_batch,
            compiled=self.compiled,
            precision=str(self.dtype).removeprefix("torch."),
            threads=torch.get_num_threads(),
        )

    def load(self, weights: Named, optimizer: Named, how: HowComputed) -> None:
        """Go back to a saved state, which fits: see `check_fits`."""
        self._state.load(weights, optimizer)
        self._parts.computations.reset()
        alike = how.ranks == self.ranks
        if alike:
            # Another split of the batch would add up in another order, and round differently.
            self.micro_batch = how.micro_batch
            self.compiled = how.compiled
        # Auto is decided by a measurement that may come out otherwise on another day.
        if self.config.training.precision == "auto":
            self.dtype = getattr(torch, how.precision)
        self._block_loss = eager_loss(self.model, self.dtype)
        if alike and not self.config.training.threads:
            torch.set_num_threads(min(how.threads, available_cores()))

    def measure_ranks(self) -> list[RankMeasured]:
        """Return how each of the processes that train together does; none where one does alone."""
        return []

    def finish(self) -> None:
        """Let everything go that works for this learner; nothing is computed after it."""


def build_learner(
    config: RunConfig,
    vocab_size: int,
    train: TokenArray,
    validation: TokenArray,
    *,
    planned: RunConfig | None = None,
) -> Learner:
    """Return a learner that works alone.

    Args:
        config: what was asked.
        vocab_size: different characters.
        train, validation: the token arrays of the two splits.
        planned: the run whose way of computing is to be measured, where `config` is a part of it.
    """
    device = choose_device(config.training.device)
    if device.type == "cuda":
        set_determinism(config.training.deterministic == "on")
    dtype = choose_precision(config.training.precision, device)
    about = describe(device, dtype)  # while what is free is not the model's yet
    model = started_model(config, vocab_size, train).to(device)
    optimizer = build_optimizer(model, config.training)
    cost = cost_of_each(config, vocab_size, about, ranks=1, here=1)

    at_once = characters_at_once(device, cost.micro_batch * config.sequence_length)

    def validate(block_loss: BlockLoss) -> Generator[float, None, float]:
        return evaluate_steps(
            model,
            validation,
            block_size=config.model.block_size,
            device=device,
            block_loss=block_loss,
            at_once=at_once,
        )

    if planned is not None:
        cost = cost_of_each(planned, vocab_size, about, ranks=1, here=1)

    return Learner(
        Parts(
            config=config,
            device=device,
            dtype=dtype,
            state=WholeModel(model, optimizer),
            batches=make_batches(config, vocab_size, train, device),
            micro_batch=cost.micro_batch,
            choice=choose(planned or config, cost, device=device.type, ready=is_ready),
            computations=LocalComputations(model, optimizer, config),
            validate=validate,
            records=device.type == "cuda",
        )
    )


def warm_up(config: RunConfig, vocab_size: int) -> None:
    """Start a card, and compile for it, while another process still trains the run on it.

    A single layer is enough, as all of them are alike, and leaves the other one its memory. What
    fails here is tried again when it counts.
    """
    if choose_device(config.training.device).type != "cuda":
        return
    alone = with_settings(config, {"model.layers": 1, "training.start": "random"})
    rows = config.training.batch_size * config.sequence_length
    tokens = np.zeros(4 * config.model.block_size + 2 * rows, dtype=np.uint8)
    with contextlib.suppress(RuntimeError):
        for _ in build_learner(alone, vocab_size, tokens, tokens, planned=config).prepare(0):
            pass
    torch.cuda.empty_cache()  # the other one may need it


def set_determinism(wanted: bool) -> None:
    """Have a card compute the same twice to the last bit, or not: slower, as fewer kernels serve.

    For the whole process, and before its first product on a card.
    """
    if wanted:
        # Asked for by cuBLAS, which otherwise chooses by what other streams do.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(wanted)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def describe(device: torch.device, dtype: torch.dtype) -> DeviceInfo:
    """Return what is known of a device, its matrix rate in this arithmetic too."""
    return measured_device(str(device), str(dtype).removeprefix("torch."))


def make_batches(
    config: RunConfig,
    vocab_size: int,
    train: TokenArray,
    device: torch.device,
    share: slice = slice(None),
) -> Batches:
    """Return the batches of a run; of each step the sequences of one `share`."""
    return Batches(
        train,
        length=config.sequence_length,
        batch_size=config.training.batch_size,
        seed=config.training.seed,
        device=device,
        token_dropout=config.training.token_dropout,
        blank=vocab_size,
        rows=share,
    )
