"""Libraries of plain C, compiled for this processor by the C compiler that is there. No torch.

They take seconds, once on a machine; `library_store` says where they are kept, `library_build` how
they are built.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from megatron_model.util.library_build import OUTPUT, Build
from megatron_model.util.library_store import find_library, library_name, place

LIMIT_SECONDS = 120.0
"""A C compiler that takes longer hangs."""
FLAGS = ("-O3", "-march=native", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
"""Never -ffast-math: linking with it flushes tiny numbers to zero in the whole process."""


class CLibrary:
    """One library.

    Args:
        kind: what its file is called by.
        source: the file to compile; headers beside it belong to it.
        flags: alternatives, the best one first, in addition to `FLAGS`.
    """

    def __init__(self, kind: str, source: Path, *flags: Sequence[str]) -> None:
        self._kind, self.source = kind, source.resolve()
        self._flags = [[*FLAGS, *more] for more in flags]
        self._begun: Build | None = None

    @cached_property
    def sources(self) -> list[Path]:
        """The file to compile, and the headers beside it."""
        return [self.source, *sorted(self.source.parent.glob("*.h"))]

    @cached_property
    def name(self) -> str:
        """The name of its file, which changes with all it depends on."""
        texts = [path.read_text(encoding="utf-8") for path in self.sources]
        return library_name(self._kind, *texts, *(" ".join(flags) for flags in self._flags))

    def find(self) -> Path | None:
        """Return where it lies, whole; None where it has to be built first."""
        return find_library(self.name)

    def obstacle(self) -> str:
        """Return why it cannot be built, or nothing."""
        folder, notice = place()
        if folder is None:
            return notice
        return "" if c_compiler() else "there is no C compiler"

    def begin(self) -> None:
        """Start building it where that can be and is needed, ahead of `start_build`."""
        if self.find() is None and not self.obstacle():
            with contextlib.suppress(OSError):
                self._begun = self.start_build()

    def start_build(self, seconds: float = LIMIT_SECONDS) -> Build:
        """Start building it, or return the build that was begun; the compiler has so many seconds.

        Raises:
            OSError: that cannot be.
        """
        compiler, (folder, _) = c_compiler(), place()
        if compiler is None or folder is None:
            raise OSError(self.obstacle())
        begun, self._begun = self._begun, None
        if begun is not None and begun.path == folder / self.name:
            return begun
        commands = [
            [compiler, *flags, "-o", OUTPUT, str(self.source), "-lm"] for flags in self._flags
        ]
        return Build(folder / self.name, commands, seconds=seconds)


def c_compiler() -> str | None:
    """Return the C compiler; None where there is none."""
    return shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
