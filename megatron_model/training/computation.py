"""The ways in which a learner computes a step and a loss, and the one place where they are made."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import nn

from megatron_model.config.fields import RunConfig
from megatron_model.model.modern import ModernTransformer
from megatron_model.training.fused.library import Library, load_library
from megatron_model.training.fused.step import fused_loss, fused_step, serves
from megatron_model.training.loss import BlockLoss, eager_loss
from megatron_model.training.optimizer import Optimizer
from megatron_model.training.step import Step, eager_step

Way: TypeAlias = Literal["eager", "torch.compile", "fused"]
"""Operation by operation; by code that torch compiles in the first step; or by C kernels between
torch's matrix products."""


class Computation(NamedTuple):
    """How a learner computes: an update, and the loss of some blocks."""

    step: Step
    block_loss: BlockLoss


class Computations(Protocol):
    """Makes what a learner computes with."""

    def make(self, way: Way, *, dtype: torch.dtype, micro_batch: int) -> Computation:
        """Return the step and the block loss, computed in this way.

        Raises:
            OSError: the kernels cannot be loaded, or do not serve this model.
        """

    def reset(self) -> None:
        """Keep nothing of what was made: another state was loaded."""


class LocalComputations:
    """The computations of a learner that works alone.

    Args:
        model: the model, whole.
        optimizer: its optimizer.
        config: what was asked.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, config: RunConfig) -> None:
        self._model = model
        self._optimizer = optimizer
        self._config = config

    def make(self, way: Way, *, dtype: torch.dtype, micro_batch: int) -> Computation:
        """See `Computations`."""
        model, optimizer = self._model, self._optimizer
        training = self._config.training
        if way == "fused":
            library, served = load_kernels(model, dtype)
            fused = fused_step(
                library, served, optimizer, training, dtype=dtype, micro_batch=micro_batch
            )
            return Computation(fused, fused_loss(library, served, dtype))
        computing: Any = torch.compile(model) if way == "torch.compile" else model
        step = eager_step(computing, optimizer, training, dtype=dtype, micro_batch=micro_batch)
        return Computation(step, eager_loss(model, dtype))

    def reset(self) -> None:
        """Nothing is kept here."""


def load_kernels(model: nn.Module, dtype: torch.dtype) -> tuple[Library, ModernTransformer]:
    """Return the compiled kernels, and the model as one that they serve.

    Raises:
        OSError: they cannot be loaded, or do not serve it.
    """
    if not isinstance(model, ModernTransformer) or not serves(model, dtype):
        raise OSError("the model's numbers are of another kind")
    return load_library(), model
