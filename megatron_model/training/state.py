"""A trainer's state: what an exact resume needs beside the weights, and whether it fits a run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta, Struct
from torch import Tensor

from megatron_model.config.fields import RunConfig
from megatron_model.model.factory import build_model
from megatron_model.training.muon import initial_state
from megatron_model.util.errors import RequestError

Named = dict[str, Tensor]
Count = Annotated[int, Meta(ge=0, le=2**62)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]

LOSS_SUM = "loss_sum"
OPTIMIZER = "optimizer/"
"""What the names of the optimizer's tensors begin with."""


class HowComputed(Struct, frozen=True, kw_only=True):
    """What decides how steps are computed: sums in another order round differently."""

    ranks: Positive = 1
    micro_batch: Positive
    """Sequences computed at a time."""
    compiled: bool
    precision: Annotated[str, Meta(pattern="^(float32|bfloat16|float16)$")]
    threads: Positive


class Scalars(HowComputed, frozen=True, kw_only=True):
    """The numbers of a state, as they are written into ``training.json``."""

    step: Count
    elapsed_seconds: float
    val_loss: float | None
    best_val_loss: float | None
    evaluation_seconds: float
    interval_steps: Count
    """Steps since the last report."""
    interval_seconds: float
    skipped: Count = 0
    """Steps since the last report whose loss or gradient was NaN or infinity."""
    skipped_in_a_row: Count = 0
    rate_factor: float = 1.0
    waited: Count = 0
    """Validations in a row that brought no better loss; see `training.patience`."""
    last_better: float | None = None
    """The last one that did."""
    # All randomness and the place in the data follow from these two.
    seed: int = 0
    next_batch: Count = 0

    def __post_init__(self) -> None:
        """Refuse NaN and infinity, which no trainer writes."""
        for name in self.__struct_fields__:
            value = getattr(self, name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"{name} is NaN or infinity")


@dataclass(frozen=True)
class TrainingState:
    """What a trainer needs to go on as if it had never stopped."""

    tensors: Named
    scalars: Scalars

    @property
    def optimizer(self) -> Named:
        """The optimizer's tensors as ``<kind>/<parameter name>``."""
        return {
            name.removeprefix(OPTIMIZER): value
            for name, value in self.tensors.items()
            if name.startswith(OPTIMIZER)
        }


def check_fits(
    weights: Mapping[str, Tensor], state: TrainingState, config: RunConfig, vocab_size: int
) -> None:
    """Refuse a saved state that is not one of this run, before anything is changed by it.

    Raises:
        RequestError: a tensor is missing, is one too many, or has another shape.
    """
    with torch.device("meta"):
        model = build_model(config.model, vocab_size)
        _check("weight", weights, model.state_dict())
        parameters = dict(model.named_parameters())
        if config.training.optimizer == "muon":
            wanted = initial_state(parameters)
        else:
            # torch's AdamW has no state before its first step.
            names = parameters if state.optimizer else ()
            moments = {f"{k}/{n}": parameters[n] for n in names for k in ("exp_avg", "exp_avg_sq")}
            wanted = {**moments, **{f"step/{name}": torch.zeros(()) for name in names}}
        wanted = {f"{OPTIMIZER}{name}": value for name, value in wanted.items()}
        _check("state", state.tensors, {**wanted, LOSS_SUM: torch.zeros(())})


def _check(kind: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted(wanted.keys() | found.keys()):
        shapes = [tuple(there[name].shape) if name in there else None for there in (found, wanted)]
        if shapes[0] != shapes[1]:
            is_there = "missing" if shapes[0] is None else shapes[0]
            should = "there at all" if shapes[1] is None else shapes[1]
            raise RequestError(f"the {kind} {name} is {is_there}, not {should}")
