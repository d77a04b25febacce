"""A call into a library that torch compiled ahead of time, with Python's lock let go meanwhile.

Torch's own runner holds the lock for the whole call: a screen in the same process would stand still
for the length of each training step. The entry points are those of torch's
`csrc/inductor/aoti_runtime/interface.h`, whose names and arguments are kept stable for libraries
that outlive the torch that made them.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_size_t
_pointer_in = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_in.restype, _pointer_in.argtypes = _POINTER, [ctypes.py_object, _POINTER]
_capsule_of = ctypes.pythonapi.PyCapsule_New
_capsule_of.restype, _capsule_of.argtypes = ctypes.py_object, [_POINTER, _POINTER, _POINTER]


class LibraryCall:
    """One loaded library: a function from a list of contiguous tensors to a list of tensors.

    Raises:
        OSError: the file is no library.
        RuntimeError: the library refuses to start, or a call fails.
    """

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))  # lets go of Python's lock in every call
        self._container = _POINTER()
        self._enter(
            "CreateWithDevice", ctypes.byref(self._container), _SIZE(1), b"cpu", _POINTER(None)
        )
        delete = self._library.AOTInductorModelContainerDelete
        # Not at the end of the process, when torch may be gone before it.
        weakref.finalize(self, delete, self._container).atexit = False
        outputs = _SIZE()
        self._enter("GetNumOutputs", self._container, ctypes.byref(outputs))
        self._outputs = outputs.value

    def __call__(self, arguments: Sequence[Tensor]) -> list[Tensor]:
        """Return what the library computes of these."""
        contiguous = [value.contiguous() for value in arguments]
        handles = [
            _pointer_in(capsule, None)
            for capsule in torch._C._aoti.unsafe_alloc_void_ptrs_from_tensors(contiguous)
        ]
        results = (_POINTER * self._outputs)()
        self._enter(
            "Run",
            self._container,
            (_POINTER * len(handles))(*handles),  # the library takes these over
            _SIZE(len(handles)),
            results,
            _SIZE(self._outputs),
            _POINTER(None),
            _POINTER(None),
        )
        capsules = [_capsule_of(result, None, None) for result in results]
        found: list[Tensor] = torch._C._aoti.alloc_tensors_by_stealing_from_void_ptrs(capsules)
        return found

    def _enter(self, name: str, *arguments: Any) -> None:
        if getattr(self._library, f"AOTInductorModelContainer{name}")(*arguments):
            raise RuntimeError(f"the compiled library {self._library._name} failed in {name}")
