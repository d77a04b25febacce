"""Muon for the layers' matrices and AdamW for the rest, as one pure function of tensors.

Rates arrive as a tensor, so that a changing learning rate compiles nothing anew. `fused.step` does
the same in place, with the constants that stand here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from megatron_model.config.fields import TrainingConfig
from megatron_model.device import cpu_computes_bfloat16

Named = dict[str, Tensor]

BETAS = (0.8, 0.99)
MOMENTUM = 0.8
ITERATIONS = 5
RATES = 4
"""How many numbers `rates_at` returns."""
_QUINTIC = (3.4445, -4.7750, 2.0315)

MATRICES = ("attention", "feed_forward")
"""The parameters that hold stacks of matrices, (..., rows, columns)."""


def initial_state(parameters: Mapping[str, Tensor]) -> Named:
    """Return the state before the first update: all zeros."""
    state = {}
    for name, value in parameters.items():
        for kind in ("momentum",) if name in MATRICES else ("first", "second"):
            state[f"{kind}/{name}"] = torch.zeros_like(value, memory_format=torch.contiguous_format)
    return state


def rates_at(config: TrainingConfig, step: int, scale: float) -> Tensor:
    """Return what changes from update to update, (RATES,) float32 on the CPU.

    Muon's rate, AdamW's rate, and AdamW's two bias corrections.
    """
    return torch.tensor(
        [
            config.muon_learning_rate * scale,
            config.learning_rate * scale,
            1.0 - BETAS[0] ** (step + 1),
            1.0 - BETAS[1] ** (step + 1),
        ]
    )


def update(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    rates: Tensor,
    weight_decay: float,
    *,
    dtype: torch.dtype = torch.bfloat16,
    orthogonal: Callable[[Tensor], Tensor] | None = None,
    parts: int = 1,
) -> tuple[Named, Named]:
    """Return the parameters and the state after one update; nothing is changed in place.

    `dtype` is the arithmetic in which matrices are orthogonalised. Where several processes share
    the work `orthogonal` takes the place of `orthogonalise`, and `parts` tells among how many of
    them the rows of each matrix are divided.
    """
    muon_rate, adamw_rate, correction1, correction2 = rates.unbind()
    new_parameters: Named = {}
    new_state: Named = {}
    for name, value in parameters.items():
        gradient = gradients[name]
        if name in MATRICES:
            average = state[f"momentum/{name}"] * MOMENTUM + gradient * (1.0 - MOMENTUM)
            change = gradient * (1.0 - MOMENTUM) + average * MOMENTUM
            change = orthogonal(change) if orthogonal else orthogonalise(change, dtype=dtype)
            sizes = step_sizes(name, value, parts=parts)
            if sizes != [1.0] * len(sizes):
                change = torch.stack([change[:, i] * by for i, by in enumerate(sizes)], dim=1)
            decayed = value * (1.0 - muon_rate * weight_decay) if weight_decay else value
            new_parameters[name] = decayed - muon_rate * change
            new_state[f"momentum/{name}"] = average
        else:
            first = state[f"first/{name}"] * BETAS[0] + gradient * (1.0 - BETAS[0])
            second = state[f"second/{name}"] * BETAS[1] + gradient.square() * (1.0 - BETAS[1])
            size = (second / correction2).sqrt() + 1e-10
            new_parameters[name] = value - adamw_rate * (first / correction1) / size
            new_state[f"first/{name}"], new_state[f"second/{name}"] = first, second
    return new_parameters, new_state


@torch.no_grad()
def update_in_place(
    parameters: Mapping[str, Tensor],
    gradients: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    rates: Tensor,
    weight_decay: float,
    finite: Tensor,
    *,
    dtype: torch.dtype,
    orthogonal: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Do what `update` does to the tensors themselves, unless `finite` is false.

    For accelerators: decided there, with a third of the traffic, on the same tensors each time.
    The gradients are overwritten.
    """
    taken = finite.float()
    muon_rate, adamw_rate = (rates[:2] * taken).unbind()
    correction1, correction2 = rates[2:].unbind()
    for name, value in parameters.items():
        gradient = gradients[name].masked_fill_(~finite, 0.0)
        if name in MATRICES:
            average = state[f"momentum/{name}"].lerp_(gradient, taken * (1.0 - MOMENTUM))
            change = torch.lerp(gradient, average, MOMENTUM)
            change = orthogonal(change) if orthogonal else orthogonalise(change, dtype=dtype)
            sizes = step_sizes(name, value)
            if weight_decay:
                value.mul_(1.0 - muon_rate * weight_decay)
            for kind, size in enumerate(sizes):
                value[:, kind].addcmul_(change[:, kind], muon_rate, value=-size)
        else:
            first = state[f"first/{name}"].lerp_(gradient, taken * (1.0 - BETAS[0]))
            second = state[f"second/{name}"].lerp_(gradient.square(), taken * (1.0 - BETAS[1]))
            change = first / ((second / correction2).sqrt() + 1e-10)
            value.addcmul_(change, adamw_rate / correction1, value=-1.0)


