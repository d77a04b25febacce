"""A learner whose weights, gradients and optimizer state are divided among the ranks (FSDP2).

A layer is put together only while it is computed. The modern model keeps the matrices of all its
layers in one stack, which would be put together at once; here each layer is a module with its own.
Every matrix is divided by rows, and Muon brings whole ones together by an exchange: each rank
orthogonalises some of them and gives the rows back.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from megatron_model.config.fields import ModelConfig, RunConfig, TrainingConfig
from megatron_model.data.batches import TokenArray
from megatron_model.distributed.learner import (
    TeamLearner,
    averaged_step,
    common_cost,
    common_dtype,
    common_iteration_dtype,
)
from megatron_model.distributed.monitor import attribute_failure
from megatron_model.distributed.team import Kind, Team
from megatron_model.distributed.timer import WorkTimer
from megatron_model.distributed.validation import ValidationRounds
from megatron_model.model.classic import TransformerModel
from megatron_model.model.factory import build_model
from megatron_model.model.modern import Context, LayerWeights, ModernTransformer, run_layer
from megatron_model.planning.compile_choice import Choice
from megatron_model.training.computation import Computation, Way
from megatron_model.training.learner import Parts, describe, make_batches
from megatron_model.training.loss import eager_loss
from megatron_model.training.model_store import Named
from megatron_model.training.muon import MATRICES, initial_state, orthogonalise, rates_at, update
from megatron_model.training.nonfinite import are_finite
from megatron_model.training.optimizer import AdamW, Optimizer
from megatron_model.training.start import started_model

STACKED = ("attention", "feed_forward", "attention_mix", "feed_forward_mix")
"""The parameters of the modern model that hold something of every layer."""


def fsdp_learner(
    config: RunConfig, vocab_size: int, train: TokenArray, validation: TokenArray, team: Team
) -> TeamLearner:
    """Return this rank's learner, which holds its part of the weights; all do this at once."""
    device = team.device(config)
    dtype = common_dtype(team, config, device)
    mesh = init_device_mesh(device.type, (team.size,))
    model = shard(started_model(config, vocab_size, train), config.model, mesh)
    optimizer: Optimizer
    if config.training.optimizer == "muon":
        optimizer = ShardedMuon(
            model, config.training, team, common_iteration_dtype(team, config, device)
        )
    else:
        optimizer = AdamW(model, config.training)
    share = slice(team.rank, None, team.size)
    cost = common_cost(team, config, vocab_size, describe(device, dtype))
    state = ShardedModel(
        model,
        optimizer,
        model_config=config.model,
        vocab_size=vocab_size,
        mesh=mesh,
        device=device,
        team=team,
    )
    rounds = ValidationRounds(
        team,
        model,
        validation,
        block_size=config.model.block_size,
        device=device,
        all_take_part=True,  # putting a layer together takes all of them
    )
    asked = config.training.compile == "on"
    parts = Parts(
        config=config,
        device=device,
        dtype=dtype,
        state=state,
        batches=make_batches(config, vocab_size, train, device, share),
        micro_batch=cost.micro_batch,
        choice=Choice(False, "a model divided among devices never is" if asked else ""),
        computations=FSDPComputations(state, config, team),
        validate=rounds,
        ranks=team.size,
    )
    gather = {Kind.GATHER: lambda order: state.gather()}
    return TeamLearner(parts, team, WorkTimer(device), rounds, gather)


def shard(
    whole: TransformerModel | ModernTransformer, config: ModelConfig, mesh: DeviceMesh
) -> nn.Module:
    """Divide a model: this rank keeps its part; a layer is put together while computed."""
    model: TransformerModel | LayeredTransformer
    if isinstance(whole, TransformerModel):
        model, units = whole, whole.blocks
    else:
        model = LayeredTransformer.of(whole, config)
        units = model.layers
    for module in (*units, model):
        matrices = {id(p) for n, p in module.named_parameters() if plain_name(n) in MATRICES}
        fully_shard(module, mesh=mesh, shard_placement_fn=partial(_placement, matrices))
    return model


