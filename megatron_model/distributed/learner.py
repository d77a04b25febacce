"""A learner among several: in rank 0 it orders what it does, in the others it does what is ordered.

What it computes with, it is given: see `ddp_learner` and `fsdp_learner`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager

import msgspec
import torch
from torch import Tensor, nn

from megatron_model.config.fields import RunConfig, config_from_builtins
from megatron_model.device import DeviceInfo, MemoryMeter, choose_precision, describe_device
from megatron_model.distributed.monitor import attribute_failure
from megatron_model.distributed.team import Kind, Order, Team, host
from megatron_model.distributed.timer import CoreMeter, WorkTimer
from megatron_model.distributed.validation import ValidationRounds
from megatron_model.events.schema import Event, RankMeasured
from megatron_model.planning.compile_choice import cost_of_each
from megatron_model.planning.preflight import Preflight
from megatron_model.training.fused.library import build_library
from megatron_model.training.learner import COMPILING_SHARE, Learner, Parts
from megatron_model.training.model_store import Named
from megatron_model.training.muon import iteration_dtype
from megatron_model.training.state import HowComputed
from megatron_model.training.step import Step, add_gradients
from megatron_model.util.c_library import LIMIT_SECONDS

_DTYPES = (torch.float32, torch.bfloat16)

Obey = Callable[[Order], object]
"""Does what was ordered."""


class TensorList(msgspec.Struct):
    """What the tensors are that rank 0 is about to send, and what comes with them."""

    weights: list[tuple[str, list[int], str]]
    """Name, shape and dtype of each."""
    optimizer: list[tuple[str, list[int], str]]
    how: HowComputed


class TeamLearner(Learner):
    """One of several learners that train one model; what one is told, all do.

    In rank 0 every method first orders the others to do the same; in the others `follow` carries
    out what is ordered.

    Args:
        parts: what it computes with.
        team: the ranks.
        timer: told when a step begins and when its gradients are made.
        rounds: the validation that all share; also ``parts.validate``.
        more_orders: what is done for orders beside those that every such learner gets.
    """

    def __init__(
        self,
        parts: Parts,
        team: Team,
        timer: WorkTimer,
        rounds: ValidationRounds,
        more_orders: Mapping[Kind, Obey] | None = None,
    ) -> None:
        super().__init__(parts)
        self._team = team
        self._timer = timer
        self._rounds = rounds
        self._more_orders = dict(more_orders or {})
        self._meter, self._cores = MemoryMeter(self.device), CoreMeter()
        self._places = team.gather_texts(f"{host()}\n{describe_device(str(self.device)).name}")

    def prepare(self, step: int, seconds_left: float = math.inf) -> Generator[Event, None, None]:
        """Get ready for the steps after `step`; compile them first where that pays."""
        yield from self._say_what_compiling_lacks(step, seconds_left)
        if self._compiles_ahead:
            # Before the others are asked to do anything: this may be broken off.
            why = yield from self._compile(step, seconds_left)
            if why:
                self.compiled = False
                yield self._did_not_compile(step, why)
        # The others compile for no longer than this, or not at all.
        seconds = min(LIMIT_SECONDS, COMPILING_SHARE * seconds_left) if self.compiled else 0.0
        self._team.order(Kind.PREPARE, step, seconds)
        why = self._prepare_together(seconds)
        if why:
            yield self._did_not_compile(step, why)

    def _prepare_together(self, seconds: float) -> str:
        """Get ready, all ranks at once; returns why the steps are not compiled as was meant."""
        self.compiled = self.compiled and seconds > 0
        why = ""
        if self._compiles_ahead:
            # The first rank of a machine makes what all of them need.
            for turn in (self._team.local_rank == 0, self._team.local_rank > 0):
                for _ in build_library(seconds) if turn else ():
                    pass
                self._team.all(True)
            why = self._compute_by_kernels()
            if self._team.all(not why):
                return ""
            self.compiled = False
            why = why or "not in every process"
        self._compute_by_torch()
        return why

    def batch(self, number: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return this rank's rows of what update `number`, to be taken with `scale`, reads."""
        self._team.order(Kind.STEP, number, scale)
        self._timer.start()
        found = super().batch(number, scale)
        if self.config.model.dropout and self._team.rank:
            torch.manual_seed(torch.initial_seed() + 7_919 * self._team.rank)
        return found

    def can_halve_micro_batch(self) -> bool:
        """Whether the batch can be computed in smaller parts than now: not by one rank alone."""
        return False

    def change(self, config: RunConfig) -> None:
        """Go on with other rates from the next step on."""
        self._team.order(Kind.CHANGE, content=msgspec.json.encode(config))
        super().change(config)

    def load(self, weights: Named, optimizer: Named, how: HowComputed) -> None:
        """Go back to a saved state; rank 0 alone has read it, and gives it to the others."""
        about = TensorList(_listed(weights), _listed(optimizer), how)
        self._team.order(Kind.LOAD, content=msgspec.json.encode(about))
        self._load_together(weights, optimizer, how)

    def _load_together(self, weights: Named, optimizer: Named, how: HowComputed) -> None:
        for tensor in (*weights.values(), *optimizer.values()):
            self._team.broadcast(tensor)
        super().load(weights, optimizer, how)

    def measure_ranks(self) -> list[RankMeasured]:
        """Return how each of the processes that train together does."""
        self._team.order(Kind.MEASURE)
        sample = self._meter.sample(0)
        seconds = self._timer.mean()
        own = [math.nan] * 5
        if sample is not None:
            share = math.nan if sample.utilization is None else sample.utilization
            if self.device.type == "cpu":
                share = self._cores.share()
            own = [sample.used, sample.peak, sample.total, share, seconds]
        return [
            self._measured(rank, row) for rank, row in enumerate(self._team.gather_numbers(own))
        ]

    def _measured(self, rank: int, row: list[float]) -> RankMeasured:
        place, _, name = self._places[rank].partition("\n")
        used, peak, total, share, seconds = (None if math.isnan(v) else v for v in row)
        return RankMeasured(
            rank=rank,
            host=place,
            kind="ram" if self.device.type == "cpu" else "gpu",
            name=name,
            used=int(used or 0),
            peak=int(peak or 0),
            total=int(total or 0),
            utilization=share,
            seconds=seconds,
        )

    def finish(self) -> None:
        """Let the other ranks go, all of which are asked whether they are well."""
        self._team.order(Kind.END)
        self._team.end()

    def follow(self) -> None:
        """Do what rank 0 orders until it lets this rank go."""
        orders: dict[Kind, Obey] = {
            Kind.STEP: self._follow_step,
            Kind.PREPARE: lambda order: self._prepare_together(order.value),
            Kind.VALIDATE: lambda order: self._rounds.begin(),
            Kind.PIECE: lambda order: self._rounds.take_round(order.number, self._block_loss),
            Kind.VALIDATED: lambda order: self._rounds.end(),
            Kind.LOAD: self._follow_load,
            Kind.CHANGE: lambda order: self.change(config_from_builtins(json.loads(order.content))),
            Kind.MEASURE: lambda order: self.measure_ranks(),
            **self._more_orders,
        }
        while (order := self._team.receive()).kind != Kind.END:
            orders[order.kind](order)
        self._team.end()

    def _follow_step(self, order: Order) -> None:
        self.step(order.number, order.value, *self.batch(order.number, order.value))

    def _follow_load(self, order: Order) -> None:
        about = msgspec.json.decode(order.content, type=TensorList)
        self._load_together(_empty(about.weights), _empty(about.optimizer), about.how)


