"""A learner among several: each works on its rows of the batch, and all hold the same weights.

Gradients are averaged over the ranks (DistributedDataParallel, or one sum where a compiled library
makes them), the matrices that Muon orthogonalises are divided among them, and so is a validation.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Generator
from functools import partial
from typing import Any

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from megatron_model.compiled import Library, compile_all, library_gradients, library_loss
from megatron_model.config import RunConfig, config_from_builtins
from megatron_model.dataset import TokenArray
from megatron_model.device import MemoryMeter, describe_device
from megatron_model.distributed import Kind, Order, Team, host
from megatron_model.distributed_timer import CoreMeter, WorkTimer
from megatron_model.distributed_watch import blaming
from megatron_model.evaluation import piece_loss, pieces
from megatron_model.events import Event, Noticed, PhaseChanged, RankMeasured, WorkProgress
from megatron_model.learner import Learner, State
from megatron_model.muon import MuonOptimizer, orthogonalise
from megatron_model.preflight import Preflight, preflight
from megatron_model.soundness import sound
from megatron_model.steps import Step, add_gradients

_DTYPES = (torch.float32, torch.bfloat16)


class RankedLearner(Learner):
    """One of several learners that hold the same weights; what one is told, all do.

    In rank 0 every method first orders the others to do the same; in the others `follow` carries
    out what is ordered.
    """

    def __init__(
        self,
        config: RunConfig,
        vocab_size: int,
        train: TokenArray,
        validation: TokenArray,
        team: Team,
    ) -> None:
        self.team = team
        self.ranks = team.size
        self.timer = WorkTimer(self.device_of(config))
        super().__init__(config, vocab_size, train, validation)
        self._parallel: nn.Module | None = None
        self._meter, self._cores = MemoryMeter(self.device), CoreMeter()
        self._pieces = list(pieces(len(validation) - 1, config.model.block_size))
        self._losses = torch.zeros(0)
        self._places = team.texts(f"{host()}\n{describe_device(str(self.device)).name}")
        if isinstance(self._optimizer, MuonOptimizer):
            self._optimizer.orthogonal = self._orthogonal

    def device_of(self, config: RunConfig) -> torch.device:
        """Return the device that is this rank's."""
        return self.team.device(config)

    def _choose_device(self) -> torch.device:
        return self.device_of(self.config)

    def _choose_dtype(self) -> torch.dtype:
        # Auto is decided by a measurement, which may come out otherwise in another process.
        return _DTYPES[self.team.leaders(_DTYPES.index(super()._choose_dtype()))]

    @property
    def _share(self) -> slice:
        return slice(self.team.rank, None, self.team.size)

    def _work_out(self) -> Preflight:
        """Return what a rank's part costs; the ranks of a machine divide its memory."""
        training = self.config.training
        rows = math.ceil(training.batch_size / self.team.size)
        part = msgspec.structs.replace(training, batch_size=rows)
        device = describe_device(str(self.device))
        if device.kind == "cpu":
            free = device.memory_free // self.team.local_size
            device = msgspec.structs.replace(device, memory_free=free)
        config = msgspec.structs.replace(self.config, training=part)
        found = preflight(config, vocabulary_size=self._vocab_size, device=device)
        return msgspec.structs.replace(found, micro_batch=self.team.lowest(found.micro_batch))

    def _compiling_pays(self) -> bool:
        return bool(self.team.leaders(super()._compiling_pays()))

    def _libraries(self) -> tuple[Library, Library]:
        config, vocabulary = self.config, self._vocab_size
        return (
            Library("gradients", config, vocabulary, self.dtype, rows=self._rows),
            Library("loss", config, vocabulary, self.dtype),
        )

    def prepare(self, step: int) -> Generator[Event, None, None]:
        """Get ready for the steps after `step`; compile them first where that pays."""
        libraries = self._libraries() if self._compiles_ahead else ()
        if not all(library.ready for library in libraries):
            yield PhaseChanged(step=step, phase="compiling")
            # Before the others are asked to do anything: this may be broken off.
            for share in compile_all(libraries):
                yield WorkProgress(step=step, share=share)
        self.team.order(Kind.PREPARE, step)
        if not self._prepare_together():
            yield Noticed(step=step, text="compiling did not work here; training goes on without")

    @property
    def _compiles_ahead(self) -> bool:
        return self.compiled and self.device.type == "cpu"

    def _prepare_together(self) -> bool:
        """Get ready, all ranks at once; returns whether that went as it was meant to."""
        meant = self._compiles_ahead
        if meant:
            libraries = self._libraries()
            # The first rank of a machine makes what all of them need.
            for turn in (self.team.local_rank == 0, self.team.local_rank > 0):
                for _ in compile_all(libraries) if turn else ():
                    pass
                self.team.all(True)
            if self.team.all(self._take_libraries(libraries)):
                return True
            self.compiled = False
        self._step = self._eager_step()
        return not meant

    def _take_libraries(self, libraries: tuple[Library, Library]) -> bool:
        gradients, loss = libraries
        ready = gradients.ready and loss.ready
        if not ready or not isinstance(self._optimizer, MuonOptimizer):
            return False
        self._step = self._library_step(library_gradients(gradients, self.model))
        self._block_loss = library_loss(loss, self.model, self.dtype)
        return True

    def _library_step(self, gradients: Callable[[Tensor, Tensor], list[Tensor]]) -> Step:
        """Return the update whose gradients a library computes, and one sum averages."""
        parameters = list(self.model.parameters())
        sizes = [parameter.numel() for parameter in parameters]
        batch_size = self.config.training.batch_size

        def step(
            number: int, scale: float, inputs: Tensor, targets: Tensor
        ) -> tuple[Tensor, Tensor]:
            found = gradients(inputs, targets)
            flat = torch.cat([value.flatten() for value in found])
            flat *= len(inputs) / batch_size
            self.timer.stop()
            self.team.sum(flat)
            *parts, loss = torch.split(flat, [*sizes, 1])
            for parameter, part in zip(parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
            return self._update(number, scale, loss.squeeze())

        return step

    def _eager_step(self) -> Step:
        """Return the update as torch computes it; DDP averages while it goes backward."""
        if self._parallel is None:
            self._parallel = self._wrapped()
        model: Any = torch.compile(self._parallel) if self.compiled else self._parallel
        batch_size = self.config.training.batch_size

        def step(
            number: int, scale: float, inputs: Tensor, targets: Tensor
        ) -> tuple[Tensor, Tensor]:
            with blaming(self.team.watch):
                total = add_gradients(
                    model,
                    inputs,
                    targets,
                    dtype=self.dtype,
                    micro_batch=self.micro_batch,
                    sequences=batch_size,
                    factor=float(self.team.size),  # what is averaged is a sum here
                    part_of_many=self._pass,
                )
            self.team.sum(total)
            return self._update(number, scale, total)

        return step

    def _wrapped(self) -> nn.Module:
        """Return the model whose gradients are averaged over the ranks."""
        wrapped = DistributedDataParallel(
            self.model,
            device_ids=[self.device.index] if self.device.type == "cuda" else None,
            broadcast_buffers=False,
            gradient_as_bucket_view=True,
        )
        # DDP looks at annotations, and takes those that are text for wrong ones.
        wrapped.register_comm_hook(self, lambda learner, bucket: _average(learner, bucket))
        return wrapped

    def _pass(self, last: bool) -> contextlib.AbstractContextManager[object]:
        """Have the gradients averaged in the last pass through a batch alone."""
        assert isinstance(self._parallel, DistributedDataParallel)
        return contextlib.nullcontext() if last else self._parallel.no_sync()

    def _update(self, number: int, scale: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Let the optimizer take the averaged gradients; return loss and gradient norm."""
        clip = self.config.training.gradient_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), clip).detach()
        self._optimizer.step(number, scale, sound(loss, norm))
        return loss, norm

    def _orthogonal(self, stack: Tensor) -> Tensor:
        """Orthogonalise a stack of matrices, of which each rank does its part."""
        matrices = stack.flatten(0, -3)
        count = math.ceil(len(matrices) / self.team.size)
        dtype = getattr(torch, self.config.training.muon_precision)
        part = matrices.new_zeros(count, *matrices.shape[1:], dtype=dtype)
        own = matrices[self.team.rank * count :][:count]
        if len(own):
            part[: len(own)] = orthogonalise(own, dtype=dtype)  # which loses nothing
        return self.team.collect(part)[: len(matrices)].float().view(stack.shape)

    def batch(self, number: int, scale: float) -> tuple[Tensor, Tensor]:
        """Return this rank's rows of what update `number`, to be taken with `scale`, reads."""
        self.team.order(Kind.STEP, number, scale)
        self.timer.start()
        found = super().batch(number, scale)
        if self.config.model.dropout and self.team.rank:
            torch.manual_seed(torch.initial_seed() + 7_919 * self.team.rank)
        return found

    def can_halve(self) -> bool:
        """Whether the batch can be gone through in smaller parts than now: not by one alone."""
        return False

    def change(self, config: RunConfig) -> None:
        """Go on with other rates from the next step on."""
        self.team.order(Kind.CHANGE, content=msgspec.json.encode(config))
        super().change(config)

    def validate(self) -> Generator[float, None, float]:
        """Yield the share done, return the mean loss over the whole validation split.

        The sums of all pieces are added in their order: the same number as one rank alone gets.
        """
        self._begin_validation()
        for number in range(math.ceil(len(self._pieces) / self.team.size)):
            self._validate_round(number)
            done = min(len(self._pieces), (number + 1) * self.team.size)
            yield done / len(self._pieces)
        self.team.order(Kind.VALIDATED)
        return self._end_validation()

    def _begin_validation(self) -> None:
        self.team.order(Kind.VALIDATE)
        self._losses = torch.zeros(len(self._pieces), dtype=torch.float64)

    def _validate_round(self, number: int) -> None:
        """Evaluate this rank's one of the next pieces."""
        self.team.order(Kind.PIECE, number)
        own = number * self.team.size + self.team.rank
        was_training = self.model.training
        self.model.eval()
        if own < len(self._pieces):
            self._losses[own] = self._piece_loss(own)
        elif self._all_take_part:
            self._piece_loss(0)
        self.model.train(was_training)

    @property
    def _all_take_part(self) -> bool:
        """Whether a rank can compute anything only together with all others."""
        return False

    def _piece_loss(self, number: int) -> float:
        piece = self._pieces[number]
        return piece_loss(self.validation, piece, device=self.device, block_loss=self._block_loss)

    def _end_validation(self) -> float:
        self.team.sum(self._losses)
        total = sum(float(loss) for loss in self._losses)
        return total / (len(self.validation) - 1)

    def load(self, weights: State, optimizer: State, numbers: dict[str, Any]) -> None:
        """Go back to a saved state; rank 0 alone has read it, and gives it to the others."""
        about = {
            "weights": [(k, list(v.shape), str(v.dtype)[6:]) for k, v in weights.items()],
            "optimizer": [(k, list(v.shape), str(v.dtype)[6:]) for k, v in optimizer.items()],
            "numbers": numbers,
        }
        self.team.order(Kind.LOAD, content=json.dumps(about).encode())
        self._load_spread(weights, optimizer, numbers)

    def _load_spread(self, weights: State, optimizer: State, numbers: dict[str, Any]) -> None:
        for tensor in (*weights.values(), *optimizer.values()):
            self.team.spread(tensor)
        self._parallel = None
        super().load(weights, optimizer, numbers)

    def measure_ranks(self) -> list[RankMeasured]:
        """Return how each of the processes that train together does."""
        self.team.order(Kind.MEASURE)
        sample = self._meter.sample(0)
        seconds = self.timer.mean()
        own = [math.nan] * 5
        if sample is not None:
            share = math.nan if sample.utilization is None else sample.utilization
            if self.device.type == "cpu":
                share = self._cores.share()
            own = [sample.used, sample.peak, sample.total, share, seconds]
        return [self._measured(rank, row) for rank, row in enumerate(self.team.gather(own))]

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
        self.team.order(Kind.END)
        self.team.end()

    def follow(self) -> None:
        """Do what rank 0 orders until it lets this rank go."""
        handlers: dict[Kind, Callable[[Order], object]] = {
            Kind.STEP: self._follow_step,
            Kind.PREPARE: lambda order: self._prepare_together(),
            Kind.VALIDATE: lambda order: self._begin_validation(),
            Kind.PIECE: lambda order: self._validate_round(order.number),
            Kind.VALIDATED: lambda order: self._end_validation(),
            Kind.LOAD: lambda order: self._follow_load(json.loads(order.content)),
            Kind.CHANGE: lambda order: self.change(config_from_builtins(json.loads(order.content))),
            Kind.MEASURE: lambda order: self.measure_ranks(),
            Kind.GATHER: lambda order: self.gather_state(),
        }
        while (order := self.team.receive()).kind != Kind.END:
            handlers[order.kind](order)
        self.team.end()

    def _follow_step(self, order: Order) -> None:
        self.step(order.number, order.value, *self.batch(order.number, order.value))

    def _follow_load(self, about: dict[str, Any]) -> None:
        empty = partial(_empty, device=torch.device("cpu"))
        self._load_spread(empty(about["weights"]), empty(about["optimizer"]), about["numbers"])

    def gather_state(self) -> object:
        """Take part in putting a divided state together: here every rank has all of it."""
        return None


def _average(learner: RankedLearner, bucket: Any) -> Any:
    """Average a bucket of gradients as DDP does by itself, and take note of it."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    tensor = bucket.buffer()
    learner.team.sent_bytes += tensor.numel() * tensor.element_size()
    if bucket.is_last():
        learner.timer.stop()
    return allreduce_hook(dist.group.WORLD, bucket)  # type: ignore[arg-type]


def _empty(about: list[tuple[str, list[int], str]], *, device: torch.device) -> State:
    return {
        name: torch.empty(shape, dtype=getattr(torch, kind), device=device)
        for name, shape, kind in about
    }