def _placement(matrices: set[int], parameter: nn.Parameter) -> Shard:
    """Divide matrices by rows, and all else by what comes first."""
    return Shard(1 if id(parameter) in matrices else 0)


class Layer(nn.Module):
    """What a modern model has for one layer."""

    def __init__(self, whole: ModernTransformer, number: int) -> None:
        super().__init__()
        for name in STACKED:
            self.register_parameter(name, nn.Parameter(getattr(whole, name)[number].clone()))
        self.attention: Tensor
        self.feed_forward: Tensor
        self.attention_mix: Tensor
        self.feed_forward_mix: Tensor

    def forward(
        self,
        x: Tensor,
        dtype: torch.dtype,
        heads: int,
        context: Context,
        dropout: float,
    ) -> Tensor:
        """See `run_layer`; inside, the weights are whole."""
        weights = LayerWeights(
            self.attention.to(dtype),
            self.feed_forward.to(dtype),
            self.attention_mix,
            self.feed_forward_mix,
        )
        return run_layer(x, weights, heads, context, dropout)


class LayeredTransformer(ModernTransformer):
    """A modern transformer with a module for each layer in place of the stacks."""

    layers: nn.ModuleList

    @classmethod
    def of(cls, whole: ModernTransformer, config: ModelConfig) -> LayeredTransformer:
        """Return the same model in layers."""
        model = cls(
            whole.vocab_size,
            config.block_size,
            config.embed_dim,
            config.heads,
            config.layers,
            config.ff_dim,
            config.dropout,
        )
        model.load_state_dict(whole.state_dict())
        model.layers = nn.ModuleList(Layer(model, n) for n in range(config.layers))
        for name in STACKED:
            delattr(model, name)
        return model

    def run_layers(self, x: Tensor, dtype: torch.dtype, context: Context) -> Tensor:
        """Map (B, T, C) to (B, T, C), a layer put together at a time."""
        for layer in self.layers:
            x = layer(x, dtype, self.heads, context, self.dropped)
        return x


