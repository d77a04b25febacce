"""What there is to know of a corpus before a model is trained on it, gathered in one report."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from megatron_model.config.fields import Errors
from megatron_model.data.corpus import CorpusSource, codecs_of, read_chunks
from megatron_model.data.encoding import AUTO, EncodingGuess, UndecodableError, canonical_encoding
from megatron_model.data.token_cache import PreparedCorpus, Tokens, check_whole
from megatron_model.util.text import safe

SAMPLED_CHARACTERS = 32 << 20
"""The costly parts look at no more than this many characters."""
RARE = 10
"""A character that occurs less often than this is one the model hardly gets to know."""

Decision: TypeAlias = Literal["byte-order mark", "valid UTF-8", "assumed UTF-8", "chosen"]
"""What settled an encoding; UTF-8 stays assumed when the text turns out not to be."""

_CHUNK = 1 << 21
_NAMED = 5
"""Invisible characters that are named one by one."""
_NAMES = {"\n": "LINE FEED", "\t": "CHARACTER TABULATION"}


class EncodingUse(Struct, frozen=True):
    """How many files are read in one encoding, and what decided that."""

    encoding: str
    decided: Decision
    files: int


class Undecodable(Struct, frozen=True):
    """Where the text cannot be read; `guess` is what it may be in, if it is not just damaged."""

    message: str
    file: str
    offset: int
    line: int
    guess: EncodingGuess | None


class LineEnds(Struct, frozen=True):
    """How lines end in the files, before every end is made a line feed."""

    line_feeds: int
    pairs: int
    """A carriage return and a line feed."""
    carriage_returns: int


class CharacterCount(Struct, frozen=True):
    """One character of the vocabulary."""

    character: str
    name: str
    count: int
    share: float


class TextReport(Struct, frozen=True):
    """What the characters say; entropies in nats per character."""

    characters: int
    lines: int
    longest_line: int
    """Characters, its end not counted."""
    longest_line_number: int
    table: tuple[CharacterCount, ...]
    """The vocabulary, most frequent first."""
    rare: tuple[CharacterCount, ...]
    controls: tuple[CharacterCount, ...]
    """Control and invisible formatting characters, other than line feed and tabulation."""
    unigram_entropy: float
    trigram_entropy: float | None
    """A guess from the two characters before, on the validation split; None if it is too short."""
    repeated_lines: float | None
    """Share of the lines with something in them that came before; None if there are no lines."""
    sampled_characters: int
    """How much of the text `trigram_entropy` and `repeated_lines` are taken from."""


class CorpusReport(Struct, frozen=True):
    """The report; what could not be found out is None."""

    encodings: tuple[EncodingUse, ...]
    problem: Undecodable | None
    line_ends: LineEnds | None
    text: TextReport | None


def corpus_notes(source: CorpusSource, prepared: PreparedCorpus, encoding: str = AUTO) -> list[str]:
    """Return in sentences what a person should know of how the corpus came to be, if anything.

    How files were joined, what was left out, put in or replaced, and what is there but not seen.
    """
    notes = []
    if len(source.files) > 1 and source.location == str(Path(source.location).absolute()):
        names = [str(path.relative_to(source.location)) for path in source.files]
        ends = prepared.line_ends
        joined = f", with {_plural(ends, 'line end')} put in where one was missing" if ends else ""
        notes.append(
            f"Joined {len(names):,} files in the order {safe(names[0], one_line=True)} to "
            f"{safe(names[-1], one_line=True)}{joined}."
        )
    codecs = codecs_of(source, encoding)
    if len(set(codecs)) > 1:
        notes.append(f"Read as {encoding_words(codecs)}.")
    if source.left_out:
        notes.append(f"Left out: {', '.join(map(str, source.left_out))}.")
    if prepared.marks:
        marks = _plural(prepared.marks, "byte-order mark")
        notes.append(f"Left out {marks} (U+FEFF) within the text.")
    if prepared.damaged:
        places = _plural(prepared.damaged, "damaged place")
        notes.append(f"Replaced or dropped {places}, as data.errors says.")
    unseen = sorted(
        (-count, character)
        for character, count in zip(prepared.vocabulary, prepared.counts, strict=True)
        if _is_unseen(character)
    )
    if unseen:
        words = [
            f"{-count:,} U+{ord(character):04X} {describe_name(character)}"
            for count, character in unseen[:_NAMED]
        ]
        more = f" and {len(unseen) - _NAMED:,} others" if len(unseen) > _NAMED else ""
        notes.append(f"Invisible characters: {', '.join(words)}{more}.")
    return notes


def _plural(number: int, word: str) -> str:
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def encoding_words(codecs: Iterable[str]) -> str:
    """Return the encodings of files in words, the most frequent first."""
    found = Counter(codec.removesuffix("-sig") for codec in codecs)
    names = [
        codec.upper() if codec.startswith("utf") else codec for codec, _ in found.most_common()
    ]
    return " and ".join(names)


def _is_unseen(character: str) -> bool:
    if character in "\n\t ":
        return False
    kind = unicodedata.category(character)
    selects = kind == "Mn" and "VARIATION SELECTOR" in unicodedata.name(character, "")
    return kind in ("Cc", "Cf", "Zl", "Zp", "Zs") or selects


def inspect_corpus(
    source: CorpusSource,
    encoding: str = AUTO,
    prepared: PreparedCorpus | None = None,
    *,
    validation_fraction: float = 0.1,
    errors: Errors = "stop",
) -> CorpusReport:
    """Look through a corpus; without `prepared`, only at how it is encoded and how lines end.

    A text that does not decode is not an error here: the report says where, and what it may be.

    Raises:
        RequestError: the corpus cannot be read, looks binary, or the encoding is unknown.
    """
    encoding = canonical_encoding(encoding)
    problem, line_ends = None, None
    try:
        line_ends = _line_ends(source, encoding, errors)
    except UndecodableError as error:
        problem = Undecodable(str(error), error.label, error.offset, error.line, error.guess)
    return CorpusReport(
        encodings=_encodings(source, encoding, fits=problem is None),
        problem=problem,
        line_ends=line_ends,
        text=None if prepared is None or problem else inspect_text(prepared, validation_fraction),
    )


def inspect_text(prepared: PreparedCorpus, validation_fraction: float) -> TextReport:
    """Return what the characters of a prepared corpus say."""
    total = prepared.characters
    table = tuple(
        CharacterCount(character, describe_name(character), count, count / total)
        for character, count in sorted(
            zip(prepared.vocabulary, prepared.counts, strict=True), key=lambda item: -item[1]
        )
    )
    longest, number = _longest_line(prepared)
    sampled = min(total, SAMPLED_CHARACTERS)
    border = int(total * (1 - validation_fraction))
    of_training = int(sampled * (1 - validation_fraction))
    return TextReport(
        characters=total,
        lines=prepared.lines,
        longest_line=longest,
        longest_line_number=number,
        table=table,
        rare=tuple(entry for entry in table if entry.count < RARE),
        controls=tuple(entry for entry in table if _is_control(entry.character)),
        unigram_entropy=prepared.unigram_entropy,
        trigram_entropy=trigram_entropy(
            prepared.tokens[:border][:of_training],
            prepared.tokens[border:][: sampled - of_training],
            len(prepared.vocabulary),
        ),
        repeated_lines=repeated_line_share(prepared, sampled),
        sampled_characters=sampled,
    )


def trigram_entropy(training: Tokens, validation: Tokens, vocab_size: int) -> float | None:
    """Return how well counting predicts a character from the two before, in nats per character.

    An honest baseline for a model: the counts are those of the training tokens, the loss is that of
    the validation tokens, and nothing is tuned on them. What was never counted gets its probability
    from the shorter context, down to one that makes all characters equal (Witten and Bell's
    interpolation: a context that was followed by T different characters trusts itself N times and
    the shorter context T times, N being how often it occurred).
    """
    if len(training) < 3 or len(validation) < 3:
        return None
    keys, counts = _count_trigrams(training, vocab_size)
    asked, weights = _count_trigrams(validation, vocab_size)
    probability = np.full(len(asked), 1 / vocab_size)
    for order in (1, 2, 3):
        grams, occurrences = _merge(keys % vocab_size**order, counts)
        contexts, starts = np.unique(grams // vocab_size, return_index=True)
        total = np.add.reduceat(occurrences, starts)
        followers = np.diff(starts, append=len(grams))
        wanted = asked % vocab_size**order
        seen = _look_up(grams, occurrences, wanted)
        total_here = _look_up(contexts, total, wanted // vocab_size)
        followers_here = _look_up(contexts, followers, wanted // vocab_size)
        trust = total_here + followers_here
        probability = np.divide(
            seen + followers_here * probability, trust, out=probability, where=trust > 0
        )
    return float(-(weights @ np.log(probability)) / weights.sum())


def repeated_line_share(prepared: PreparedCorpus, characters: int) -> float | None:
    """Return the share of non-blank lines that occurred before, in the first `characters`."""
    hashes: list[int] = []
    rest = ""
    for text in _texts(prepared, characters):
        *lines, rest = (rest + text).split("\n")
        hashes.extend(hash(line) for line in lines if line and not line.isspace())
    if rest and not rest.isspace():
        hashes.append(hash(rest))
    return 1 - len(set(hashes)) / len(hashes) if hashes else None


def describe_name(character: str) -> str:
    """Return the Unicode name of a character, or what kind of character has none."""
    known = _NAMES.get(character) or unicodedata.name(character, "")
    if known:
        return known
    return "CONTROL" if unicodedata.category(character) == "Cc" else "UNNAMED"


def _encodings(source: CorpusSource, encoding: str, *, fits: bool) -> tuple[EncodingUse, ...]:
    uses: dict[tuple[str, Decision], int] = {}
    for codec in codecs_of(source, encoding):
        decided: Decision = "valid UTF-8" if fits else "assumed UTF-8"
        if encoding != AUTO and codec == encoding:
            decided = "chosen"
        elif codec != "utf-8":
            decided = "byte-order mark"
        use = (codec.removesuffix("-sig"), decided)
        uses[use] = uses.get(use, 0) + 1
    return tuple(EncodingUse(*use, files) for use, files in uses.items())


def _line_ends(source: CorpusSource, encoding: str, errors: Errors) -> LineEnds:
    feeds = returns = pairs = 0
    # File by file: a return at the end of one and a feed at the start of the next are no pair.
    for part in [replace(source, files=(path,)) for path in source.files] or [source]:
        ended_with_return = False
        for text, _ in read_chunks(part, encoding, translate_line_ends=False, errors=errors):
            feeds += text.count("\n")
            if "\r" in text or ended_with_return:
                returns += text.count("\r")
                pairs += text.count("\r\n") + (ended_with_return and text[0] == "\n")
                ended_with_return = text[-1] == "\r"
    return LineEnds(line_feeds=feeds - pairs, pairs=pairs, carriage_returns=returns - pairs)


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cf") and character not in "\n\t"


def _longest_line(prepared: PreparedCorpus) -> tuple[int, int]:
    """Return the length of the longest line and its number, from 1."""
    newline = prepared.vocabulary.find("\n")
    longest, number, lines, before = 0, 1, 0, -1
    for start in range(0, len(prepared.tokens), _CHUNK):
        check_whole(prepared.tokens)
        ends = np.flatnonzero(prepared.tokens[start : start + _CHUNK] == newline) + start
        if not len(ends):
            continue
        lengths = np.diff(ends, prepend=before) - 1
        place = int(lengths.argmax())
        if lengths[place] > longest:
            longest, number = int(lengths[place]), lines + place + 1
        lines += len(ends)
        before = int(ends[-1])
    last = len(prepared.tokens) - before - 1
    return (last, lines + 1) if last > longest else (longest, number)


def _texts(prepared: PreparedCorpus, characters: int) -> Iterator[str]:
    """Yield the first `characters` of the text in pieces, from its tokens."""
    codes = np.array([ord(character) for character in prepared.vocabulary], dtype="<u4")
    for start in range(0, characters, _CHUNK):
        check_whole(prepared.tokens)
        tokens = prepared.tokens[start : min(start + _CHUNK, characters)]
        yield codes[tokens].tobytes().decode("utf-32-le")


def _count_trigrams(
    tokens: Tokens, vocab_size: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the distinct trigrams, as numbers to the base of the vocabulary, and their counts.

    Counted a piece at a time, so that memory grows with the distinct trigrams, not with the text.
    """
    keys, counts = [], []
    for start in range(0, len(tokens) - 2, _CHUNK):
        check_whole(tokens)
        piece = tokens[start : start + _CHUNK + 2].astype(np.int64)
        key = (piece[:-2] * vocab_size + piece[1:-1]) * vocab_size + piece[2:]
        distinct, occurrences = np.unique(key, return_counts=True)
        keys.append(distinct)
        counts.append(occurrences)
    return _merge(np.concatenate(keys), np.concatenate(counts))


def _merge(
    keys: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return every key once, in order, with the sum of its counts."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    return keys[starts], np.add.reduceat(counts[order], starts)


def _look_up(
    keys: npt.NDArray[np.int64], values: npt.NDArray[Any], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[Any]:
    """Return the value of every wanted key, 0 for one that is not there."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, values[places], 0)
