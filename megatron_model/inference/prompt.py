"""What a model can read of a text: how much of it at once, and which of its characters.

Needs no torch, so that a screen can ask while a prompt is typed.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from typing import Literal, Protocol, TypeAlias

Policy: TypeAlias = Literal["block", "drop", "replace"]
"""What to do with characters that the model never saw."""

_ALIKE = {
    "\u2018": "'", "\u2019": "'", "\u201a": "'", "\u201b": "'", "\u2032": "'", "`": "'",
    "\u00b4": "'",
    "\u201c": '"', "\u201d": '"', "\u201e": '"', "\u00ab": '"', "\u00bb": '"', "\u2033": '"',
    "\u2010": "-", "\u2011": "-", "\u2012": "-", "\u2013": "-", "\u2014": "-", "\u2212": "-",
    "\u00a0": " ", "\u202f": " ", "\t": " ", "\r": "\n", "\u2026": "...", "\u00df": "ss",
    "\u00e6": "ae", "\u00c6": "AE", "\u0153": "oe", "\u0152": "OE", "\u00f8": "o", "\u00d8": "O",
    "\u0142": "l", "\u0141": "L", "\u00f0": "d", "\u00fe": "th", "_": " ", '"': "'", "'": '"',
    "[": "(", "]": ")", "{": "(", "}": ")",
}  # fmt: skip
"""What people write in place of a character that is not there."""


class Vocabulary(Protocol):
    """What is asked of a tokenizer."""

    def unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that the model has never seen."""

    def drop_unknown(self, text: str) -> str:
        """Return `text` without them."""


def kept_characters(block_size: int) -> int:
    """Return how many characters a context longer than the block size is cut to: half."""
    return max(1, block_size // 2)


def window_length(prompt: int, written: int, block_size: int) -> int:
    """Return how many characters the model sees after a prompt and what it wrote.

    Of a long prompt the last block is read; a full window is cut to its last half with the next
    character, that one included.
    """
    seen = min(prompt, block_size)
    over = written - (block_size - seen)
    if over <= 0:
        return seen + written
    kept = kept_characters(block_size)
    return kept + (over - 1) % (block_size - kept + 1)


def replacements(vocabulary: Vocabulary, text: str) -> dict[str, str]:
    """Return, for each character of `text` that the model never saw, the nearest that it did.

    The same letter without its accent, the plain quote for a curly one, the small letter for a
    capital; nothing at all where there is nothing alike.
    """
    return {
        character: next(
            (alike for alike in _alike(character) if alike and not vocabulary.unknown(alike)), ""
        )
        for character in vocabulary.unknown(text)
    }


def _alike(character: str) -> Iterator[str]:
    plain = "".join(
        part for part in unicodedata.normalize("NFKD", character) if not unicodedata.combining(part)
    )
    simpler = _ALIKE.get(character, "")
    yield from (plain, simpler, character.swapcase(), plain.swapcase(), simpler.swapcase())
    yield _ALIKE.get(simpler, "")
    if unicodedata.category(character).startswith("Z"):
        yield " "


def fit_prompt(vocabulary: Vocabulary, text: str, policy: Policy) -> str:
    """Return `text` as it can be read under `policy`; "block" leaves it as it is."""
    if policy == "block":
        return text
    if policy == "drop":
        return vocabulary.drop_unknown(text)
    table = replacements(vocabulary, text)
    return "".join(table.get(character, character) for character in text)
