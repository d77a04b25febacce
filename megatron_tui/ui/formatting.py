"""Turn numbers into the short strings people read: counts, sizes, durations, ages. Pure."""

from __future__ import annotations

import math
from pathlib import Path

MISSING = "–"
"""What stands where a number is not known yet."""


def exact(number: float | None) -> str:
    """Return a whole number with thousands separated: ``12,345``."""
    return MISSING if number is None else f"{number:,.0f}"


def count(number: float | None) -> str:
    """Return three digits and a letter: ``12.3k``, ``4.10M``; small numbers stay whole."""
    if number is None or not math.isfinite(number):
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
    if number is None:
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
    if seconds is None or not math.isfinite(seconds):
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
    """Return one short unit for the axis of a chart: ``40s``, ``2m``, ``1.5h``."""
    for factor, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= factor:
            return f"{seconds / factor:.3g}{unit}"
    return f"{seconds:.3g}s"


def age(seconds: float) -> str:
    """Return how long ago something was, in one unit: ``just now``, ``5m ago``, ``3d ago``."""
    if seconds < 2:
        return "just now"
    for factor, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= factor:
            return f"{seconds // factor:.0f}{unit} ago"
    return f"{seconds:.0f}s ago"


def loss(value: float | None) -> str:
    """Return a loss with the digits that mean something: ``1.482``."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return "not a number"
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.3g}"


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
    if number is None:
        return MISSING
    return f"{number:,.0f}" if number >= 99.5 else f"{number:.3g}"


def percent(share: float | None) -> str:
    """Return a share of one as a whole percentage."""
    return MISSING if share is None else f"{share * 100:.0f}%"


def plural(number: int, word: str) -> str:
    """Return ``1 step``, ``2 steps``."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def shortened(text: str, width: int) -> str:
    """Return `text` cut in its middle to so many characters: its end tells names apart."""
    if len(text) <= width:
        return text
    tail = max(1, (width - 1) // 2)
    return f"{text[: width - 1 - tail]}…{text[-tail:]}"


def homely(path: Path) -> str:
    """Return a path as a shell prints it: with ``~`` for the user's own folder."""
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _three_digits(scaled: float) -> str:
    if abs(scaled) < 9.995:
        return f"{scaled:.2f}"
    return f"{scaled:.1f}" if abs(scaled) < 99.95 else f"{scaled:.0f}"