def step_sizes(name: str, stack: Tensor, *, parts: int = 1) -> list[float]:
    """Return how much larger the step of each matrix of a layer is, by its place in the stack.

    `parts` tells among how many processes the rows of each matrix are divided.
    """
    # A tall matrix needs larger steps for the same change of what it puts out; the second
    # feed-forward matrix is kept transposed and is wide in truth.
    if name == "feed_forward":
        return [max(1.0, parts * stack.size(-2) / stack.size(-1)) ** 0.5, 1.0]
    return [1.0] * stack.size(1)


def iteration_dtype(config: TrainingConfig, device: torch.device) -> torch.dtype:
    """Return the arithmetic in which matrices are orthogonalised: the one asked for, if it is fast.

    Processors without bfloat16 emulate it, at a twentieth of the speed of float32.
    """
    if device.type == "cpu" and not cpu_computes_bfloat16():
        return torch.float32
    asked: torch.dtype = getattr(torch, config.muon_precision)
    return asked


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Send a small tensor of the host to a device; nothing waits for it."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def orthogonalise(
    matrices: Tensor, *, iterations: int = ITERATIONS, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Bring the singular values of each matrix (..., rows, columns) near one.

    See `iterate`, which gets them with a norm of one and in `dtype`.
    """
    x = matrices.flatten(0, -3).to(dtype)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
    return iterate(x, iterations=iterations).reshape(matrices.shape).float()


def iterate(x: Tensor, *, iterations: int = ITERATIONS) -> Tensor:
    """Bring the singular values of matrices (N, rows, columns) of norm one near one.

    The quintic Newton-Schulz iteration of Muon (Jordan et al. 2024):
    ``X <- aX + (bA + cA^2) X`` with ``A = X X^T``, or where X is tall, ``X (bA + cA^2)`` with
    ``A = X^T X``: the same, by smaller products.
    """
    a, b, c = _QUINTIC
    tall = x.size(-2) > x.size(-1)
    for _ in range(iterations):
        gram = torch.bmm(x.mT, x) if tall else torch.bmm(x, x.mT)
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, factor, beta=a) if tall else torch.baddbmm(x, factor, x, beta=a)
    return x


class MuonOptimizer:
    """`update` with its state, applied to a model's parameters in place."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        self.config = config
        self.orthogonal: Callable[[Tensor], Tensor] | None = None
        """How the work of `orthogonalise` is shared, where several processes train together."""
        self._model = model
        self._state = initial_state(dict(model.named_parameters()))
        self._device = next(model.parameters()).device
        # Before the first update: no rates, and nothing to correct.
        self._rates = torch.tensor([0.0, 0.0, 1.0, 1.0], device=self._device)

    def step(self, step: int, scale: float, finite: Tensor | None = None) -> None:
        """Do update number `step` with `scale` times the peak rates, and drop the gradients.

        Where `finite` is false nothing changes.
        """
        self.set_rates(step, scale)
        self.apply(finite)

    def set_rates(self, step: int, scale: float) -> None:
        """Put the rates of update number `step` where `apply` reads them."""
        self._rates.copy_(on_device(rates_at(self.config, step, scale), self._device))

    @torch.no_grad()
    def apply(self, finite: Tensor | None = None) -> None:
        """Do an update with the rates that are set, and drop the gradients.

        Where `finite` is false nothing changes. On an accelerator this is a fixed sequence of
        operations on the same tensors, which can be recorded.
        """
        parameters = dict(self._model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        dtype = iteration_dtype(self.config, self._device)
        if self._device.type != "cpu":
            update_in_place(
                {name: parameter.detach() for name, parameter in parameters.items()},
                gradients,
                self._state,
                self._rates,
                self.config.weight_decay,
                torch.ones((), dtype=torch.bool, device=self._device) if finite is None else finite,
                dtype=dtype,
                orthogonal=self.orthogonal,
            )
        elif finite is None or bool(finite):
            new, state = update(
                parameters,
                gradients,
                self._state,
                self._rates,
                self.config.weight_decay,
                dtype=dtype,
                orthogonal=self.orthogonal,
            )
            self.take(new, state)
        for parameter in parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def take(self, parameters: Mapping[str, Tensor], state: Named) -> None:
        """Take over the result of an update, the parameters in place."""
        for name, parameter in self._model.named_parameters():
            parameter.copy_(parameters[name])
        self._state = state

    def state_tensors(self) -> Named:
        """Return every tensor of the state as ``<kind>/<parameter name>``."""
        return dict(self._state)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state made by `state_tensors`."""
        for name, value in self._state.items():
            value.copy_(tensors[name])
