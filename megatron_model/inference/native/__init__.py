"""decode.c, compiled for this processor: cached decoding in one call a step, without Python.

Torch spends more time between its operations than in them when it decodes one character, and reads
weights at a fraction of the memory's speed; this does neither, and leaves Python to other threads
meanwhile. It is compiled in the background the first time, which takes a second or two; until then,
and where there is no compiler, torch decodes.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from megatron_model.inference.native.rounded import GROUP, RoundedMatrix, rounded_matrices
from megatron_model.model.classic import Block, TransformerModel
from megatron_model.model.modern import LOGIT_CAP, ModernTransformer, distance_costs
from megatron_model.model.size import MIXED_BEFORE
from megatron_model.util.c_library import CLibrary
from megatron_model.util.library_build import Build
from megatron_model.util.library_store import discard, open_library, place

# Apple's compiler has no OpenMP.
LIBRARY = CLibrary("decode", Path(__file__).with_name("decode.c"), ["-fopenmp"], [])
THREADED_FROM_WEIGHTS = 4 << 20
"""Weights, times the positions read at once, from which a step is divided among threads: below,
they cost more than they bring."""

LANES, TOGETHER, PIECE = 16, 8, 64
"""As vectors.h, decode.c and attention.h have them."""
ROWS_AT_ONCE = 256
"""Positions of all streams together that are read at once: they stay close to the processor."""

_logger = logging.getLogger(__name__)

_NORMS = ["norm1", "norm1_bias", "mix1", "norm2", "norm2_bias", "mix2"]
_MATRICES = ["qkv", "out", "widen", "narrow"]
_MEMORY = ["keys", "values", "before1", "before2"]
_NUMBERS = ["layers", "width", "heads", "ff", "vocab", "positions_kept", "streams", "threads"]
_NUMBERS += ["modern", "rounded"]
_TENSORS = ["embedding", "positions", "gate", "slopes", "norm", "norm_bias", "head", "head_bias"]
_SCRATCH = ["x", "h", "normed", "qkv", "mixed", "wide_h", "scores"]
_SCRATCH += ["values", "value_scales", "lists", "pairs"]


class _Matrix(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("numbers", "scales", "bias")]


class _Layer(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_void_p) for name in _NORMS],
        *[(name, _Matrix) for name in _MATRICES],
        *[(name, ctypes.c_void_p) for name in _MEMORY],
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in _NUMBERS],
        *[(name, ctypes.c_void_p) for name in _TENSORS],
        ("logit_cap", ctypes.c_float),
        ("previous", ctypes.c_void_p),
        *[(name, ctypes.c_void_p) for name in _SCRATCH],
        ("layer", ctypes.c_void_p),
    ]


class StructSizeError(Exception):
    """decode.c and this module do not mean the same by a struct."""


class Functions(NamedTuple):
    """What decode.c offers."""

    decode: Any
    round: Any


class NativeStep:
    """The compiled step, bound to one model, with the memory of what its streams have read.

    Args:
        functions: the library's.
        model: its weights are read where they lie.
        streams: texts that are read in step.
        rounded: its matrices are copied and rounded to 8 bits, and keys and values to bfloat16.
    """

    def __init__(
        self,
        functions: Functions,
        model: TransformerModel | ModernTransformer,
        streams: int,
        *,
        rounded: bool = False,
    ) -> None:
        self._function = functions.decode
        self._streams = streams
        shared, layers, numbers = _parts(model)
        count, heads, ff = len(layers), numbers["heads"], numbers["ff"]
        width, depth = shared["embedding"].size(1), shared["embedding"].size(1) // heads
        positions = _rounded_up(model.block_size, PIECE)
        self._work = sum(value.numel() for value in model.parameters())
        self._threads = torch.get_num_threads()
        numbers |= {"layers": count, "width": width, "positions_kept": positions}
        numbers |= {"streams": streams, "threads": self._threads, "rounded": int(rounded)}
        self._remember(count, streams, heads, positions, depth, rounded)
        self._at_once = min(model.block_size, max(1, ROWS_AT_ONCE // streams))
        scratch = _scratch(streams * self._at_once, width, ff)
        scratch["scores"] = torch.empty(streams, heads, positions)
        transposed = {"narrow"} if numbers["modern"] else set[str]()
        copies: list[dict[str, RoundedMatrix]] = (
            rounded_matrices(functions.round, model, layers, _MATRICES, transposed)
            if rounded
            else [{} for _ in layers]
        )
        self._alive = [shared, layers, scratch, copies]  # C holds bare addresses of these
        self._layers = (_Layer * count)(
            *[self._layer(index, layers[index], copies[index]) for index in range(count)]
        )
        self._model = _Model(
            **numbers,
            **_addresses(shared | scratch),
            previous=self._previous.data_ptr(),
            logit_cap=LOGIT_CAP if numbers["modern"] else 0.0,
            layer=ctypes.addressof(self._layers),
        )
        self._reference = ctypes.byref(self._model)

    def _remember(
        self, layers: int, streams: int, heads: int, positions: int, depth: int, rounded: bool
    ) -> None:
        dtype = torch.bfloat16 if rounded else torch.float32
        before = (layers, streams, heads, positions // PIECE)
        self._keys = torch.zeros(*before, PIECE * depth, dtype=dtype)
        self._values = torch.zeros(*before, PIECE * _rounded_up(depth, LANES), dtype=dtype)
        self._before = torch.zeros(layers, 2, streams, MIXED_BEFORE, heads * depth)
        self._previous = torch.full((streams,), -1)
        self._length = 0

    def _layer(
        self, index: int, tensors: dict[str, Tensor], copies: dict[str, RoundedMatrix]
    ) -> _Layer:
        memory = {"keys": self._keys[index], "values": self._values[index]}
        memory |= {"before1": self._before[index, 0], "before2": self._before[index, 1]}
        norms = {name: tensors[name] for name in _NORMS if name in tensors}
        matrices = {}
        for name in _MATRICES:
            copy = copies.get(name)
            parts = {"numbers": tensors[name]} if copy is None else copy._asdict()
            if f"{name}_bias" in tensors:
                parts["bias"] = tensors[f"{name}_bias"]
            matrices[name] = _Matrix(**_addresses(parts))
        return _Layer(**_addresses(norms | memory), **matrices)

    def clear(self) -> None:
        """Forget everything that was read."""
        self._length = 0
        self._before.zero_()
        self._previous.fill_(-1)

    def __call__(self, tokens: Tensor, logits: Tensor) -> None:
        """Read the next tokens (S, T) and write the logits (S, V) after the last.

        One row of tokens stands for streams that are all alike.
        """
        self._model.streams = len(tokens)
        whole = tokens.size(1) <= self._at_once
        for part in [tokens] if whole else torch.split(tokens, self._at_once, dim=1):
            part = part.contiguous()
            work = self._work * part.numel()
            self._model.threads = self._threads if work >= THREADED_FROM_WEIGHTS else 1
            self._function(
                self._reference, part.data_ptr(), self._length, part.size(1), logits.data_ptr()
            )
            self._length += part.size(1)
        if len(tokens) < self._streams:
            self._spread()
            logits[1:] = logits[0]

    def _spread(self) -> None:
        """Let all streams remember what the first one does."""
        pieces = -(-self._length // PIECE)
        for kept in (self._keys, self._values):
            kept[:, 1:, :, :pieces] = kept[:, :1, :, :pieces]
        self._before[:, :, 1:] = self._before[:, :, :1]
        self._previous[1:] = self._previous[0]


def native_step(
    model: nn.Module, streams: int, *, rounded: bool = False, wait: bool = False
) -> NativeStep | None:
    """Return the compiled step for a model, or nothing where torch must do it.

    `wait`: until the compiler is through.
    """
    if not isinstance(model, (TransformerModel, ModernTransformer)):
        return None
    plain = all(
        value.device.type == "cpu" and value.dtype == torch.float32 and value.is_contiguous()
        for value in model.parameters()
    )
    functions = compiled_functions(wait=wait) if plain else None
    return NativeStep(functions, model, streams, rounded=rounded) if functions else None


def _scratch(rows: int, width: int, ff: int) -> dict[str, Tensor]:
    """Return memory for so many positions; what it is for stands in decode.c."""
    sizes = {"x": width, "h": width, "normed": width, "qkv": 3 * width, "mixed": width}
    scratch = {name: torch.empty(rows, size) for name, size in (sizes | {"wide_h": ff}).items()}
    groups, blocks = -(-max(width, ff) // GROUP), -(-rows // TOGETHER)
    scratch["values"] = torch.empty(rows, groups * GROUP // 2, dtype=torch.int32)
    scratch["value_scales"] = torch.empty(rows, groups)
    scratch["lists"] = torch.empty(blocks, groups, GROUP, dtype=torch.int16)
    scratch["pairs"] = torch.empty(blocks, groups, dtype=torch.int32)
    return scratch


def _rounded_up(number: int, to: int) -> int:
    return -(-number // to) * to


def compiled_functions(*, wait: bool = False) -> Functions | None:
    """Return the compiled functions, or nothing while it is not there.

    Args:
        wait: until the compiler is through; otherwise it is only started.
    """
    path = LIBRARY.find()
    if path is None:
        build = _start_compiler(LIBRARY.name, place().folder)
        if build is None or (not wait and build.running()):
            return None
        reason, path = build.wait(), LIBRARY.find()
        if path is None:
            _say(reason)
            return None
    return _load(path)


@cache
def _start_compiler(_name: str, _folder: Path | None) -> Build | None:
    """Start making the library, once for a folder; nothing where that cannot be."""
    try:
        return LIBRARY.start_build()
    except OSError as error:
        _say(error.strerror or str(error))
        return None


@cache
def _load(path: Path) -> Functions | None:
    try:
        library = open_library(path)
        functions = Functions(library.megatron_decode, library.megatron_round)
        check_sizes(library)
    except (OSError, AttributeError, StructSizeError) as error:
        discard(path)
        _say(str(error))
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    functions.decode.argtypes = [pointer, pointer, number, number, pointer]
    functions.round.argtypes = [pointer, *[number] * 4, pointer, pointer, number]
    functions.decode.restype = functions.round.restype = None
    return functions


def check_sizes(library: ctypes.CDLL) -> None:
    """Compare the structs as they are filled in here with those that the library reads.

    Raises:
        StructSizeError: the two differ: it would read addresses where there are none.
        AttributeError: the library does not tell.
    """
    for name, struct in (("model", _Model), ("layer", _Layer)):
        size_there = getattr(library, f"megatron_{name}_size")
        size_there.argtypes, size_there.restype = [], ctypes.c_int64
        here, there = ctypes.sizeof(struct), size_there()
        if here != there:
            raise StructSizeError(f"decode.c has {there} bytes for a {name}, {__name__} has {here}")


@cache
def _say(reason: str) -> None:
    """Write down, once, why torch decodes, which is slower."""
    _logger.warning("text is written without the compiled step: %s", reason)


def _addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: value.data_ptr() for name, value in tensors.items()}


def _parts(
    model: TransformerModel | ModernTransformer,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], dict[str, int]]:
    """Return the tensors of the model and of each layer by their names in decode.c, and numbers."""
    if isinstance(model, ModernTransformer):
        return _modern_parts(model)
    norm, head = model.norm, model.head
    shared = {"embedding": model.token_embedding.weight, "head": head.weight}
    shared |= {"positions": model.position_embedding.weight, "head_bias": head.bias}
    shared |= {"norm": norm.weight, "norm_bias": norm.bias}
    blocks: list[Block] = list(model.blocks)  # type: ignore[arg-type]
    layers = [_classic_layer(block) for block in blocks]
    numbers = {"modern": 0, "vocab": model.vocab_size, "ff": layers[0]["widen"].size(0)}
    numbers["heads"] = blocks[0].attention.heads
    return _detached(shared), layers, numbers


def _classic_layer(block: Block) -> dict[str, Tensor]:
    modules: dict[str, Any] = {
        "norm1": block.attention_norm,
        "qkv": block.attention.qkv,
        "out": block.attention.projection,
        "norm2": block.feed_forward_norm,
        "widen": block.feed_forward[0],
        "narrow": block.feed_forward[2],
    }
    layer: dict[str, Tensor] = {}
    for name, module in modules.items():
        layer |= {name: module.weight, f"{name}_bias": module.bias}
    return _detached(layer)


def _modern_parts(
    model: ModernTransformer,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]], dict[str, int]]:
    slopes = distance_costs(model.heads)
    shared: dict[str, Tensor] = {"embedding": model.token_embedding, "head": model.head}
    shared |= {"gate": model.previous_gate, "slopes": slopes.contiguous()}
    layers = []
    for index in range(model.attention.size(0)):
        attention, feed_forward = model.attention[index], model.feed_forward[index]
        layer = {"qkv": attention[:3].flatten(0, 1), "out": attention[3]}
        layer |= {"widen": feed_forward[0], "narrow": feed_forward[1]}
        layer |= {"mix1": model.attention_mix[index], "mix2": model.feed_forward_mix[index]}
        layers.append(_detached(layer))
    numbers = {"modern": 1, "vocab": model.vocab_size, "ff": model.feed_forward.size(2)}
    numbers["heads"] = model.heads
    return _detached(shared), layers, numbers


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in tensors.items()}
