"""The errors a person can cause; their text is one sentence, ready to be shown."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class RequestError(ValueError):
    """The request is wrong; the message names the field, file or character and says what to do."""


class RunFailedError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class DivergedError(RunFailedError):
    """Too many steps in a row had a loss or a gradient that is no finite number."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean "x"?`` for the known word closest to `word`, or the empty string."""
    match = get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f' Did you mean "{match[0]}"?' if match else ""
