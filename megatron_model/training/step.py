"""One optimizer update as torch computes it; `fused.step` does the same by compiled kernels.

Neither waits for the device: loss and gradient norm are returned as tensors.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch
from torch import Tensor, nn

from megatron_model.config.fields import TrainingConfig
from megatron_model.training.loss import sequence_loss
from megatron_model.training.nonfinite import are_finite
from megatron_model.training.optimizer import LocalOptimizer

Step: TypeAlias = Callable[[int, float, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From the number of the update, the share of the peak rates, inputs (B, T) and targets (B, T) to
the mean loss and the norm of its gradient; the weights are updated in place, unless one of the two
is NaN or infinity."""


def eager_step(
    model: nn.Module,
    optimizer: LocalOptimizer,
    config: TrainingConfig,
    *,
    dtype: torch.dtype,
    micro_batch: int,
) -> Step:
    """Return the update as torch computes it operation by operation.

    The batch is computed `micro_batch` sequences at a time; gradients add up to those of the
    whole batch.
    """
    work = step_work(model, optimizer, config, dtype=dtype, micro_batch=micro_batch)

    def step(number: int, scale: float, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        optimizer.set_rates(number, scale)
        return work(inputs, targets, None)

    return step


Work: TypeAlias = Callable[[Tensor, Tensor, "Tensor | None"], tuple[Tensor, Tensor]]
"""From inputs (B, T), targets (B, T) and whether the weights are to change at all, on the device,
to mean loss and norm of the gradient; with the rates that the optimizer was given before."""


def step_work(
    model: nn.Module,
    optimizer: LocalOptimizer,
    config: TrainingConfig,
    *,
    dtype: torch.dtype,
    micro_batch: int,
) -> Work:
    """Return the update without what only the host knows: the same work whatever its number."""
    parameters = list(model.parameters())

    def work(inputs: Tensor, targets: Tensor, wanted: Tensor | None) -> tuple[Tensor, Tensor]:
        total = add_gradients(model, inputs, targets, dtype=dtype, micro_batch=micro_batch)
        if config.gradient_clip:
            norm = nn.utils.clip_grad_norm_(parameters, config.gradient_clip)
        else:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
        finite = are_finite(total, norm)
        optimizer.apply(finite if wanted is None else finite & wanted)
        return total, norm.detach()

    return work


def add_gradients(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    dtype: torch.dtype,
    micro_batch: int,
    sequences: int = 0,
    factor: float = 1.0,
    part_of_many: Callable[[bool], AbstractContextManager[object]] | None = None,
) -> Tensor:
    """Add up the gradients of these sequences' share of the mean loss; return that share.

    Args:
        model: what computes the logits.
        inputs, targets: the sequences (B, T) that are worked on here.
        dtype: arithmetic of the matrix products.
        micro_batch: sequences computed at a time.
        sequences: how many the mean is over; 0: those that are given.
        factor: the gradients are multiplied by it, the loss is not.
        part_of_many: entered around each pass; told whether it is the last one.
    """
    total = torch.zeros((), device=inputs.device)
    for first in range(0, len(inputs), micro_batch):
        part = slice(first, first + micro_batch)
        last = first + micro_batch >= len(inputs)
        with part_of_many(last) if part_of_many else contextlib.nullcontext():
            with torch.autocast(inputs.device.type, dtype=dtype, enabled=dtype != torch.float32):
                logits = model(inputs[part])
            loss = sequence_loss(logits, targets[part]) * (len(logits) / (sequences or len(inputs)))
            scaled = loss if factor == 1.0 else loss * factor
            scaled.backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    return total
