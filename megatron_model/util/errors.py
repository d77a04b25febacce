"""The errors a person can cause; their text is one sentence, ready to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches

SAYS = "megatron-model: "
"""Begins the sentence with which the command line refuses what was asked."""


class RequestError(ValueError):
    """The request is wrong; the message names the field, file or character and says what to do.

    What it quotes is bounded: an argument of many kilobytes would bury the sentence.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(bounded(message))


class RunFailedError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class DivergedError(RunFailedError):
    """Too many steps in a row had a loss or a gradient that is NaN or infinity."""


_LONGEST_QUOTE = 200
_LONGEST_WORD = 400
"""Characters; the name of a folder may be long."""
_LONGEST_MESSAGE = 1000
_QUOTE = re.compile(rf'"[^"]{{{_LONGEST_QUOTE},}}"')
_WORD = re.compile(rf"\S{{{_LONGEST_WORD},}}")


def bounded(message: str) -> str:
    """Return a message with the middle of what is too long in it left out."""
    message = _QUOTE.sub(lambda found: _ends_of(found[0], _LONGEST_QUOTE), message)
    message = _WORD.sub(lambda found: _ends_of(found[0], _LONGEST_QUOTE), message)
    return _ends_of(message, _LONGEST_MESSAGE) if len(message) > _LONGEST_MESSAGE else message


def _ends_of(text: str, length: int) -> str:
    return f"{text[: length // 2]} … {text[-length // 4 :]}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `` Did you mean "x"?`` for the known word closest to `word`, or the empty string."""
    match = get_close_matches(word[:_LONGEST_WORD], list(known), n=1, cutoff=0.5)
    return f' Did you mean "{match[0]}"?' if match else ""
