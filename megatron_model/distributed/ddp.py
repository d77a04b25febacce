"""Learners that all hold the same weights: each works on its rows of the batch (DDP).

Gradients are averaged over the ranks (DistributedDataParallel, or one sum where the fused
kernels make them), and the matrices that Muon orthogonalises are divided among them.
"""

from __future__ import annotations

import contextlib
import math
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from megatron_model.config.fields import RunConfig
from megatron_model.data.batches import TokenArray
from megatron_model.distributed.learner import (
    TeamLearner,
    averaged_step,
    common_cost,
    common_dtype,
    common_iteration_dtype,
)
from megatron_model.distributed.team import Team
from megatron_model.distributed.timer import WorkTimer
from megatron_model.distributed.validation import ValidationRounds
from megatron_model.planning.compile_choice import Choice, choose, is_ready
from megatron_model.training.computation import Computation, Way, compile_layers, load_kernels
from megatron_model.training.fused.step import FusedGradients, fused_loss
from megatron_model.training.learner import Parts, describe, make_batches
from megatron_model.training.loss import eager_loss
from megatron_model.training.model_store import WholeModel
from megatron_model.training.muon import MuonOptimizer, orthogonalise
from megatron_model.training.nonfinite import are_finite
from megatron_model.training.optimizer import Optimizer, build_optimizer
from megatron_model.training.start import started_model
from megatron_model.training.step import Step


def ddp_learner(
    config: RunConfig, vocab_size: int, train: TokenArray, validation: TokenArray, team: Team
) -> TeamLearner:
    """Return this rank's learner, which holds all weights; all ranks do this at once."""
    device = team.device(config)
    dtype = common_dtype(team, config, device)
    model = started_model(config, vocab_size, train).to(device)
    optimizer = build_optimizer(model, config.training)
    share = slice(team.rank, None, team.size)
    cost = common_cost(team, config, vocab_size, describe(device, dtype))
    own = choose(config, cost, device=device.type, ready=is_ready)
    timer = WorkTimer(device)
    rounds = ValidationRounds(
        team, model, validation, block_size=config.model.block_size, device=device
    )
    if isinstance(optimizer, MuonOptimizer):
        optimizer.orthogonal = SharedOrthogonalisation(
            team, common_iteration_dtype(team, config, device)
        )
    parts = Parts(
        config=config,
        device=device,
        dtype=dtype,
        state=WholeModel(model, optimizer),
        batches=make_batches(config, vocab_size, train, device, share),
        micro_batch=cost.micro_batch,
        choice=Choice(bool(team.broadcast_number(own.compiles)), own.why_not),
        computations=DDPComputations(model, optimizer, config, team, timer),
        validate=rounds,
        ranks=team.size,
    )
    return TeamLearner(parts, team, timer, rounds)


class DDPComputations:
    """The computations of one of several learners that hold the same weights.

    Args:
        model: the model, whole.
        optimizer: its optimizer.
        config: what was asked.
        team: the ranks.
        timer: told when the gradients of a step are made.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        config: RunConfig,
        team: Team,
        timer: WorkTimer,
    ) -> None:
        self._model = model
        self._optimizer = optimizer
        self._config = config
        self._team = team
        self._timer = timer
        self._parallel: DistributedDataParallel | None = None

    def make(self, way: Way, *, dtype: torch.dtype, micro_batch: int) -> Computation:
        """See `Computations`."""
        if way == "fused":
            library, served = load_kernels(self._model, dtype)
            gradients = FusedGradients(
                library,
                served,
                dtype,
                micro_batch=micro_batch,
                seed=self._config.training.seed,
            )
            return Computation(self._fused_step(gradients), fused_loss(library, served, dtype))
        # Kept: all ranks make it at once, but one alone may come here again.
        self._parallel = self._parallel or self._averaging()
        parallel = self._parallel

        def part_of_many(last: bool) -> AbstractContextManager[object]:
            return contextlib.nullcontext() if last else parallel.no_sync()

        compile_layers(self._model, way == "torch.compile")
        step = averaged_step(
            parallel,
            self._team,
            self._update,
            dtype=dtype,
            micro_batch=micro_batch,
            batch_size=self._config.training.batch_size,
            part_of_many=part_of_many,
        )
        return Computation(step, eager_loss(self._model, dtype))

    def reset(self) -> None:
        """See `Computations`; all ranks do this at once."""
        self._parallel = None

    def _fused_step(self, gradients: FusedGradients) -> Step:
        """Return the update whose gradients are added up over the ranks at once."""
        parameters = dict(self._model.named_parameters())
        sequences, rank = self._config.training.batch_size, self._team.rank

        def step(
            number: int, scale: float, inputs: Tensor, targets: Tensor
        ) -> tuple[Tensor, Tensor]:
            gradients(number, inputs, targets, sequences=sequences, rank=rank)
            self._timer.stop()
            self._team.all_reduce(gradients.with_loss)
            for name, parameter in parameters.items():
                parameter.grad = gradients.named[name]
            return self._update(number, scale, gradients.with_loss[-1].clone())

        return step

    def _averaging(self) -> DistributedDataParallel:
        """Return the model whose gradients are averaged over the ranks while it goes backward."""
        wrapped = DistributedDataParallel(
            self._model,
            device_ids=[self._model_device.index] if self._model_device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
        # DDP looks at annotations, and takes those that are text for wrong ones.
        wrapped.register_comm_hook(self, lambda own, bucket: own._average(bucket))
        return wrapped

    @property
    def _model_device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _average(self, bucket: Any) -> Any:
        """Average a bucket of gradients as DDP does by itself, and take note of it."""
        tensor = bucket.buffer()
        self._team.sent_bytes += tensor.numel() * tensor.element_size()
        if bucket.is_last():
            self._timer.stop()
        world: Any = dist.group.WORLD
        return allreduce_hook(world, bucket)

    def _update(self, number: int, scale: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Let the optimizer take the averaged gradients; return loss and gradient norm."""
        clip = self._config.training.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self._model.parameters(), clip).detach()
        self._optimizer.step(number, scale, are_finite(loss, norm))
        return loss, norm


class SharedOrthogonalisation:
    """Orthogonalises a stack of matrices that all ranks have, of which each does its part."""

    def __init__(self, team: Team, dtype: torch.dtype) -> None:
        self._team = team
        self._dtype = dtype

    def __call__(self, stack: Tensor) -> Tensor:
        """Return what `orthogonalise` does."""
        matrices = stack.flatten(0, -3)
        count = math.ceil(len(matrices) / self._team.size)
        part = matrices.new_zeros(count, *matrices.shape[1:], dtype=self._dtype)
        own = matrices[self._team.rank * count :][:count]
        if len(own):
            part[: len(own)] = orthogonalise(own, dtype=self._dtype)  # which loses nothing
        return self._team.all_gather(part)[: len(matrices)].float().view(stack.shape)
