"""Reading one character of one text on a CUDA card by a few kernels of our own, written in Triton.

torch takes some twenty computations a layer for it, each shorter than the pause before it. Here a
layer is five: what lies between two matrix products is done by the product that reads it. The same
mathematics as `ModernReader`, which reads everything else.

Triton comes with torch on CUDA. It compiles a kernel when it is first called, in seconds, and keeps
what it compiled in the user's own folder: see `is_ready`.

Shapes: C = width, H heads, D = C / H, N slots, V characters.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from megatron_model.config.fields import SamplingConfig
from megatron_model.inference.card_kernels import (
    CAPPED,
    PLAIN,
    SQUARED,
    add_rows,
    attend,
    draw_character,
    embed,
    read_rows,
)
from megatron_model.inference.device_sampler import PLAINLY, DeviceSampler
from megatron_model.inference.static_reader import ModernReader, Trail, View, trail_of
from megatron_model.model.modern import ModernTransformer, distance_costs


class Tiles(NamedTuple):
    """How the work is cut: what was fastest on an H100, for small models and for large ones."""

    elements: int
    """Weights that one program multiplies at a time."""
    warps: int
    """Of a program, 32 threads each."""
    slots: int
    """Positions that a head looks at together."""


NARROW = Tiles(elements=4096, warps=4, slots=64)
"""Up to a width of 512."""
WIDE = Tiles(elements=16384, warps=16, slots=256)

_logger = logging.getLogger(__name__)


def _programs(rows: int, at_once: int) -> tuple[int]:
    return (triton.cdiv(rows, at_once),)


class FusedReader(ModernReader):
    """`ModernReader`, which reads a single character of a single text by kernels of its own.

    Args:
        model: see `ModernReader`.
        dtype: of the products, and of what is remembered.
    """

    def __init__(self, model: ModernTransformer, dtype: torch.dtype) -> None:
        super().__init__(model, 1, dtype)
        # Rows that lie one behind the other are read at once.
        self._narrow_rows = [weights.T.contiguous() for weights in self._narrow]
        self._slopes = distance_costs(self._heads).to(self._embedding.device)

    def read(self, tokens: Tensor, rows: slice, view: View, trail: Trail) -> tuple[Tensor, Trail]:
        """See `Reader`."""
        if tokens.numel() > 1:
            return super().read(tokens, rows, view, trail)
        width, device = self.width, tokens.device
        block = triton.next_power_of_2(width)
        tiles = NARROW if block <= 512 else WIDE

        def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(shape, dtype=dtype, device=device)

        x, kept = empty(width), empty(1, 1, width)
        embed[(1,)](tokens, trail.embedding, self._embedding, self._gate, x, kept, width, block)
        later = Trail(kept, [])

        def read_by(weights: Tensor, out: Tensor, then: Any, mix: tuple[int, int] | None) -> None:
            at_once = max(1, tiles.elements // block)
            normed, nearer, further, weight = x, x, x, (x, x)
            if mix is not None:
                half, layer = mix
                normed, weight = empty(1, 1, width), self._mixes[half][layer]
                nearer, further = trail.pairs[2 * layer + half]
                later.pairs.append((normed, nearer))
            read_rows[_programs(len(weights), at_once)](
                *(x, nearer, further, *weight, weights, out, normed, len(weights), width),
                *(mix is not None, then, block, at_once),
                num_warps=tiles.warps,
            )

        def add_by(h: Tensor, weights: Tensor) -> None:
            read = min(triton.next_power_of_2(weights.size(1)), tiles.elements)
            at_once = max(1, tiles.elements // read)
            add_rows[_programs(width, at_once)](
                h, weights, x, width, weights.size(1), read, at_once, num_warps=tiles.warps
            )

        slots = self.slots
        for layer, (qkv, out) in enumerate(zip(self._qkv, self._out, strict=True)):
            parts, mixed = empty(3 * width, dtype=self._dtype), empty(width, dtype=self._dtype)
            read_by(qkv, parts, PLAIN, (0, layer))
            attend[(self._heads,)](
                *(parts, slots.keys[layer], slots.values[layer], self._slopes, view.positions),
                *(mixed, width, self._depth, slots.count),
                *(triton.next_power_of_2(self._depth), tiles.slots),
                num_warps=tiles.warps,
            )
            add_by(mixed, out)
            wide = empty(len(self._widen[layer]), dtype=self._dtype)
            read_by(self._widen[layer], wide, SQUARED, (1, layer))
            add_by(wide, self._narrow_rows[layer])
        logits = empty(1, len(self._head))
        read_by(self._head, logits, CAPPED, None)
        return logits, later


class FusedSampler(DeviceSampler):
    """`DeviceSampler` of one text of which nothing is asked but a temperature, as one kernel."""

    def choose(self, logits: Tensor, draws: Tensor) -> Tensor:
        """See `DeviceSampler`."""
        if self._asked != PLAINLY:
            return super().choose(logits, draws)
        token = torch.empty(1, dtype=torch.long, device=logits.device)
        count = logits.size(1)
        block = triton.next_power_of_2(count)
        draw_character[(1,)](logits, self._temperature, draws, token, count, block)
        return token


@dataclass
class _Start:
    """The compiling of the kernels for models of one shape."""

    over: threading.Event = field(default_factory=threading.Event)
    worked: bool = False


_starts: dict[tuple[Any, ...], _Start] = {}
_starts_lock = threading.Lock()


def is_ready(model: ModernTransformer, dtype: torch.dtype, *, wait: bool) -> bool:
    """Whether the kernels for models of this shape are compiled: they are soon if not.

    Args:
        model: such a model, on a card.
        dtype: of the products.
        wait: until they are.
    """
    shapes = tuple((tuple(value.shape), value.device) for value in model.parameters())
    key = (shapes, model.heads, model.block_size, dtype)
    with _starts_lock:
        start = _starts.get(key)
        if start is None:
            start = _starts[key] = _Start()
            threading.Thread(target=_compile, args=(start, model, dtype), daemon=True).start()
    if wait:
        start.over.wait()
    return start.over.is_set() and start.worked


def _compile(start: _Start, model: ModernTransformer, dtype: torch.dtype) -> None:
    """Call every kernel once."""
    device = next(model.parameters()).device
    try:
        with (
            torch.no_grad(),
            torch.autocast(device.type, enabled=False),
            torch.cuda.stream(torch.cuda.Stream(device)),  # type: ignore[no-untyped-call]
        ):
            reader = FusedReader(model, dtype)
            sampler = FusedSampler(PLAINLY, 1, model.vocab_size, device)
            sampler.start([SamplingConfig()], [[]])
            nothing = [torch.zeros(1, 1, reader.width, device=device)] * (1 + 2 * reader.halves)
            token = torch.zeros(1, 1, dtype=torch.long, device=device)
            places = torch.zeros(1, dtype=torch.long, device=device)
            view = View(places, reader.slots.bias(places, reader.slots.count))
            logits, _ = reader.read(token, slice(None), view, trail_of(torch.stack(nothing)))
            sampler.choose(logits, torch.zeros(1, dtype=torch.float64, device=device)).item()
        start.worked = True
    except Exception as error:  # a compiler, and what it starts, may fail in any way
        _logger.warning("text is written without kernels of our own: %s", error)
    finally:
        start.over.set()
