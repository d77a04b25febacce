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
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from megatron_model.architectures import build_model
from megatron_model.classic import TransformerModel
from megatron_model.config import TrainingConfig
from megatron_model.distributed import Kind, Team
from megatron_model.distributed_learner import RankedLearner
from megatron_model.distributed_watch import blaming
from megatron_model.learner import State
from megatron_model.modern import LOGIT_CAP, ModernTransformer, _mix, _normalise, _shift
from megatron_model.muon import MATRICES, initial_state, orthogonalise, rates_at, update
from megatron_model.optimizer import AdamW
from megatron_model.soundness import sound

STACKED = ("attention", "feed_forward", "attention_mix", "feed_forward_mix")
"""The parameters of the modern model that hold something of every layer."""


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
        attend: Callable[[Tensor, Tensor], Tensor],
        drop: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """What `ModernTransformer.forward` does in one layer: (B, T, C) to (B, T, C)."""
        h = _mix(_normalise(x), self.attention_mix).to(dtype)
        x = x + drop(attend(h, self.attention.to(dtype)))
        h = _mix(_normalise(x), self.feed_forward_mix).to(dtype)
        weights = self.feed_forward.to(dtype)
        h = F.relu(F.linear(h, weights[0]).float()).square().to(dtype)
        out: Tensor = x + drop((h @ weights[1]).float())
        return out


class LayeredTransformer(ModernTransformer):
    """A modern transformer with a module for each layer in place of the stacks."""

    def split(self) -> LayeredTransformer:
        """Turn the stacks into layers."""
        self.layers = nn.ModuleList(Layer(self, n) for n in range(self.attention.size(0)))
        for name in STACKED:
            delattr(self, name)
        return self

    def forward(self, tokens: Tensor) -> Tensor:
        """Map token ids (B, T) to logits (B, T, V), as `ModernTransformer.forward` does."""
        kind = tokens.device.type
        autocast = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if autocast else torch.float32
        with torch.autocast(kind, enabled=False):
            x = F.embedding(tokens.clamp(max=self.vocab_size - 1), self.token_embedding)
            x = x * (tokens < self.vocab_size).unsqueeze(-1)
            x = _normalise(x + self.previous_gate * _shift(x, 1))
            for layer in self.layers:
                x = layer(x, dtype, self._attend, self._drop)
            logits = F.linear(_normalise(x).to(dtype), self.head.to(dtype)).float()
            return LOGIT_CAP * torch.tanh(logits / LOGIT_CAP)


