"""Text as arrays of code points, and how often each occurs: the quick way for long texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

COUNT = 0x110000
"""How many code points Unicode has."""

_ASCII = 128


def code_points(text: str) -> npt.NDArray[Any]:
    """Return the code points of `text`, in one byte each where they are ASCII."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def keep_chunk_memory() -> None:
    """Have the C library keep the memory of one chunk of text for the next.

    glibc takes the largest block that was freed so far as the measure of what to give back to the
    system. Left alone it returns the memory of every chunk, and fetching it again takes as long as
    all the work on it. The block here is never touched and costs nothing.
    """
    np.empty(16 << 20, dtype=np.uint8)


class CharacterCounts:
    """How often each character occurs in the texts added so far."""

    def __init__(self) -> None:
        self._ascii = np.zeros(_ASCII, dtype=np.int64)
        # Code points are few among very many: they get places in the order in which they come, and
        # are counted there. Place 0 stands for a code point that has none yet.
        self._places = np.zeros(COUNT, dtype=np.intp)
        self._counts = np.zeros(1, dtype=np.int64)

    def add(self, text: str) -> None:
        """Count the characters of one more text."""
        codes = code_points(text)
        if codes.itemsize == 1:
            self._ascii += np.bincount(codes, minlength=_ASCII)
            return
        places = self._places.take(codes)
        counts = np.bincount(places, minlength=len(self._counts))
        if counts[0]:
            new = np.unique(codes[places == 0])
            self._places[new] = np.arange(len(self._counts), len(self._counts) + len(new))
            self._counts = np.concatenate([self._counts, np.zeros(len(new), dtype=np.int64)])
            counts = np.bincount(self._places.take(codes), minlength=len(self._counts))
        self._counts += counts

    def occurring(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the code points that occur, in their order, and the count of each."""
        counts = self._counts[self._places]
        counts[:_ASCII] += self._ascii
        codes = np.flatnonzero(counts)
        return codes, counts[codes]