class ShardedMuon:
    """`muon.update` on the part of every parameter that is here; see `optimizer.Optimizer`."""

    def __init__(
        self, model: nn.Module, config: TrainingConfig, team: Team, dtype: torch.dtype
    ) -> None:
        self._dtype = dtype
        self.config = config
        self._team = team
        self._model = model
        self._state = initial_state(self._local(model, lambda parameter: parameter))

    @staticmethod
    def _local(model: nn.Module, of: Callable[[nn.Parameter], Tensor | None]) -> dict[str, Tensor]:
        """Return the parts that are here of something that every parameter has, stacked."""
        found: dict[str, list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            value = of(parameter)
            if value is not None:
                part = value.to_local() if isinstance(value, DTensor) else value
                found.setdefault(plain_name(name), []).append(part.detach())
        return {
            name: torch.stack(parts) if name in STACKED else parts[0]
            for name, parts in found.items()
        }

    @torch.no_grad()
    def step(self, step: int, scale: float, finite: Tensor | None = None) -> None:
        """Do update number `step` with `scale` times the peak rates, and drop the gradients."""
        # Every rank has the same numbers and decides alike.
        if finite is None or bool(finite):
            new, self._state = update(
                self._local(self._model, lambda parameter: parameter),
                self._local(self._model, lambda parameter: parameter.grad),
                self._state,
                rates_at(self.config, step, scale),
                self.config.weight_decay,
                orthogonal=self._orthogonal,
                parts=self._team.size,
            )
            layers = {name: iter(value) for name, value in new.items() if name in STACKED}
            for name, parameter in self._model.named_parameters():
                plain = plain_name(name)
                value = next(layers[plain]) if plain in layers else new[plain]
                assert isinstance(parameter, DTensor)
                parameter.to_local().copy_(value)
        for parameter in self._model.parameters():
            parameter.grad = None

    def _orthogonal(self, stack: Tensor) -> Tensor:
        """Orthogonalise matrices of which every rank has some rows; each rank does its part."""
        size = self._team.size
        dtype = self._dtype
        rows = stack.flatten(0, -3).to(dtype)  # as it is computed, so that nothing is lost
        count = math.ceil(len(rows) / size)
        padded = rows.new_zeros(size * count, *rows.shape[1:])
        padded[: len(rows)] = rows
        received = self._team.all_to_all(padded.view(size, count, *rows.shape[1:]))
        whole = received.transpose(0, 1).flatten(1, 2)  # (count, rows, columns)
        mine = max(0, min(count, len(rows) - self._team.rank * count))
        done = whole.clone()
        if mine:
            done[:mine] = orthogonalise(whole[:mine], dtype=dtype)
        back = done.view(count, size, -1, done.size(-1)).transpose(0, 1).contiguous()
        result = self._team.all_to_all(back).flatten(0, 1)[: len(rows)]
        return result.float().view(stack.shape)

    def state_tensors(self) -> Named:
        """Return the parts of the state that are here."""
        return dict(self._state)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the parts that belong here."""
        for name, value in self._state.items():
            value.copy_(tensors[name])


class FSDPComputations:
    """The computations of one of several learners among which one model is divided.

    Args:
        state: the model and its optimizer.
        config: what was asked.
        team: the ranks.
    """

    def __init__(self, state: ShardedModel, config: RunConfig, team: Team) -> None:
        self._state = state
        self._config = config
        self._team = team

    def make(self, way: Way, *, dtype: torch.dtype, micro_batch: int) -> Computation:
        """See `Computations`; a divided model is never compiled."""
        assert way == "eager"
        model = self._state.model

        def part_of_many(last: bool) -> contextlib.AbstractContextManager[object]:
            _divided(model).set_requires_gradient_sync(last)
            return contextlib.nullcontext()

        step = averaged_step(
            model,
            self._team,
            self._update,
            dtype=dtype,
            micro_batch=micro_batch,
            batch_size=self._config.training.batch_size,
            part_of_many=part_of_many,
        )
        return Computation(step, eager_loss(model, dtype))

    def reset(self) -> None:
        """Nothing is kept here."""

    def _update(self, number: int, scale: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Let the optimizer take the gradients that are here; return loss and gradient norm."""
        parameters = list(self._state.model.parameters())
        gradients = [_here(p.grad) for p in parameters if p.grad is not None]
        squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        self._team.all_reduce(squares)
        norm = squares.sqrt()
        if clip := self._config.training.gradient_clip:
            share = (clip / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(share)
        self._state.optimizer.step(number, scale, are_finite(loss, norm))
        self._state.changed()
        return loss, norm


class ShardedModel:
    """A model and an optimizer that are divided among ranks; see `ModelStore`.

    What is whole is whole in rank 0 alone, and takes all ranks.

    Args:
        model: divided by `shard`.
        optimizer: of its parts.
        model_config: from which a whole model is built.
        vocab_size: different characters.
        mesh: the ranks it is divided among.
        device: where the parts are.
        team: the ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        model_config: ModelConfig,
        vocab_size: int,
        mesh: DeviceMesh,
        device: torch.device,
        team: Team,
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self._model_config = model_config
        self._vocab_size = vocab_size
        self._mesh = mesh
        self._device = device
        self._team = team
        self._gathered: tuple[Named, Named] | None = None

    def changed(self) -> None:
        """Forget what was put together: the weights are others now."""
        self._gathered = None

    def inference_model(self) -> nn.Module:
        """Return a whole copy of the model on the host, to write with."""
        model = build_model(self._model_config, self._vocab_size)
        model.load_state_dict(self.weights())
        return model.eval()

    def weights(self) -> Named:
        """Return the model's weights by name, whole and on the host, in rank 0."""
        return self._gather()[0]

    def optimizer_state(self) -> Named:
        """Return the optimizer's state by name, whole and on the host, in rank 0."""
        return self._gather()[1]

    def is_finite(self) -> bool:
        """Whether no weight is NaN or infinity."""
        return all(bool(weight.isfinite().all()) for weight in self.weights().values())

    def _gather(self) -> tuple[Named, Named]:
        """Put weights and optimizer state together, once for each state."""
        if self._gathered is None:
            self._team.order(Kind.GATHER)
            self._gathered = self.gather()
        return self._gathered

    def gather(self) -> tuple[Named, Named]:
        """Take part in putting everything together; rank 0 gets it."""
        self._divide_again()
        with attribute_failure(self._team.watch), torch.no_grad():
            weights: dict[str, list[Tensor]] = {}
            for name, parameter in self.model.named_parameters():
                weights.setdefault(plain_name(name), []).append(self._whole(parameter))
            if isinstance(self.optimizer, ShardedMuon):
                state = {
                    key: self._whole(self._as_distributed(key.partition("/")[2], value))
                    for key, value in self.optimizer.state_tensors().items()
                }
                return _stacked(weights), state
            parts: dict[str, list[Tensor]] = {}
            for key, value in self.optimizer.state_tensors().items():
                kind, _, name = key.partition("/")
                parts.setdefault(f"{kind}/{plain_name(name)}", []).append(self._whole(value))
            return _stacked(weights), _stacked(parts)

    def _divide_again(self) -> None:
        """After a validation what belongs to no layer is still whole: nothing went backward."""
        _divided(self.model).reshard()

    def _whole(self, value: Tensor) -> Tensor:
        """Return a divided tensor whole, on the host of rank 0; nothing in the others."""
        full = value.full_tensor() if isinstance(value, DTensor) else value
        return full.detach().to("cpu", copy=True) if self._team.leads else torch.zeros(0)

    def _as_distributed(self, name: str, local: Tensor) -> DTensor:
        """Return the stack of all layers' parts, or the part of what there is once, as divided."""
        parameters = [p for n, p in self.model.named_parameters() if plain_name(n) == name]
        parameter = parameters[0]
        assert isinstance(parameter, DTensor)
        shape, (placement,) = parameter.shape, parameter.placements
        assert isinstance(placement, Shard)
        if name in STACKED:
            shape, placement = torch.Size((len(parameters), *shape)), Shard(placement.dim + 1)
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            local, self._mesh, [placement], run_check=False, shape=shape, stride=stride
        )

    def load(self, weights: Named, optimizer: Named) -> None:
        """Take over this rank's part of what every rank has whole."""
        self._gathered = None
        self._divide_again()
        numbers: dict[str, int] = {}
        sharded: Named = {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                plain = plain_name(name)
                number = numbers[plain] = numbers.get(plain, -1) + 1
                own = self._own_part(weights[plain], plain, number, parameter)
                _here(parameter).copy_(_here(own))
                for key, value in optimizer.items():
                    kind, _, of = key.partition("/")
                    if of == plain and not isinstance(self.optimizer, ShardedMuon):
                        count = kind == "step"
                        of_it = value if count else self._own_part(value, plain, number, parameter)
                        sharded[f"{kind}/{name}"] = of_it
        if isinstance(self.optimizer, ShardedMuon):
            for key, local in self.optimizer.state_tensors().items():
                like = self._as_distributed(key.partition("/")[2], local)
                divided = distribute_tensor(
                    optimizer[key].to(self._device),
                    self._mesh,
                    like.placements,
                    src_data_rank=None,
                )
                sharded[key] = divided.to_local()
        self.optimizer.load_state_tensors(sharded)

    def _own_part(self, whole: Tensor, plain: str, number: int, like: Tensor) -> DTensor:
        """Return this rank's part of a whole tensor, or of one layer's share of a stack."""
        assert isinstance(like, DTensor)
        one = whole[number] if plain in STACKED else whole
        return distribute_tensor(
            one.to(self._device), self._mesh, like.placements, src_data_rank=None
        )


def plain_name(name: str) -> str:
    """Return the name that the undivided model has for a parameter."""
    return re.sub(r"^layers\.\d+\.", "", name)


def _divided(model: nn.Module) -> FSDPModule:
    assert isinstance(model, FSDPModule)
    return model


def _here(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _stacked(parts: Mapping[str, list[Tensor]]) -> Named:
    """Return each tensor whole: those of the layers as one stack."""
    found = {}
    for key, values in parts.items():
        kind, _, name = key.rpartition("/")
        stacks = name in STACKED and kind != "step"
        found[key] = torch.stack(values) if stacks else values[0]
    return found