class ShardedMuon:
    """`muon.update` on the part of every parameter that is here; see `optimizer.Optimizer`."""

    def __init__(self, model: nn.Module, config: TrainingConfig, team: Team) -> None:
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
    def step(self, step: int, scale: float, sound: Tensor | None = None) -> None:
        """Do update number `step` with `scale` times the peak rates, and drop the gradients."""
        # Every rank has the same numbers and decides alike.
        if sound is None or bool(sound):
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
        dtype = getattr(torch, self.config.muon_precision)
        rows = stack.flatten(0, -3).to(dtype)  # as it is computed, so that nothing is lost
        count = math.ceil(len(rows) / size)
        padded = rows.new_zeros(size * count, *rows.shape[1:])
        padded[: len(rows)] = rows
        received = self._team.exchange(padded.view(size, count, *rows.shape[1:]))
        whole = received.transpose(0, 1).flatten(1, 2)  # (count, rows, columns)
        mine = max(0, min(count, len(rows) - self._team.rank * count))
        done = whole.clone()
        if mine:
            done[:mine] = orthogonalise(whole[:mine], dtype=dtype)
        back = done.view(count, size, -1, done.size(-1)).transpose(0, 1).contiguous()
        result = self._team.exchange(back).flatten(0, 1)[: len(rows)]
        return result.float().view(stack.shape)

    def state_tensors(self) -> State:
        """Return the parts of the state that are here."""
        return dict(self._state)

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over the parts that belong here."""
        for name, value in self._state.items():
            value.copy_(tensors[name])


class ShardedLearner(RankedLearner):
    """One of several learners among which one model is divided."""

    _gathered: tuple[State, State] | None = None

    def _build_model(self) -> nn.Module:
        config = self.config.model
        if config.architecture == "classic":
            model: nn.Module = build_model(config, self._vocab_size)
        else:
            model = LayeredTransformer(
                self._vocab_size,
                config.block_size,
                config.embed_dim,
                config.heads,
                config.layers,
                config.ff_dim,
                config.dropout,
            ).split()
        self._mesh = init_device_mesh(self.device.type, (self.team.size,))
        units = model.blocks if isinstance(model, TransformerModel) else model.layers
        for unit in units:  # type: ignore[union-attr]
            self._divide(unit)
        self._divide(model)
        return model

    def _divide(self, module: nn.Module) -> None:
        matrices = {id(p) for n, p in module.named_parameters() if plain_name(n) in MATRICES}
        fully_shard(
            module,
            mesh=self._mesh,
            shard_placement_fn=lambda parameter: Shard(1 if id(parameter) in matrices else 0),
        )

    def _build_optimizer(self) -> Any:
        if self.config.training.optimizer == "muon":
            return ShardedMuon(self.model, self.config.training, self.team)
        return AdamW(self.model, self.config.training)

    def _compiling_pays(self) -> bool:
        return False

    def _wrapped(self) -> nn.Module:
        return self.model

    def _pass(self, last: bool) -> contextlib.AbstractContextManager[object]:
        self.model.set_requires_gradient_sync(last)  # type: ignore[operator]
        return contextlib.nullcontext()

    def _update(self, number: int, scale: float, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Let the optimizer take the gradients that are here; return loss and gradient norm."""
        gradients = [_here(p.grad) for p in self.model.parameters() if p.grad is not None]
        squares = torch.stack([gradient.square().sum() for gradient in gradients]).sum()
        self.team.sum(squares)
        norm = squares.sqrt()
        if clip := self.config.training.gradient_clip:
            share = (clip / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(share)
        self._optimizer.step(number, scale, sound(loss, norm))
        self._gathered = None
        return loss, norm

    @property
    def _all_take_part(self) -> bool:
        return True  # putting a layer together takes all of them

    def writer(self) -> nn.Module:
        """Return a whole copy of the model on the host, to write with."""
        model = build_model(self.config.model, self._vocab_size)
        model.load_state_dict(self.weights())
        return model.eval()

    def weights(self) -> State:
        """Return the model's weights by name, whole and on the host, in rank 0."""
        return self._gather()[0]

    def optimizer_state(self) -> State:
        """Return the optimizer's state by name, whole and on the host, in rank 0."""
        return self._gather()[1]

    def is_finite(self) -> bool:
        """Whether every weight is a finite number."""
        return all(bool(weight.isfinite().all()) for weight in self.weights().values())

    def _gather(self) -> tuple[State, State]:
        """Put weights and optimizer state together, once for each state."""
        if self._gathered is None:
            self.team.order(Kind.GATHER)
            self._gathered = self.gather_state()
        return self._gathered

    def gather_state(self) -> tuple[State, State]:
        """Take part in putting everything together; rank 0 gets it."""
        self._divide_again()
        with blaming(self.team.watch), torch.no_grad():
            weights: dict[str, list[Tensor]] = {}
            for name, parameter in self.model.named_parameters():
                weights.setdefault(plain_name(name), []).append(self._whole(parameter))
            if isinstance(self._optimizer, ShardedMuon):
                state = {
                    key: self._whole(self._as_distributed(key.partition("/")[2], value))
                    for key, value in self._optimizer.state_tensors().items()
                }
                return _stacked(weights), state
            parts: dict[str, list[Tensor]] = {}
            for key, value in self._optimizer.state_tensors().items():
                kind, _, name = key.partition("/")
                parts.setdefault(f"{kind}/{plain_name(name)}", []).append(self._whole(value))
            return _stacked(weights), _stacked(parts)

    def _divide_again(self) -> None:
        """After a validation what belongs to no layer is still whole: nothing went backward."""
        self.model.reshard()  # type: ignore[operator]

    def _whole(self, value: Tensor) -> Tensor:
        """Return a divided tensor whole, on the host of rank 0; nothing in the others."""
        full = value.full_tensor() if isinstance(value, DTensor) else value
        return full.detach().to("cpu", copy=True) if self.team.leads else torch.zeros(0)

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

    def _load_tensors(self, weights: State, optimizer: State) -> None:
        """Take over this rank's part of what every rank has whole."""
        self._gathered = None
        self._divide_again()
        numbers: dict[str, int] = {}
        sharded: State = {}
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                plain = plain_name(name)
                number = numbers[plain] = numbers.get(plain, -1) + 1
                own = self._divided(weights[plain], plain, number, parameter)
                _here(parameter).copy_(_here(own))
                for key, value in optimizer.items():
                    kind, _, of = key.partition("/")
                    if of == plain and not isinstance(self._optimizer, ShardedMuon):
                        count = kind == "step"
                        of_it = value if count else self._divided(value, plain, number, parameter)
                        sharded[f"{kind}/{name}"] = of_it
        if isinstance(self._optimizer, ShardedMuon):
            for key, local in self._optimizer.state_tensors().items():
                like = self._as_distributed(key.partition("/")[2], local)
                divided = distribute_tensor(
                    optimizer[key].to(self.device),
                    self._mesh,
                    like.placements,
                    src_data_rank=None,
                )
                sharded[key] = divided.to_local()
        self._optimizer.load_state_tensors(sharded)

    def _divided(self, whole: Tensor, plain: str, number: int, like: Tensor) -> DTensor:
        """Return this rank's part of a whole tensor, or of one layer's share of a stack."""
        assert isinstance(like, DTensor)
        one = whole[number] if plain in STACKED else whole
        return distribute_tensor(
            one.to(self.device), self._mesh, like.placements, src_data_rank=None
        )


def plain_name(name: str) -> str:
    """Return the name that the undivided model has for a parameter."""
    return re.sub(r"^layers\.\d+\.", "", name)


def _here(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _stacked(parts: Mapping[str, list[Tensor]]) -> State:
    """Return each tensor whole: those of the layers as one stack."""
    found = {}
    for key, values in parts.items():
        kind, _, name = key.rpartition("/")
        stacks = name in STACKED and kind != "step"
        found[key] = torch.stack(values) if stacks else values[0]
    return found
