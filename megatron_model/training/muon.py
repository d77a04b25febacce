"""Muon for the layers' matrices and AdamW for the rest, as one pure function of tensors.

A pure function serves twice: called step by step, and traced into one compiled graph together with
the model. Rates arrive as a tensor, so that a changing learning rate compiles nothing anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from megatron_model.config import TrainingConfig

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
            # A tall matrix needs larger steps for the same change of what it puts out; the second
            # feed-forward matrix is kept transposed and is wide in truth.
            if name == "feed_forward":
                tall = max(1.0, parts * value.size(-2) / value.size(-1)) ** 0.5
                change = torch.stack([change[:, 0] * tall, change[:, 1]], dim=1)
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


def orthogonalise(
    matrices: Tensor, *, iterations: int = ITERATIONS, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Bring the singular values of each matrix (..., rows, columns) near one.

    The quintic Newton-Schulz iteration of Muon (Jordan et al. 2024):
    ``X <- aX + (bA + cA^2) X`` with ``A = X X^T``, from X of norm one.
    """
    a, b, c = _QUINTIC
    x = matrices.flatten(0, -3).to(dtype)
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    for _ in range(iterations):
        gram = torch.bmm(x, x.mT)
        x = a * x + torch.bmm(b * gram + c * torch.bmm(gram, gram), x)
    if tall:
        x = x.mT
    result: Tensor = x.reshape(matrices.shape).float()
    return result


class MuonOptimizer:
    """`update` with its state, applied to a model's parameters in place."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        self.config = config
        self.orthogonal: Callable[[Tensor], Tensor] | None = None
        """How the work of `orthogonalise` is shared, where several processes train together."""
        self._model = model
        self._state = initial_state(dict(model.named_parameters()))

    @torch.no_grad()
    def step(self, step: int, scale: float, sound: Tensor | None = None) -> None:
        """Do update number `step` with `scale` times the peak rates, and drop the gradients.

        Where `sound` is false nothing changes.
        """
        parameters = dict(self._model.named_parameters())
        gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
        rates = rates_at(self.config, step, scale)
        if sound is None or sound.device.type != "cpu" or bool(sound):
            new, state = update(
                parameters,
                gradients,
                self._state,
                rates,
                self.config.weight_decay,
                dtype=getattr(torch, self.config.muon_precision),
                orthogonal=self.orthogonal,
            )
            if sound is not None and sound.device.type != "cpu":
                # Decided on the device, for which the host does not wait.
                new = {k: torch.where(sound, v, parameters[k]) for k, v in new.items()}
                state = {k: torch.where(sound, v, self._state[k]) for k, v in state.items()}
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
