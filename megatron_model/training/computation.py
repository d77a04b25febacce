"""The ways in which a learner computes a step and a loss, and the one place where they are made."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol, TypeAlias

import torch
from torch import nn

from megatron_model.config.fields import RunConfig
from megatron_model.model.classic import TransformerModel, run_block
from megatron_model.model.modern import ModernTransformer, run_layer
from megatron_model.training.fused.library import Library, load_library
from megatron_model.training.fused.step import fused_loss, fused_step, serves
from megatron_model.training.graph_step import GraphStep
from megatron_model.training.loss import BlockLoss, eager_loss
from megatron_model.training.optimizer import LocalOptimizer
from megatron_model.training.step import Step, eager_step, step_work
from megatron_model.util.recording import Record, record_on_card

Way: TypeAlias = Literal["eager", "recorded", "torch.compile", "fused"]
"""Operation by operation; recorded once, and repeated as one order to a card; with layers that
torch compiles, on a card recorded as well; or by C kernels between torch's matrix products."""


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
        record: how a card's steps are recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: LocalOptimizer,
        config: RunConfig,
        record: Record = record_on_card,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._config = config
        self._record = record
        self._recorded: GraphStep | None = None

    def make(self, way: Way, *, dtype: torch.dtype, micro_batch: int) -> Computation:
        """See `Computations`."""
        model, optimizer = self._model, self._optimizer
        training = self._config.training
        self._recorded = None
        if way == "fused":
            library, served = load_kernels(model, dtype)
            fused = fused_step(
                library, served, optimizer, training, dtype=dtype, micro_batch=micro_batch
            )
            return Computation(fused, fused_loss(library, served, dtype))
        compile_layers(model, way == "torch.compile")
        on_card = next(model.parameters()).device.type == "cuda"
        if way == "recorded" or (way == "torch.compile" and on_card):
            work = step_work(model, optimizer, training, dtype=dtype, micro_batch=micro_batch)
            self._recorded = GraphStep(work, optimizer, self._record)
            return Computation(self._recorded, eager_loss(model, dtype))
        step = eager_step(model, optimizer, training, dtype=dtype, micro_batch=micro_batch)
        return Computation(step, eager_loss(model, dtype))

    def reset(self) -> None:
        """See `Computations`."""
        if self._recorded is not None:
            self._recorded.forget()


def compile_layers(model: nn.Module, compiled: bool) -> None:
    """Have the layers of a model in training compiled, when they are first called, or not.

    All layers are alike: one of them is compiled, which takes a fraction of what the whole would.
    """
    if isinstance(model, ModernTransformer):
        layer = torch.compile(run_layer, dynamic=False) if compiled else run_layer
        model.layer = layer
    elif isinstance(model, TransformerModel):
        model.block = torch.compile(run_block, dynamic=False) if compiled else run_block


def load_kernels(model: nn.Module, dtype: torch.dtype) -> tuple[Library, ModernTransformer]:
    """Return the compiled kernels, and the model as one that they serve.

    Raises:
        OSError: they cannot be loaded, or do not serve it.
    """
    if not isinstance(model, ModernTransformer) or not serves(model, dtype):
        raise OSError("the model's numbers are of another kind")
    return load_library(), model
