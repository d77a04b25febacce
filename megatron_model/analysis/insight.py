"""What a model knows, character by character: how sure it was, where it looked, how two differ.

Probabilities here are the model's own, before temperature or any filter; logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from megatron_model.config.fields import SamplingConfig
from megatron_model.data.batches import TokenArray
from megatron_model.data.token_cache import check_whole
from megatron_model.data.tokenizer import CharTokenizer, UnknownCharacterError
from megatron_model.inference.decoder import Decoder
from megatron_model.inference.sampler import (
    Numbers,
    check_finite,
    generate_batch,
    generate_columns,
    make_streams,
    start_tokens,
)
from megatron_model.training.loss import rows_at_once

CANDIDATES = 5
"""Likeliest characters told with each character."""


class CharacterScore(msgspec.Struct, frozen=True):
    """A character, the logarithm of its probability, and what the model held likeliest there."""

    character: str
    log_probability: float
    candidates: tuple[tuple[str, float], ...]


class Writer(Protocol):
    """A model with its vocabulary: a loaded one, or a trainer's."""

    @property
    def model(self) -> nn.Module:
        """The weights."""

    @property
    def tokenizer(self) -> CharTokenizer:
        """The vocabulary they were trained with."""


def surprise(
    model: nn.Module,
    tokenizer: CharTokenizer,
    text: str,
    block_size: int,
    *,
    candidates: int = CANDIDATES,
) -> Iterator[CharacterScore]:
    """Yield how likely the model holds each character of `text`; see `surprise_of_tokens`.

    Raises:
        UnknownCharacterError: the text has characters outside the vocabulary.
    """
    unknown = tokenizer.unknown(text)
    if unknown:
        raise UnknownCharacterError(unknown, "The text")
    tokens = np.array(tokenizer.encode(text), np.int64)
    yield from surprise_of_tokens(model, tokenizer, tokens, block_size, candidates=candidates)


