"""Whole updates, gradients alone and the loss of blocks, by the fused passes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from megatron_model.config.fields import TrainingConfig
from megatron_model.model.modern import ModernTransformer
from megatron_model.model.size import MIXED_BEFORE
from megatron_model.training.fused.library import Kernel, Library
from megatron_model.training.fused.model_pass import ModelPass, Named
from megatron_model.training.loss import BlockLoss
from megatron_model.training.muon import (
    BETAS,
    MATRICES,
    MOMENTUM,
    MuonOptimizer,
    iterate,
    iteration_dtype,
    rates_at,
    step_sizes,
)
from megatron_model.training.nonfinite import are_finite
from megatron_model.training.optimizer import Optimizer

LARGEST_DEPTH = 4096
"""Width of a head up to which no exponential of a score overflows, whose root bounds it."""
DTYPES = (torch.float32, torch.bfloat16)


def serves(model: nn.Module, dtype: torch.dtype) -> bool:
    """Whether this model's passes are those that are written out: the modern one, on a CPU."""
    return (
        isinstance(model, ModernTransformer)
        and dtype in DTYPES
        and all(p.device.type == "cpu" and p.dtype == torch.float32 for p in model.parameters())
        and all(p.is_contiguous() for p in model.parameters())
        and model.attention_mix.size(1) == MIXED_BEFORE == 2
        and model.attention.size(-1) // model.heads <= LARGEST_DEPTH
    )


class FusedGradients:
    """Gradients of the mean loss over a batch, which is computed in parts.

    Args:
        library: the compiled kernels.
        model: one that is served.
        dtype: of what the matrix products read.
        micro_batch: sequences that are worked on at once.
        seed: of the run; decides with the number of the update what is dropped.
    """

    def __init__(
        self,
        library: Library,
        model: ModernTransformer,
        dtype: torch.dtype,
        *,
        micro_batch: int,
        seed: int = 0,
    ) -> None:
        self._library, self._model, self._dtype = library, model, dtype
        self._micro_batch, self._seed = micro_batch, seed
        parameters = dict(model.named_parameters())
        self.with_loss = torch.zeros(sum(value.numel() for value in parameters.values()) + 1)
        """All gradients, one parameter's after the other's, and the share of the mean loss."""
        self.flat = self.with_loss[:-1]
        self.named = _views(self.flat, parameters)
        self._part = self.flat
        self._passes: dict[tuple[int, int], ModelPass] = {}

    def __call__(
        self,
        number: int,
        inputs: Tensor,
        targets: Tensor,
        *,
        sequences: int = 0,
        factor: float = 1.0,
        rank: int = 0,
    ) -> Tensor:
        """Write the gradients of these sequences' share of the mean loss; return that share.

        Args:
            number: of the update.
            inputs, targets: the sequences (B, T).
            sequences: how many the mean is over; 0: those that are given.
            factor: the gradients are multiplied by it, the loss is not.
            rank: of this process among those that train together, who drop each its own.
        """
        several = len(inputs) > self._micro_batch
        if several and self._part is self.flat:
            self._part, self._passes = torch.zeros_like(self.flat), {}
        if several or not len(inputs):
            self.flat.zero_()
        total = 0.0
        count = (sequences or len(inputs)) * inputs.size(1)
        for first in range(0, len(inputs), self._micro_batch):
            part = slice(first, first + self._micro_batch)
            losses = self._pass(inputs[part]).learn(
                inputs[part],
                targets[part],
                factor=factor / count,
                seed=hash((self._seed, number, first, rank)),
            )
            total += float(losses.sum(dtype=torch.float64)) / count
            if self._part is not self.flat:
                self.flat.add_(self._part)
        self.with_loss[-1] = total
        return self.with_loss[-1].clone()

    def _pass(self, inputs: Tensor) -> ModelPass:
        """Return the pass for this shape; a step has one, and a smaller one for what is left."""
        rows, length = inputs.shape
        if (rows, length) not in self._passes:
            gradients = _views(self._part, dict(self._model.named_parameters()))
            self._passes[rows, length] = ModelPass(
                self._library, self._model, rows, length, self._dtype, gradients
            )
        return self._passes[rows, length]


