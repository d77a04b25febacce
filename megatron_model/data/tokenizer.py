"""Characters to token numbers and back; the vocabulary is the sorted characters of a text."""

from __future__ import annotations

from collections.abc import Iterable
from operator import index

from megatron_model.util.errors import RequestError

_SHOWN = 5
"""Unknown characters named in an error; more would push the advice off the screen."""


class UnknownCharacterError(RequestError):
    """A text has characters that are not in the vocabulary; `characters` says which."""

    def __init__(self, characters: Iterable[str], what: str = "The prompt") -> None:
        self.characters = tuple(characters)
        count = len(self.characters)
        named = ", ".join(describe_character(character) for character in self.characters[:_SHOWN])
        if count > _SHOWN:
            named += f" and {count - _SHOWN:,} more"
        noun, pronoun = ("character", "it") if count == 1 else ("characters", "them")
        super().__init__(
            f"{what} has {count:,} {noun} that the model never saw: {named}. "
            f"Remove {pronoun}, or write {pronoun} differently."
        )


def describe_character(character: str) -> str:
    """Name one character so that it can be read and typed: ``"é" (U+00E9)``, ``U+0007``."""
    code = f"U+{ord(character):04X}"
    return f'"{character}" ({code})' if character.isprintable() else code


class CharTokenizer:
    """A fixed vocabulary: the token of a character is its place in the sorted characters."""

    __slots__ = ("_tokens", "_vocabulary")

    def __init__(self, text: str) -> None:
        """Take the distinct characters of `text`, sorted by code point, as the vocabulary."""
        self._set_vocabulary("".join(sorted(set(text))))

    @classmethod
    def from_vocabulary(cls, vocabulary: str) -> CharTokenizer:
        """Restore a tokenizer from `vocabulary`, whose order is kept.

        Raises:
            RequestError: the vocabulary is empty or has a character twice.
        """
        tokenizer = cls.__new__(cls)
        tokenizer._set_vocabulary(vocabulary)
        return tokenizer

    def _set_vocabulary(self, vocabulary: str) -> None:
        if not vocabulary:
            raise RequestError("The vocabulary is empty; the text must have at least 1 character.")
        self._vocabulary = vocabulary
        self._tokens = {character: token for token, character in enumerate(vocabulary)}
        if len(self._tokens) != len(vocabulary):
            twice = next(c for i, c in enumerate(vocabulary) if self._tokens[c] != i)
            raise RequestError(
                f"The vocabulary has {describe_character(twice)} twice; a character has one token."
            )

    @property
    def vocabulary(self) -> str:
        """The characters; the token of each is its position."""
        return self._vocabulary

    @property
    def vocab_size(self) -> int:
        """How many characters there are."""
        return len(self._vocabulary)

    def encode(self, text: str) -> list[int]:
        """Return the token of every character.

        Raises:
            UnknownCharacterError: the text has characters that are not in the vocabulary.
        """
        tokens = self._tokens
        try:
            return [tokens[character] for character in text]
        except KeyError:
            raise UnknownCharacterError(self.unknown(text)) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids` (whole numbers of any kind, 0-dimensional tensors included).

        Raises:
            IndexError: a token is outside the vocabulary; ours to prevent, not a person's.
        """
        tokens = [index(token) for token in ids]
        # A negative number would count from the end and give a wrong character in silence.
        if tokens and min(tokens) < 0:
            raise IndexError(f"token {min(tokens)} is negative")
        return "".join([self._vocabulary[token] for token in tokens])

    def unknown(self, text: str) -> list[str]:
        """Return the distinct characters of `text` outside the vocabulary, as they first come."""
        return [character for character in dict.fromkeys(text) if character not in self._tokens]

    def drop_unknown(self, text: str) -> str:
        """Return `text` without the characters that are not in the vocabulary."""
        return "".join([character for character in text if character in self._tokens])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CharTokenizer):
            return NotImplemented
        return self._vocabulary == other._vocabulary

    def __hash__(self) -> int:
        return hash(self._vocabulary)

    def __repr__(self) -> str:
        return f"CharTokenizer.from_vocabulary({self._vocabulary!r})"