def surprise_of_tokens(
    model: nn.Module,
    tokenizer: CharTokenizer,
    tokens: TokenArray,
    block_size: int,
    *,
    candidates: int = CANDIDATES,
) -> Iterator[CharacterScore]:
    """Yield how likely the model holds each character, a few blocks at a time.

    Each character is predicted from all before it in the first block, and later from at least half
    a block and at most a whole one: blocks overlap by half, and count with their second halves.
    (The validation loss takes blocks that do not overlap, and so comes out a little higher.) The
    first character is predicted as a generation without a prompt begins.

    Args:
        model: its mode is switched to evaluation while a few blocks are computed.
        tokenizer: its vocabulary.
        tokens: the text; read in slices, so that it may be larger than memory.
        block_size: the model's, or less.
        candidates: how many of the likeliest characters are told each time.
    """
    block_size = min(block_size, max(1, len(tokens)))  # nothing is computed for the rest
    half = max(1, block_size // 2)
    rows = rows_at_once(block_size)
    count = 1 + max(0, -(-(len(tokens) - block_size) // half)) if len(tokens) else 0
    first = start_tokens(tokenizer, "")
    for begin in range(0, count, rows):
        starts = [window * half for window in range(begin, min(begin + rows, count))]
        base, end = starts[0], min(starts[-1] + block_size, len(tokens))
        check_whole(tokens)
        before = np.asarray(tokens[base - 1 : base]) if base else np.array(first)
        read = np.concatenate([before, np.asarray(tokens[base:end])]).astype(np.int64)
        blocks = np.zeros((len(starts), block_size), np.int64)
        for row, start in enumerate(starts):
            part = read[start - base : start - base + block_size][: len(read) - 1 - (start - base)]
            blocks[row, : len(part)] = part
        logs, tops = _log_probabilities(model, blocks, candidates)
        for row, start in enumerate(starts):
            for at in range(block_size - half if start else 0, min(block_size, end - start)):
                token = int(read[start - base + at + 1])
                yield _score(tokenizer.vocabulary, token, logs[row, at], tops[row, at])


def _log_probabilities(
    model: nn.Module, blocks: NDArray[np.int64], candidates: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return log probabilities (B, T, V) after each position, and the tokens of the likeliest."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits: Tensor = model(torch.from_numpy(blocks).to(device)).float()
            check_finite(logits.cpu().numpy())
            logs = logits.log_softmax(-1)
            tops = logs.topk(min(candidates, logs.size(-1))).indices
            return logs.cpu().numpy(), tops.cpu().numpy()
    finally:
        model.train(was_training)


def _score(
    vocabulary: str, token: int, logs: NDArray[np.float32], tops: Sequence[int] | NDArray[np.int64]
) -> CharacterScore:
    likeliest = tuple((vocabulary[top], float(logs[top])) for top in tops)
    return CharacterScore(vocabulary[token], float(logs[token]), likeliest)


def generate_scored(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    samplings: Sequence[SamplingConfig],
    *,
    candidates: int = CANDIDATES,
) -> Iterator[list[CharacterScore | None]]:
    """Write as `generate_batch` does, and tell how likely each character was.

    Raises:
        UnknownCharacterError: the prompt has characters outside the vocabulary.
    """
    start = start_tokens(tokenizer, prompt)
    streams = make_streams(tokenizer, start, samplings)
    for column, logits in generate_columns(model, start, streams):
        shifted = logits - logits.max(-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        tops = np.argsort(-logs, axis=-1, kind="stable")[:, :candidates]
        yield [
            None if token is None else _score(tokenizer.vocabulary, token, logs[row], tops[row])
            for row, token in enumerate(column)
        ]


class Rival(msgspec.Struct, frozen=True):
    """A character that might stand at a place: how likely for the model, how often drawn."""

    character: str
    probability: float
    drawn: float


class Moment(msgspec.Struct, frozen=True):
    """A place in a text: the character that came there, and those that might have.

    Args:
        came: the one that came; its character is empty at the end of the text.
        rivals: the likeliest, that one among them if it is.
    """

    came: Rival
    rivals: tuple[Rival, ...]


def watch(
    model: nn.Module,
    tokenizer: CharTokenizer,
    prompt: str,
    sampling: SamplingConfig,
    written: str = "",
    *,
    skip: int = 0,
    candidates: int = CANDIDATES,
) -> Iterator[Moment]:
    """Yield every character of `written` as it was drawn, then what is written on, then the end.

    A text that is watched is the one that `generate_stream` writes with the same seed.

    Args:
        model: any model of this package.
        tokenizer: its vocabulary.
        prompt: what stands before it.
        sampling: how it is drawn; its length counts from the beginning of `written`.
        written: what was written already.
        skip: characters of `written` that are read, but not told.
        candidates: how many of the likeliest characters are told each time.

    Raises:
        UnknownCharacterError: the text has characters outside the vocabulary.
    """
    start, before = start_tokens(tokenizer, prompt), tokenizer.encode(written)
    [reading] = make_streams(tokenizer, start, [sampling], before[:skip])
    [writing] = make_streams(tokenizer, start, [sampling], before)
    decoder = Decoder(model)
    logits = decoder.start(start, before[:skip])[0]

    def moment(shares: Numbers, token: int | None) -> Moment:
        weights = np.exp(logits - logits.max())
        probabilities = weights / weights.sum()
        order = np.argsort(-probabilities, kind="stable")[:candidates]

        def rival(one: int) -> Rival:
            return Rival(tokenizer.vocabulary[one], float(probabilities[one]), float(shares[one]))

        came = Rival("", 0.0, 0.0) if token is None else rival(token)
        return Moment(came, tuple(rival(int(one)) for one in order))

    for token in before[skip:]:
        check_finite(logits)
        yield moment(reading.shares(logits), token)
        reading.write(token)
        logits = decoder.step([token])[0]
    while not writing.over:
        check_finite(logits)
        shares = writing.shares(logits)
        token = writing.pick(logits)
        yield moment(shares, token)
        logits = decoder.step([token])[0]
    check_finite(logits)
    yield moment(writing.shares(logits), None)


class AttentionView(msgspec.Struct, frozen=True):
    """Where a model looks when it reads one character.

    Args:
        start: the place in the text of the first character it sees.
        weights: of each layer and head, the share of each character seen: (L, H, T).
    """

    start: int
    weights: NDArray[np.float32]


def attention_of(
    model: nn.Module, tokenizer: CharTokenizer, text: str, position: int
) -> AttentionView:
    """Return what reading the character at `position` of `text` attends to, itself included.

    Of a long text it is the last block up to the position that the model sees.

    Raises:
        UnknownCharacterError: the text has characters outside the vocabulary.
    """
    block_size = int(model.block_size)  # type: ignore[arg-type]
    start = max(0, position + 1 - block_size)
    seen = text[start : position + 1]
    unknown = tokenizer.unknown(seen)
    if unknown:
        raise UnknownCharacterError(unknown, "The text")
    cache = model.new_cache(1)  # type: ignore[operator]
    cache.watched = []
    tokens = torch.tensor([tokenizer.encode(seen)], device=next(model.parameters()).device)
    model.extend(tokens, cache)  # type: ignore[operator]
    weights = torch.stack([layer[0, :, -1] for layer in cache.watched])
    return AttentionView(start, weights.float().cpu().numpy())


class DuelStep(msgspec.Struct, frozen=True):
    """The next character of each text, empty where one is over, and where they first differed."""

    first: str
    second: str
    diverged_at: int | None


def duel(
    first: Writer, second: Writer, prompt: str, sampling: SamplingConfig
) -> Iterator[DuelStep]:
    """Let two models go on from one prompt with the same random draws, in step.

    Raises:
        UnknownCharacterError: the prompt has characters outside one of the vocabularies.
    """
    texts = [
        (column[0] for column in generate_batch(w.model, w.tokenizer, prompt, [sampling]))
        for w in (first, second)
    ]
    diverged_at: int | None = None
    index = 0
    while True:
        a, b = (next(text, "") for text in texts)
        if not a and not b:
            return
        if diverged_at is None and a != b:
            diverged_at = index
        yield DuelStep(a, b, diverged_at)
        index += 1


def compare_surprise(
    first: Writer, second: Writer, text: str, block_size: int
) -> Iterator[tuple[CharacterScore, CharacterScore]]:
    """Yield what each of two models makes of the characters of a text, from the same context.

    The difference of the two log probabilities says which one knew a character better; its mean is
    the difference of their losses.

    Args:
        first, second: the models.
        text: what they read.
        block_size: the smaller of theirs, so that neither sees more.

    Raises:
        UnknownCharacterError: the text has characters outside one of the vocabularies.
    """
    sides = [surprise(w.model, w.tokenizer, text, block_size) for w in (first, second)]
    yield from zip(*sides, strict=True)
