"""kernels.c, compiled for this processor, and its kernels bound to the memory they work on."""

from __future__ import annotations

import ctypes
import math
import re
import time
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_model.planning.compile_choice import STEP_LIBRARY
from megatron_model.util.c_library import LIMIT_SECONDS
from megatron_model.util.library_store import discard, open_library

POLL_SECONDS = 0.02
USUAL_SECONDS = 3.0
"""Scale of the guess of how far compiling is."""

_TYPES: dict[str, Any] = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "float": ctypes.c_float,
}


class Kernel:
    """One kernel with its arguments: called, it does all parts of its work.

    Attributes:
        arguments: the struct it reads; numbers in it may be changed between two calls.
    """

    def __init__(
        self,
        library: Library,
        name: str,
        suffix: str,
        parts: int,
        scratch_bytes: int,
        values: dict[str, Tensor | float | None],
    ) -> None:
        self.arguments = library.structs[name](**{k: _plain(v) for k, v in values.items()})
        self._alive = values  # C holds bare addresses of these
        self._reference = ctypes.byref(self.arguments)
        self._library = library
        self._function = library.address(name + suffix)
        self._parts, self._scratch_bytes = parts, scratch_bytes

    def __call__(self) -> None:
        """Do it, by as many threads as torch uses."""
        self._library.each(self._function, self._reference, self._parts, self._scratch_bytes)


class Library:
    """The compiled kernels.

    Args:
        path: the library.

    Raises:
        OSError: it is not what was built, or the system refuses to load it.
        AttributeError: it lacks a function.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._library = open_library(path)
        self.structs = _structs()
        self._each = self._library.megatron_each
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        self._each.argtypes = [pointer, number, pointer, pointer, number, pointer, number]
        self._each.restype = None
        self._runner = _openmp()
        self._scratch = torch.empty(0, dtype=torch.uint8)
        for kind in ("float32", "bfloat16"):
            size = self._library[f"attention_scratch_{kind}"]
            size.argtypes, size.restype = [number, number], number

    def bind(
        self,
        name: str,
        *,
        parts: int,
        dtype: torch.dtype | None = None,
        scratch: int = 0,
        **values: Tensor | float | None,
    ) -> Kernel:
        """Return a kernel with its arguments.

        Args:
            name: of the struct of its arguments.
            parts: how many its work is divided into.
            dtype: of the numbers that products read, where the kernel is there for several.
            scratch: bytes that each thread needs.
            values: the fields of the struct.
        """
        suffix = f"_{str(dtype).removeprefix('torch.')}" if dtype is not None else ""
        given, needed = set(values), {field[0] for field in self.structs[name]._fields_}
        if given != needed:
            raise TypeError(f"{name}: fields {sorted(given ^ needed)} are missing or unknown")
        return Kernel(self, name, suffix, parts, _rounded(scratch), dict(values))

    def attention_scratch(self, dtype: torch.dtype, length: int, depth: int) -> int:
        """Return the bytes that each thread needs for `attend` and `attend_back`."""
        size = self._library[f"attention_scratch_{str(dtype).removeprefix('torch.')}"]
        return int(size(length, depth))

    def address(self, name: str) -> int:
        """Return where a kernel lies."""
        return ctypes.cast(self._library[name], ctypes.c_void_p).value or 0

    def each(self, function: int, reference: Any, parts: int, scratch_bytes: int) -> None:
        """Let a kernel do all parts of its work."""
        threads = torch.get_num_threads()
        if self._scratch.numel() < threads * scratch_bytes:
            self._scratch = torch.empty(threads * scratch_bytes, dtype=torch.uint8)
        self._each(
            self._runner,
            threads,
            function,
            reference,
            parts,
            self._scratch.data_ptr(),
            scratch_bytes,
        )


def build_library(seconds: float = LIMIT_SECONDS) -> Generator[float, None, str]:
    """Build it, if it is not there; returns why it cannot be, or nothing.

    Yields a guess of the share that is done; to stop pulling ends the compiler, and it has so
    many `seconds`.
    """
    if STEP_LIBRARY.find() is not None:
        return ""
    try:
        build = STEP_LIBRARY.start_build(seconds)
    except OSError as error:
        return error.strerror or str(error)
    begun = time.monotonic()
    try:
        while build.running() and (passed := time.monotonic() - begun) < seconds:
            time.sleep(POLL_SECONDS)
            yield 1.0 - math.exp(-passed / USUAL_SECONDS)
        late = build.running()
    finally:
        reason = build.end()
    return "the compiler took too long" if late else reason


def load_library() -> Library:
    """Return the library that was built.

    Raises:
        OSError: it is not there, or cannot be used; then it is removed, to be built anew.
    """
    path = STEP_LIBRARY.find()
    if path is None:
        raise OSError("the compiled kernels are gone")
    try:
        return Library(path)
    except (OSError, AttributeError) as error:
        discard(path)
        raise OSError(str(error)) from error


def _plain(value: Tensor | float | None) -> Any:
    if isinstance(value, Tensor):
        if not value.is_contiguous():
            raise ValueError("kernels work on contiguous memory")
        return value.data_ptr()
    return value


def _rounded(size: int) -> int:
    """Round up, so that no two threads write into one line of the processor's cache."""
    return -(-size // 128) * 128


@cache
def _structs() -> dict[str, type[ctypes.Structure]]:
    """Return the kernels' arguments as C declares them, so that there is one declaration."""
    found: dict[str, type[ctypes.Structure]] = {}
    for path in STEP_LIBRARY.sources:
        text = re.sub(r"//[^\n]*", "", path.read_text(encoding="utf-8"))
        for name, body in re.findall(r"^struct (\w+) \{([^}]*)\};", text, re.MULTILINE):
            fields = [field for line in body.split(";") for field in _fields(line)]
            found[name] = type(name, (ctypes.Structure,), {"_fields_": fields})
    return found


def _fields(declaration: str) -> list[tuple[str, Any]]:
    """Return names and types of a declaration such as ``const float *x, *mean``."""
    words = declaration.replace("const ", "").split(None, 1)
    if len(words) < 2:
        return []
    kind, names = words[0], [name.strip() for name in words[1].split(",")]
    return [
        (name.lstrip("*"), ctypes.c_void_p if name.startswith("*") else _TYPES[kind])
        for name in names
    ]


def _openmp() -> int | None:
    """Return how torch's own OpenMP runtime starts threads; None where it is another runtime.

    A second runtime in the process would keep threads of its own, which wait for work by spinning.
    """
    function: Any = getattr(ctypes.CDLL(None), "GOMP_parallel", None)
    return ctypes.cast(function, ctypes.c_void_p).value if function is not None else None