def averaged_step(
    model: nn.Module,
    team: Team,
    update: Callable[[int, float, Tensor], tuple[Tensor, Tensor]],
    *,
    dtype: torch.dtype,
    micro_batch: int,
    batch_size: int,
    part_of_many: Callable[[bool], AbstractContextManager[object]],
) -> Step:
    """Return the update whose gradients the model averages over the ranks as it goes backward.

    Args:
        model: DDP's or FSDP's.
        team: the ranks.
        update: takes the averaged gradients, of update number, scale and mean loss.
        dtype: arithmetic of the matrix products.
        micro_batch: sequences computed at a time.
        batch_size: sequences of a step, of all ranks.
        part_of_many: see `add_gradients`.
    """

    def step(number: int, scale: float, inputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        with attribute_failure(team.watch):
            total = add_gradients(
                model,
                inputs,
                targets,
                dtype=dtype,
                micro_batch=micro_batch,
                sequences=batch_size,
                factor=float(team.size),  # what is averaged is a sum here
                part_of_many=part_of_many,
            )
        team.all_reduce(total)
        return update(number, scale, total)

    return step


def common_dtype(team: Team, config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the arithmetic that rank 0 chooses, in all ranks.

    Auto is decided by a measurement, which may come out otherwise in another process.
    """
    own = choose_precision(config.training.precision, device)
    return _DTYPES[team.broadcast_number(_DTYPES.index(own))]


def common_iteration_dtype(team: Team, config: RunConfig, device: torch.device) -> torch.dtype:
    """Return the arithmetic in which matrices are orthogonalised, the same in all ranks."""
    return _DTYPES[team.broadcast_number(_DTYPES.index(iteration_dtype(config.training, device)))]


def common_cost(team: Team, config: RunConfig, vocab_size: int, device: DeviceInfo) -> Preflight:
    """Return what a rank's part of the run costs; the ranks of a machine divide its memory."""
    found = cost_of_each(config, vocab_size, device, ranks=team.size, here=team.local_size)
    return msgspec.structs.replace(found, micro_batch=team.lowest(found.micro_batch))


def _listed(tensors: Named) -> list[tuple[str, list[int], str]]:
    return [(k, list(v.shape), str(v.dtype).removeprefix("torch.")) for k, v in tensors.items()]


def _empty(about: list[tuple[str, list[int], str]]) -> Named:
    return {name: torch.empty(shape, dtype=getattr(torch, kind)) for name, shape, kind in about}
