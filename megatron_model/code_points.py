"""Text as arrays of code points, and how often each occurs: the quick way for long texts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

COUNT = 0x110000
"""How many code points Unicode has."""


def code_points(text: str) -> npt.NDArray[Any]:
    """Return the code points of `text` in the narrowest type that is cheap to make."""
    if text.isascii():
        return np.frombuffer(text.encode("ascii"), dtype=np.uint8)
    units = text.encode("utf-16-le")
    if len(units) == 2 * len(text):
        return np.frombuffer(units, dtype="<u2")
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


def add_occurrences(text: str, histogram: npt.NDArray[np.int64]) -> None:
    """Count the characters of `text` into `histogram`, which has a place for every code point."""
    codes = code_points(text)
    if codes.itemsize == 4:
        # Counted from where they start, so that a few emoji do not fill a million counters.
        beyond = np.bincount(codes[codes > 0xFFFF] - 0x10000)
        histogram[0x10000 : 0x10000 + len(beyond)] += beyond
        codes = codes[codes <= 0xFFFF]
    counts = np.bincount(codes)
    histogram[: len(counts)] += counts
