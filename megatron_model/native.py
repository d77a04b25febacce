"""decode.c, compiled for this processor: cached decoding in one call a step, without Python.

Torch spends more time between its operations than in them when it decodes one character, and reads
weights at a fraction of the memory's speed; this does neither, and leaves Python to other threads
meanwhile. It is compiled in the background the first time, which takes a second or two; until then,
and where there is no compiler, torch decodes.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from megatron_model.cache import Cache
from megatron_model.classic import Block, TransformerModel
from megatron_model.modern import LOGIT_CAP, ModernTransformer

SOURCE = Path(__file__).with_name("decode.c")
_FLAGS = ["-O3", "-march=native", "-shared", "-fPIC"]
_FLAGS += ["-fno-math-errno", "-fno-trapping-math"]
THREADED_FROM_BYTES = 16 << 20
"""Weights, times the positions read at once, from which a step is divided among threads: below,
they cost more than they bring."""

ROWS_AT_ONCE = 256
"""Positions of all streams together that are read at once: they stay close to the processor."""

_LAYER_FIELDS = ["norm1", "norm1_bias", "mix1", "qkv", "qkv_bias", "out", "out_bias"]
_LAYER_FIELDS += ["norm2", "norm2_bias", "mix2", "widen", "widen_bias", "narrow", "narrow_bias"]
_LAYER_FIELDS += ["keys", "values", "before1", "before2"]
_NUMBERS = ["layers", "width", "heads", "ff", "vocab", "block", "streams", "threads", "modern"]
_TENSORS = ["embedding", "positions", "gate", "slopes", "norm", "norm_bias", "head", "head_bias"]
_SCRATCH = ["x", "h", "qkv", "mixed", "wide_h", "scores"]


class _Layer(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _LAYER_FIELDS]


class _Model(ctypes.Structure):
    _fields_ = [
        *[(name, ctypes.c_int64) for name in _NUMBERS],
        *[(name, ctypes.c_void_p) for name in _TENSORS],
        ("logit_cap", ctypes.c_float),
        ("previous", ctypes.c_void_p),
        *[(name, ctypes.c_void_p) for name in _SCRATCH],
        ("layer", ctypes.c_void_p),
    ]


class NativeStep:
    """One model and one cache, bound to the compiled step. The weights are read where they lie."""

    def __init__(
        self, function: Any, model: TransformerModel | ModernTransformer, cache: Cache
    ) -> None:
        self._function = function
        self._cache = cache
        shared, layers, numbers = _parts(model)
        count, streams, heads, depth, block = cache.keys.shape
        width = heads * depth
        numbers |= {"layers": count, "width": width, "heads": heads, "block": block}
        self._weight_bytes = sum(4 * value.numel() for value in model.parameters())
        self._threads = torch.get_num_threads()
        numbers |= {"streams": streams, "threads": self._threads}
        sizes = {"x": width, "h": width, "qkv": 3 * width, "mixed": width}
        sizes |= {"wide_h": numbers["ff"], "scores": heads * block}
        self._at_once = min(block, max(1, ROWS_AT_ONCE // streams))
        rows = streams * self._at_once
        scratch = {name: torch.empty(rows, size) for name, size in sizes.items()}
        for index, layer in enumerate(layers):
            layer |= {"keys": cache.keys[index], "values": cache.values[index]}
            if "mix1" in layer:
                layer |= {"before1": cache.before[index, 0], "before2": cache.before[index, 1]}
        self._alive = [shared, layers, scratch]  # C holds bare addresses of these
        self._layers = (_Layer * count)(*[_Layer(**_addresses(layer)) for layer in layers])
        self._model = _Model(
            **numbers,
            **_addresses(shared | scratch),
            previous=cache.previous.data_ptr(),
            logit_cap=LOGIT_CAP if numbers["modern"] else 0.0,
            layer=ctypes.addressof(self._layers),
        )
        self._reference = ctypes.byref(self._model)

    def __call__(self, tokens: Tensor, logits: Tensor) -> None:
        """Read the next tokens (S, T) and write the logits (S, V) after the last.

        One row of tokens stands for streams that are all alike.
        """
        streams = self._cache.previous.size(0)
        self._model.streams = len(tokens)
        whole = tokens.size(1) <= self._at_once
        for part in [tokens] if whole else torch.split(tokens, self._at_once, dim=1):
            part = part.contiguous()
            work = self._weight_bytes * part.numel()
            self._model.threads = self._threads if work >= THREADED_FROM_BYTES else 1
            self._function(
                self._reference,
                part.data_ptr(),
                self._cache.length,
                part.size(1),
                logits.data_ptr(),
            )
            self._cache.length += part.size(1)
        if len(tokens) < streams:
            self._cache.spread()
            logits[1:] = logits[0]


def native_step(model: nn.Module, cache: Cache) -> NativeStep | None:
    """Return the compiled step for a model and its cache, or nothing where torch must do it."""
    if not isinstance(model, (TransformerModel, ModernTransformer)):
        return None
    plain = all(
        value.device.type == "cpu" and value.dtype == torch.float32 and value.is_contiguous()
        for value in model.parameters()
    )
    function = compiled_function() if plain else None
    return NativeStep(function, model, cache) if function is not None else None


def compiled_function(*, wait: bool = False) -> Any | None:
    """Return the compiled function, or nothing while it is not there.

    Args:
        wait: until the compiler is through; otherwise it is only started.
    """
    path = _library_path()
    if not path.is_file():
        compiler = _start_compiler(path)
        if compiler is None or (not wait and compiler.poll() is None) or compiler.wait():
            return None
    return _load(path)


@cache
def _library_path() -> Path:
    """Return where the library is kept, by a name that changes with all it depends on."""
    import platformdirs

    # A home folder may be shared by machines whose processors differ.
    processor = [platform.system(), platform.machine(), platform.processor()]
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        processor += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    parts = [SOURCE.read_text(encoding="utf-8"), *_FLAGS, *processor]
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
    return platformdirs.user_cache_path("megatron") / "compiled" / f"decode-{key}.so"


@cache
def _start_compiler(path: Path) -> subprocess.Popen[bytes] | None:
    """Start making the library, whole or not at all; nothing where there is no compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        return None
    # Apple's compiler has no OpenMP.
    attempt = '("$0" "$@" -fopenmp -o "$OUT.$$" || "$0" "$@" -o "$OUT.$$") && mv "$OUT.$$" "$OUT"'
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        return subprocess.Popen(
            ["sh", "-c", attempt, compiler, *_FLAGS, str(SOURCE), "-lm"],
            env={**os.environ, "OUT": str(path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl+C is for us
        )
    except OSError:
        return None


@cache
def _load(path: Path) -> Any | None:
    try:
        function = ctypes.CDLL(str(path)).megatron_decode
    except (OSError, AttributeError):
        return None
    pointer = ctypes.c_void_p
    function.argtypes = [pointer, pointer, ctypes.c_int64, ctypes.c_int64, pointer]
    function.restype = None
    return function


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
    bias = model.attention_bias  # the cost of one step of distance, head by head
    slopes = -bias[:, 1, 0] if bias.size(1) > 1 else bias[:, 0, 0]
    shared: dict[str, Tensor] = {"embedding": model.token_embedding, "head": model.head}
    shared |= {"gate": model.previous_gate, "slopes": slopes.contiguous()}
    layers = []
    for index in range(model.attention.size(0)):
        attention, feed_forward = model.attention[index], model.feed_forward[index]
        layer = {"qkv": attention[0], "out": attention[3]}
        layer |= {"widen": feed_forward[0], "narrow": feed_forward[1]}
        layer |= {"mix1": model.attention_mix[index], "mix2": model.feed_forward_mix[index]}
        layers.append(_detached(layer))
    numbers = {"modern": 1, "vocab": model.vocab_size, "ff": model.feed_forward.size(2)}
    return _detached(shared), layers, numbers


def _detached(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in tensors.items()}
