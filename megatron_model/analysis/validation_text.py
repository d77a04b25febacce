"""A stretch of the text a model was validated on: what it never learned from."""

from __future__ import annotations

from typing import NamedTuple

from megatron_model.checkpoint import LoadedModel
from megatron_model.corpus import find_corpus
from megatron_model.token_cache import prepare_now, retokenize, split


class Stretch(NamedTuple):
    """Some characters of the validation split."""

    text: str
    start: int
    """Characters of the split before it."""
    total: int
    """Characters of the whole split."""


def validation_stretch(loaded: LoadedModel, start: int, length: int) -> Stretch:
    """Return `length` characters of the model's validation split from `start` on.

    A start past the end counts from the beginning again, one before it from the end.

    Raises:
        RequestError: the corpus is not there any more, or is another one.
    """
    data = loaded.config.data
    prepared = prepare_now(find_corpus(data.corpus), data.encoding)
    _, validation = split(prepared, data.validation_fraction, loaded.config.model.block_size)
    total = len(validation)
    start = start % total if start >= 0 else max(0, total - length)
    tokens = retokenize(prepared, loaded.tokenizer.vocabulary)[-total:]
    return Stretch(loaded.tokenizer.decode(tokens[start : start + length]), start, total)