class FusedMuon:
    """The update of `MuonOptimizer`, on its state and its model's parameters where they lie."""

    def __init__(
        self, library: Library, model: nn.Module, optimizer: MuonOptimizer, gradients: Named
    ) -> None:
        self._library, self._optimizer, self._gradients = library, optimizer, gradients
        self._parameters = {name: value.detach() for name, value in model.named_parameters()}
        self._dtype = iteration_dtype(optimizer.config, torch.device("cpu"))
        self._state: Named = {}
        self._matrices: list[tuple[Kernel, Kernel, Tensor, Tensor]] = []
        self._rest: list[Kernel] = []

    def __call__(self, number: int, scale: float, factor: float) -> None:
        """Do update `number` with `scale` times the peak rates and `factor` times the gradients."""
        self._follow_state()
        config = self._optimizer.config
        rates = rates_at(config, number, scale).tolist()
        muon_rate, rate, correction1, correction2 = rates
        for momentum, apply, before, after in self._matrices:
            momentum.arguments.factor = factor
            momentum()
            after.copy_(iterate(before))
            apply.arguments.rate = muon_rate
            apply.arguments.decay = muon_rate * config.weight_decay
            apply()
        for kernel in self._rest:
            kernel.arguments.factor, kernel.arguments.rate = factor, rate
            kernel.arguments.correction1 = correction1
            kernel.arguments.correction2 = correction2
            kernel()

    def _follow_state(self) -> None:
        """Bind the kernels to the optimizer's state, unless they are."""
        state = self._optimizer.state_tensors()
        if self._state and all(self._state[name] is value for name, value in state.items()):
            return
        self._state, self._matrices, self._rest = state, [], []
        for name, value in self._parameters.items():
            if name in MATRICES:
                self._matrices.append(self._bound_matrices(name, value))
            else:
                self._rest.append(self._bound_rest(name, value))

    def _bound_matrices(self, name: str, stack: Tensor) -> tuple[Kernel, Kernel, Tensor, Tensor]:
        layers, kinds, rows, columns = stack.shape
        before = torch.empty(layers * kinds, rows, columns, dtype=self._dtype)
        after = torch.empty_like(before)
        momentum = self._library.bind(
            "momentum",
            dtype=self._dtype,
            parts=layers * kinds,
            size=rows * columns,
            gradient=self._gradients[name],
            average=self._state[f"momentum/{name}"],
            out=before,
            factor=1.0,
            keep=MOMENTUM,
        )
        apply = self._library.bind(
            "apply",
            dtype=self._dtype,
            parts=layers * kinds,
            size=rows * columns,
            kinds=kinds,
            weights=stack,
            change=after,
            sizes=torch.tensor(step_sizes(name, stack)),
            rate=0.0,
            decay=0.0,
        )
        return momentum, apply, before, after

    def _bound_rest(self, name: str, value: Tensor) -> Kernel:
        chunk = 1 << 14
        return self._library.bind(
            "adamw",
            parts=-(-value.numel() // chunk),
            count=value.numel(),
            chunk=chunk,
            weights=value,
            gradient=self._gradients[name],
            first=self._state[f"first/{name}"],
            second=self._state[f"second/{name}"],
            factor=1.0,
            rate=0.0,
            beta1=BETAS[0],
            beta2=BETAS[1],
            correction1=1.0,
            correction2=1.0,
        )


def fused_step(
    library: Library,
    model: ModernTransformer,
    optimizer: Optimizer,
    config: TrainingConfig,
    *,
    dtype: torch.dtype,
    micro_batch: int,
) -> Callable[[int, float, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the update whose passes, and whose Muon, are the fused ones.

    The weights are updated in place, unless loss or gradient norm is NaN or infinity.
    """
    gradients = FusedGradients(library, model, dtype, micro_batch=micro_batch, seed=config.seed)
    update: Callable[[int, float, float], None] | None = None
    if isinstance(optimizer, MuonOptimizer):
        update = FusedMuon(library, model, optimizer, gradients.named)
    parameters = list(model.named_parameters())

    @torch.no_grad()
    def step(number: int, scale: float, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        loss = gradients(number, inputs, targets)
        norm = torch.linalg.vector_norm(gradients.flat)
        factor = 1.0
        if config.gradient_clip:  # as clip_grad_norm_ does
            factor = min(1.0, config.gradient_clip / (float(norm) + 1e-6))
        good = are_finite(loss, norm)
        if update is None:
            if factor < 1.0:
                gradients.flat.mul_(factor)
            for name, parameter in parameters:
                parameter.grad = gradients.named[name]
            optimizer.step(number, scale, good)
        elif bool(good):
            update(number, scale, factor)
        return loss, norm

    return step


def fused_loss(library: Library, model: ModernTransformer, dtype: torch.dtype) -> BlockLoss:
    """Return the summed loss of blocks."""
    passes: dict[tuple[int, int], ModelPass] = {}

    @torch.no_grad()
    def loss(inputs: Tensor, targets: Tensor) -> Tensor:
        rows, length = inputs.shape
        if (rows, length) not in passes:
            if len(passes) > 1:  # the last blocks of a split, of another one than now
                passes.popitem()
            passes[rows, length] = ModelPass(library, model, rows, length, dtype)
        losses = passes[rows, length].losses_of(inputs, targets)
        return losses.sum(dtype=torch.float64).float()

    return loss


def _views(flat: Tensor, parameters: Mapping[str, Tensor]) -> Named:
    sizes = [value.numel() for value in parameters.values()]
    pieces = torch.split(flat, sizes)
    return {
        name: piece.view_as(value)
        for (name, value), piece in zip(parameters.items(), pieces, strict=True)
    }
