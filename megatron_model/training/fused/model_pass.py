"""The forward and the backward pass of the modern transformer, written out over kept memory.

A pass is made for one shape: every product and every kernel of it is bound to its memory once, in
the order in which they are done. Shapes are those of `modern`: N = B * T positions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from megatron_model.model.modern import LOGIT_CAP, ModernTransformer, distance_costs
from megatron_model.training.fused.library import Kernel, Library

ROWS_AT_ONCE = 64
"""Positions that a part of a kernel's work goes through."""
MIX_PARTS = 64
"""Parts that add up gradients of the mixes each for itself: a fixed number, so that sums are taken
in the same order by any number of threads."""
NUMBERS_AT_ONCE = 1 << 14
COLUMNS_AT_ONCE = 32

Operation = Callable[[], object]
Named = dict[str, Tensor]


class ModelPass:
    """Passes of `rows` sequences of `length` characters through a model.

    Args:
        library: the compiled kernels.
        model: its parameters are read where they lie.
        rows, length: B and T.
        dtype: of what the matrix products read, bfloat16 or float32.
        gradients: where they are written, float32 by the parameters' names; without them there is
            no backward pass, and layers share their memory.
    """

    def __init__(
        self,
        library: Library,
        model: ModernTransformer,
        rows: int,
        length: int,
        dtype: torch.dtype,
        gradients: Named | None = None,
    ) -> None:
        self._library, self._bind, self._dtype = library, library.bind, dtype
        self._model = model
        self._parameters = {name: value.detach() for name, value in model.named_parameters()}
        self._layers, _, self._width, _ = model.attention.shape
        self._wide = model.feed_forward.size(2)
        self._vocabulary, self._heads = model.vocab_size, model.heads
        self._rows, self._length, self._count = rows, length, rows * length
        self.tokens = torch.zeros(rows, length, dtype=torch.int64)
        self.targets = torch.zeros(rows, length, dtype=torch.int64)
        self.losses = torch.zeros(rows, length)
        self._dropping: list[tuple[Kernel, int]] = []
        self._weights = self._cast_weights()
        self._slopes = distance_costs(model.heads)
        self._gradients = gradients
        self._memory(keep=gradients is not None)
        self._forward = self._bound_forward()
        self._loss = self._bind(
            "cross_entropy",
            dtype=dtype,
            parts=-(-self._count // ROWS_AT_ONCE),
            scratch=8 * self._vocabulary,
            rows=self._count,
            chunk=ROWS_AT_ONCE,
            vocabulary=self._vocabulary,
            logits=self._logits,
            targets=self.targets,
            losses=self.losses,
            cap=LOGIT_CAP,
            factor=0.0,
        )
        self._products: Named = {}
        self._backward = [] if gradients is None else self._bound_backward(gradients)

    def losses_of(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each position (B, T), in nats, without dropout."""
        self._run(tokens, targets, factor=0.0)
        return self.losses

    def learn(self, tokens: Tensor, targets: Tensor, *, factor: float, seed: int) -> Tensor:
        """Return the loss of each position (B, T), and write the gradients.

        They are those of the sum of all losses times `factor`; `seed` decides what is dropped.
        """
        for kernel, site in self._dropping:
            kernel.arguments.seed = (seed + site * 0x9E3779B9) & 0xFFFFFFFF
        self._run(tokens, targets, factor=factor)
        for operation in self._backward:
            operation()
        for name, value in self._products.items():
            if self._gradients is not None and self._gradients[name] is not value:
                self._gradients[name].copy_(value)
        return self.losses

    def _run(self, tokens: Tensor, targets: Tensor, *, factor: float) -> None:
        self.tokens.copy_(tokens)
        self.targets.copy_(targets)
        if self._dtype != torch.float32:
            for name, value in self._weights.items():
                value.copy_(self._parameters[name])
        for operation in self._forward:
            operation()
        self._loss.arguments.factor = factor
        self._loss()

    def _cast_weights(self) -> Named:
        """Return what the products read; in float32 that is the parameters themselves."""
        names = ("attention", "feed_forward", "head")
        if self._dtype == torch.float32:
            return {name: self._parameters[name] for name in names}
        return {name: self._parameters[name].to(self._dtype) for name in names}

    def _memory(self, *, keep: bool) -> None:
        """Set aside what the passes write; going back needs what each layer made."""
        count, width, layers = self._count, self._width, self._layers
        steps = 2 * layers + 1  # additions to the sum that runs through the layers, and its begin

        def some(number: int, *shape: int, dtype: torch.dtype, own: int = 1) -> list[Tensor]:
            made = [torch.empty(*shape, dtype=dtype) for _ in range(number if keep else own)]
            return [made[index % len(made)] for index in range(number)]

        # Two sums, as a part of a kernel's work reads the rows before its own.
        self._x = some(steps, count, width, dtype=torch.float32, own=2)
        self._mean = some(steps, count, dtype=torch.float32)
        self._spread = some(steps + 1, count, dtype=torch.float32)  # and that of the embedding
        self._h = some(steps, count, width, dtype=self._dtype)
        self._projected = some(layers, count, 3 * width, dtype=self._dtype)
        self._mixed = some(layers, count, width, dtype=self._dtype)
        self._totals = some(layers, count * self._heads, dtype=torch.float32)
        self._widened = some(layers, count, self._wide, dtype=self._dtype)
        self._squared = some(layers, count, self._wide, dtype=self._dtype)
        self._added = torch.empty(count, width, dtype=self._dtype)
        self._logits = torch.empty(count, self._vocabulary, dtype=self._dtype)

    def _bound_forward(self) -> list[Operation]:
        done: list[Operation] = [
            self._bind(
                "embed",
                parts=-(-self._count // ROWS_AT_ONCE),
                scratch=4 * self._width,
                **self._text(),
                chunk=ROWS_AT_ONCE,
                x=self._x[0],
                spread=self._spread[-1],
            )
        ]
        for layer in range(self._layers):
            attention, narrow = self._weights["attention"][layer], 2 * layer + 1
            widen, back = self._weights["feed_forward"][layer]
            done += [
                self._normalise(2 * layer, self._parameters["attention_mix"][layer]),
                _product(self._h[2 * layer], _inputs(attention).t(), self._projected[layer]),
                self._attend(layer),
                _product(self._mixed[layer], attention[3].t(), self._added),
                self._normalise(narrow, self._parameters["feed_forward_mix"][layer]),
                _product(self._h[narrow], widen.t(), self._widened[layer]),
                self._numbers("square", x=self._widened[layer], out=self._squared[layer]),
                _product(self._squared[layer], back, self._added),
            ]
        last = self._normalise(2 * self._layers, None)
        head = _product(self._h[-1], self._weights["head"].t(), self._logits)
        return [*done, last, head]

    def _bound_backward(self, found: Named) -> list[Operation]:
        count, width, float32 = self._count, self._width, self._dtype == torch.float32
        products = {
            k: found[k] if float32 else torch.empty_like(v) for k, v in self._weights.items()
        }
        self._products = products
        self._sum = torch.empty(count, width)
        self._gradient = torch.empty(count, width, dtype=self._dtype)
        wide = torch.empty(count, self._wide, dtype=self._dtype)
        projected = torch.empty(count, 3 * width, dtype=self._dtype)
        mixed, added = torch.empty_like(self._gradient), torch.empty_like(self._gradient)
        chunk = -(-count // MIX_PARTS)
        parts = -(-count // chunk)
        mixes = {
            name: torch.empty(self._layers, parts, *self._parameters[name].shape[1:])
            for name in ("attention_mix", "feed_forward_mix")
        }
        back = partial(self._normalise_back, added, chunk, parts)
        head = self._weights["head"]
        done: list[Operation] = [
            _product(self._logits.t(), self._h[-1], products["head"]),
            _product(self._logits, head, self._gradient),
            back(2 * self._layers, None, mixes["attention_mix"][0]),
        ]
        for layer in reversed(range(self._layers)):
            attention, own = self._weights["attention"][layer], products["attention"][layer]
            widen, narrow = self._weights["feed_forward"][layer]
            own_widen, own_narrow = products["feed_forward"][layer]
            first, second = 2 * layer, 2 * layer + 1
            done += [
                _product(self._squared[layer].t(), added, own_narrow),
                _product(added, narrow.t(), wide),
                self._numbers("square_back", x=self._widened[layer], gradient=wide),
                _product(wide.t(), self._h[second], own_widen),
                _product(wide, widen, self._gradient),
                back(second, self._mix("feed_forward", layer), mixes["feed_forward_mix"][layer]),
                _product(added.t(), self._mixed[layer], own[3]),
                _product(added, attention[3], mixed),
                self._attend_back(layer, mixed, projected),
                _product(projected.t(), self._h[first], _inputs(own)),
                _product(projected, _inputs(attention), self._gradient),
                back(first, self._mix("attention", layer), mixes["attention_mix"][layer]),
            ]
        for name, value in mixes.items():
            done.append(
                self._bind(
                    "add_parts",
                    parts=self._layers,
                    values=value,
                    out=found[name],
                    pieces=parts,
                    count=value[0, 0].numel(),
                )
            )
        return [*done, *self._embed_back(found)]

    def _mix(self, kind: str, layer: int) -> Tensor:
        return self._parameters[f"{kind}_mix"][layer]

    def _text(self) -> dict[str, Any]:
        return {
            "rows": self._count,
            "length": self._length,
            "width": self._width,
            "vocabulary": self._vocabulary,
            "tokens": self.tokens,
            "table": self._parameters["token_embedding"],
            "gate": self._parameters["previous_gate"],
        }

    def _dropout(self) -> dict[str, Any]:
        share = self._model.dropout if self._gradients is not None else 0.0
        return {"seed": 0, "dropped": int(share * 2**32), "scale": 1.0 / (1.0 - share)}

    def _normalise(self, step: int, mix: Tensor | None) -> Kernel:
        """Return the norm before a layer's half, which first adds what the half before it made."""
        kernel = self._bind(
            "normalise",
            dtype=self._dtype,
            parts=self._rows * -(-self._length // ROWS_AT_ONCE),
            scratch=16 * self._width,
            length=self._length,
            width=self._width,
            chunk=ROWS_AT_ONCE,
            x=self._x[max(0, step - 1)],
            added=self._added if step else None,
            sum=self._x[step],
            mix=mix,
            out=self._h[step],
            mean=self._mean[step],
            spread=self._spread[step],
            **self._dropout(),
        )
        self._dropping.append((kernel, step))
        return kernel

    def _normalise_back(
        self, added: Tensor, chunk: int, parts: int, step: int, mix: Tensor | None, mixes: Tensor
    ) -> Kernel:
        kernel = self._bind(
            "normalise_back",
            dtype=self._dtype,
            parts=parts,
            scratch=16 * self._width,
            rows=self._count,
            length=self._length,
            width=self._width,
            chunk=chunk,
            gradient=self._gradient,
            x=self._x[step],
            mix=mix,
            mean=self._mean[step],
            spread=self._spread[step],
            sum=self._sum,
            added=added,
            mixes=mixes,
            last=int(step == 2 * self._layers),
            **self._dropout(),
        )
        self._dropping.append((kernel, step))
        return kernel

    def _attend(self, layer: int) -> Kernel:
        return self._bind(
            "attend",
            **self._heads_shape(),
            projected=self._projected[layer],
            slopes=self._slopes,
            mixed=self._mixed[layer],
            totals=self._totals[layer],
        )

    def _attend_back(self, layer: int, gradient: Tensor, out: Tensor) -> Kernel:
        return self._bind(
            "attend_back",
            **self._heads_shape(),
            projected=self._projected[layer],
            slopes=self._slopes,
            mixed=self._mixed[layer],
            totals=self._totals[layer],
            gradient=gradient,
            out=out,
        )

    def _heads_shape(self) -> dict[str, Any]:
        depth = self._width // self._heads
        return {
            "dtype": self._dtype,
            "parts": self._rows * self._heads,
            "scratch": self._library.attention_scratch(self._dtype, self._length, depth),
            "length": self._length,
            "heads": self._heads,
            "depth": depth,
        }

    def _numbers(self, name: str, x: Tensor, **values: Any) -> Kernel:
        return self._bind(
            name,
            dtype=self._dtype,
            parts=-(-x.numel() // NUMBERS_AT_ONCE),
            count=x.numel(),
            chunk=NUMBERS_AT_ONCE,
            x=x,
            **values,
        )

    def _embed_back(self, found: Named) -> list[Operation]:
        rows = self._bind(
            "embed_back",
            parts=-(-self._count // ROWS_AT_ONCE),
            rows=self._count,
            width=self._width,
            chunk=ROWS_AT_ONCE,
            x=self._x[0],
            spread=self._spread[-1],
            gradient=self._sum,
        )
        table = self._bind(
            "embed_back_table",
            parts=-(-self._width // COLUMNS_AT_ONCE),
            **self._text(),
            chunk=COLUMNS_AT_ONCE,
            gradient=self._sum,
            tables=found["token_embedding"],
            gates=found["previous_gate"],
        )
        return [rows, table]


def _product(left: Tensor, right: Tensor, out: Tensor) -> Operation:
    return partial(torch.mm, left, right, out=out)


def _inputs(attention: Tensor) -> Tensor:
    """Return the matrices of query, key and value (4, C, C) as one (3 C, C)."""
    return attention[:3].view(-1, attention.size(-1))
