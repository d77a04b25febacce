"""Turn numbers into the short strings people read: counts, sizes, durations, ages. Pure."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TypeGuard

from megatron_model.util.user_folders import home

MISSING = "–"
"""What stands where a number is not known yet, or cannot be one of its kind."""

LARGEST = 1e18
"""From here on a number is damage: no count, size or time of ours comes near it."""


def _known(number: float | None) -> TypeGuard[float]:
    return number is not None and abs(number) < LARGEST  # also false for NaN


def exact(number: float | None) -> str:
    """Return a whole number with thousands separated: ``12,345``."""
    return f"{number:,.0f}" if _known(number) else MISSING


def count(number: float | None) -> str:
    """Return three digits and a letter: ``12.3k``, ``4.10M``; small numbers stay whole."""
    if not _known(number):
        return MISSING
    if abs(number) < 1000:
        return f"{number:.0f}"
    for factor, letter in ((1e3, "k"), (1e6, "M"), (1e9, "G"), (1e12, "T")):
        scaled = number / factor
        # 999.6k would round to 1000k: it belongs to the next letter.
        if abs(scaled) < 999.5 or letter == "T":
            return _three_digits(scaled) + letter
    raise AssertionError("unreachable")


def size(number: float | None) -> str:
    """Return bytes in binary units: ``34.1 GiB``."""
    if not _known(number):
        return MISSING
    if abs(number) < 1024:
        return f"{number:.0f} B"
    scaled = float(number)
    for unit in ("KiB", "MiB", "GiB", "TiB"):
        scaled /= 1024
        if abs(scaled) < 999.5 or unit == "TiB":
            return f"{_three_digits(scaled)} {unit}"
    raise AssertionError("unreachable")


def duration(seconds: float | None) -> str:
    """Return the two largest units: ``47 ms``, ``8.2s``, ``1m 48s``, ``3h 05m``, ``2d 4h``."""
    if not _known(seconds) or seconds < 0:
        return MISSING
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    if whole < 86_400:
        return f"{whole // 3600}h {whole % 3600 // 60:02d}m"
    return f"{whole // 86_400}d {whole % 86_400 // 3600}h"


def clock(seconds: float) -> str:
    """Return a place on the axis of a chart: ``40s``, ``2m``, ``1.5h``; odd ones as ``1m20s``."""
    if not _known(seconds):
        return MISSING
    for factor, unit, smaller, rest in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if seconds >= factor:
            tenths = round(seconds / factor, 1)
            if math.isclose(tenths * factor, seconds):
                return f"{tenths:g}{unit}"
            whole, part = divmod(round(seconds / smaller), factor // smaller)
            return f"{whole}{unit}{part:02d}{rest}" if part else f"{whole}{unit}"
    return f"{seconds:.3g}s"


def age(seconds: float) -> str:
    """Return how long ago something was, in one unit: ``just now``, ``5m ago``, ``3d ago``."""
    if not _known(seconds):
        return MISSING
    if seconds < 2:
        return "just now"
    factor, unit = _age_unit(seconds)
    return f"{seconds // factor:.0f}{unit} ago"


def age_lasts(seconds: float) -> float:
    """Return for how many seconds `age` keeps saying the same, or at least says it."""
    if not _known(seconds):
        return math.inf
    factor, _ = _age_unit(seconds)
    return factor - seconds % factor


def _age_unit(seconds: float) -> tuple[int, str]:
    units = ((86_400, "d"), (3600, "h"), (60, "m"))
    return next((unit for unit in units if seconds >= unit[0]), (1, "s"))


def loss(value: float | None) -> str:
    """Return a loss with the digits that mean something: ``1.482``."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


def bits(value: float | None) -> str:
    """Return bits per character: ``2.31``."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:.3g}"


def rate(value: float | None) -> str:
    """Return a small positive number in the shape of ``1.2e-3``; from 0.01 up as ``0.41``."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == 0 or abs(value) >= 0.01:
        return f"{value:.3g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def times(number: float | None) -> str:
    """Return how often: ``0.802``, ``9.79``, ``2,044``."""
    if not _known(number):
        return MISSING
    return f"{number:,.0f}" if number >= 99.5 else f"{number:.3g}"


def percent(share: float | None) -> str:
    """Return a share of one as a whole percentage."""
    return f"{share * 100:.0f}%" if _known(share) else MISSING


def shortened(text: str, width: int) -> str:
    """Return `text` cut in its middle to so many characters: its end tells names apart."""
    if len(text) <= width:
        return text
    tail = max(1, (width - 1) // 2)
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def homely(path: Path) -> str:
    """Return a path as a shell prints it: with ``~`` for the user's own folder."""
    folder = home()
    if folder is None or not path.is_relative_to(folder):
        return str(path)
    return "~" if path == folder else f"~/{path.relative_to(folder)}"


def _three_digits(scaled: float) -> str:
    if abs(scaled) < 9.995:
        return f"{scaled:.2f}"
    return f"{scaled:.1f}" if abs(scaled) < 99.95 else f"{scaled:.0f}"
