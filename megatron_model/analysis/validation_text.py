"""A stretch of the text a model was validated on: what it never learned from."""

from __future__ import annotations

from typing import NamedTuple

from megatron_model.data.corpus import find_corpus
from megatron_model.data.token_cache import prepare_now, retokenize, split
from megatron_model.run.checkpoint import LoadedModel


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
        RequestError: the corpus is gone, or is another one.
    """
    data = loaded.config.data
    source = find_corpus(data.corpus, data.reading)
    prepared = prepare_now(source, data.encoding, errors=data.errors)
    _, validation = split(prepared, data.validation_fraction, loaded.config.model.block_size)
    total = len(validation)
    start = start % total if start >= 0 else max(0, total - length)
    tokens = retokenize(prepared, loaded.tokenizer.vocabulary)[-total:]
    return Stretch(loaded.tokenizer.decode(tokens[start : start + length]), start, total)
