"""The update rule: AdamW, or Muon for the blocks' matrices with AdamW for the rest; and its rate.

All state is reachable as named tensors, so that a checkpoint needs no pickle.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from megatron_model.config import TrainingConfig

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_MOMENTUM = 0.95


def learning_rate_scale(config: TrainingConfig, step: int, progress: float) -> float:
    """Return the share of the peak learning rate for the update after `step` updates.

    Args:
        config: names the schedule.
        step: updates done so far; decides the warm-up.
        progress: share of the run that is done, from 0 to 1, by steps or by the time budget.
    """
    warmup = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "linear":
        return warmup * min(1.0, max(0.0, (1.0 - progress) / config.cooldown))
    if config.schedule == "cosine":
        return warmup * 0.5 * (1.0 + float(torch.cos(torch.tensor(progress * torch.pi))))
    return warmup


class Optimizer:
    """One or two torch optimizers behind one `step`, with rates scaled together."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        named = dict(model.named_parameters())
        muon = {
            name: parameter
            for name, parameter in named.items()
            if config.optimizer == "muon" and name.startswith("blocks.") and parameter.dim() == 2
        }
        rest = {name: parameter for name, parameter in named.items() if name not in muon}
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in named.values())
        betas = (0.9, 0.99) if config.optimizer == "muon" else (0.9, 0.999)
        self._names: dict[Tensor, str] = {parameter: name for name, parameter in named.items()}
        self._parts: list[torch.optim.Optimizer] = []
        self._peaks: list[float] = []
        if rest:
            groups = [
                {
                    "params": [p for p in rest.values() if p.dim() >= 2],
                    "weight_decay": config.weight_decay,
                },
                {"params": [p for p in rest.values() if p.dim() < 2], "weight_decay": 0.0},
            ]
            self._add(
                torch.optim.AdamW(
                    [group for group in groups if group["params"]],
                    lr=config.learning_rate,
                    betas=betas,
                    fused=fused,
                ),
                config.learning_rate,
            )
        if muon:
            self._add(
                Muon(muon.values(), lr=config.muon_learning_rate, weight_decay=config.weight_decay),
                config.muon_learning_rate,
            )

    def _add(self, part: torch.optim.Optimizer, peak: float) -> None:
        self._parts.append(part)
        self._peaks.append(peak)

    def step(self, scale: float) -> None:
        """Update the weights with `scale` times the peak rates and clear the gradients."""
        for part, peak in zip(self._parts, self._peaks, strict=True):
            for group in part.param_groups:
                group["lr"] = peak * scale
            part.step()
            part.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state as ``<what>/<parameter name>``."""
        return {
            f"{what}/{self._names[parameter]}": value
            for part in self._parts
            for parameter, state in part.state.items()
            for what, value in state.items()
            if isinstance(value, Tensor)
        }

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over a state made by `state_tensors` of the same model and configuration."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        owners = {
            parameter: part
            for part in self._parts
            for group in part.param_groups
            for parameter in group["params"]
        }
        for key, value in tensors.items():
            what, _, name = key.partition("/")
            parameter = parameters[name]
            # AdamW keeps its step count on the CPU unless it is fused.
            target = (
                parameter.device if what != "step" or parameter.device.type == "cuda" else "cpu"
            )
            owners[parameter].state[parameter][what] = value.to(target)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised: every singular value of an update becomes about one.

    Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks". Matrices of one
    shape are stacked, so that many small ones cost a few large products.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(list(params), {"lr": lr, "weight_decay": weight_decay})
        self._by_shape: dict[torch.Size, list[Tensor]] = {}
        for parameter in self.param_groups[0]["params"]:
            self._by_shape.setdefault(parameter.shape, []).append(parameter)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        rate, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for shape, parameters in self._by_shape.items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if len(gradients) != len(parameters):
                continue
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            torch._foreach_lerp_(momenta, gradients, 1.0 - _MOMENTUM)
            nesterov = torch._foreach_lerp(gradients, momenta, _MOMENTUM)
            updates = orthogonalise(torch.stack(list(nesterov)))
            # A tall matrix needs larger steps for the same change of its output.
            scale = rate * max(1.0, shape[0] / shape[1]) ** 0.5
            if decay:
                torch._foreach_mul_(parameters, 1.0 - rate * decay)
            torch._foreach_add_(parameters, list(updates.unbind(0)), alpha=-scale)


def orthogonalise(matrices: Tensor, *, steps: int = 5) -> Tensor:
    """Bring the singular values of each matrix (N, rows, columns) near one, by Newton-Schulz.

    The quintic iteration of Muon: X <- aX + (bA + cA^2)X with A = XX^T, from X of norm one.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices.to(torch.bfloat16)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    if tall:
        x = x.mT
    result: Tensor = x.to(matrices.dtype)
    return result
