"""The optimizers and their learning rate; all state is reachable as named tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn

from megatron_model.config.fields import TrainingConfig
from megatron_model.torch_private.skipped_step import step_unless
from megatron_model.training.muon import MuonOptimizer, on_device


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
        return warmup * 0.5 * (1.0 + math.cos(math.pi * progress))
    return warmup


class Optimizer(Protocol):
    """What the trainer needs of an optimizer."""

    config: TrainingConfig
    """Rates and weight decay of the next update; may be replaced between two."""

    def step(self, step: int, scale: float, finite: Tensor | None = None) -> None:
        """Do update number `step` with `scale` times the peak rates, and drop the gradients.

        Where `finite`, a tensor of one truth value, is false nothing changes.
        """

    def state_tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state as ``<kind>/<parameter name>``."""

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state made by `state_tensors` of the same model and configuration."""


class LocalOptimizer(Optimizer, Protocol):
    """An optimizer of one process, whose `step` has two halves."""

    def set_rates(self, step: int, scale: float) -> None:
        """Put the rates of update number `step` where `apply` reads them."""

    def apply(self, finite: Tensor | None = None) -> None:
        """Do an update with the rates that are set; on an accelerator this can be recorded."""


def build_optimizer(model: nn.Module, config: TrainingConfig) -> LocalOptimizer:
    """Return the optimizer that `config` names, for this model's parameters."""
    return MuonOptimizer(model, config) if config.optimizer == "muon" else AdamW(model, config)


class AdamW:
    """torch's AdamW (Loshchilov and Hutter 2019); matrices decay, biases and norms do not."""

    def __init__(self, model: nn.Module, config: TrainingConfig) -> None:
        self.config = config
        self._names = {parameter: name for name, parameter in model.named_parameters()}
        groups = [
            {
                "params": [p for p in self._names if p.dim() >= 2],
                "weight_decay": config.weight_decay,
            },
            {"params": [p for p in self._names if p.dim() < 2], "weight_decay": 0.0},
        ]
        self._device = next(model.parameters()).device
        on_card = self._device.type == "cuda"
        rate: float | Tensor = config.learning_rate
        self._inner = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            # In the card's memory, where a recorded update reads it anew each time.
            lr=torch.tensor(rate, device=self._device) if on_card else rate,
            fused=self._device.type in ("cpu", "cuda"),
            capturable=on_card,
        )

    def step(self, step: int, scale: float, finite: Tensor | None = None) -> None:
        """Do one update with `scale` times the peak rate, and drop the gradients."""
        self.set_rates(step, scale)
        self.apply(finite)

    def set_rates(self, step: int, scale: float) -> None:
        """See `LocalOptimizer`."""
        rate = self.config.learning_rate * scale
        for group in self._inner.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(on_device(torch.tensor(rate), self._device))
            else:
                group["lr"] = rate

    def apply(self, finite: Tensor | None = None) -> None:
        """See `LocalOptimizer`."""
        if finite is not None and finite.device.type == "cuda":
            step_unless(self._inner, ~finite)
        elif finite is None or bool(finite):
            self._inner.step()
        self._inner.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return every tensor of the state as ``<kind>/<parameter name>``."""
        return {
            f"{kind}/{name}": value
            for parameter, name in self._names.items()
            for kind, value in self._inner.state[parameter].items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over a state made by `state_tensors`."""
        parameters = {name: parameter for parameter, name in self._names.items()}
        for key, value in tensors.items():
            kind, _, name = key.partition("/")
            parameter = parameters[name]
            # The step count stays on the CPU unless the fused kernel reads it on the device.
            self._inner.state[parameter][kind] = value.to(parameter.device, copy=True)
