"""What is known of a corpus, found out step by step: its beginning first, then all of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megatron_model.config.fields import PRESENT_RULES
from megatron_model.util.errors import RequestError

if TYPE_CHECKING:
    from megatron_model.config.fields import Errors


@dataclass(frozen=True)
class EncodingProblem:
    """The first byte that has no character in the encoding, and what the text may be in."""

    label: str
    encoding: str
    offset: int
    line: int
    guess: str = ""
    confidence: float = 0.0


@dataclass(frozen=True)
class CorpusFacts:
    """What is known about one corpus so far; `error` says why there will be no more."""

    spec: str
    encoding: str = "auto"
    errors: Errors = "stop"
    rules: int = PRESENT_RULES
    name: str = ""
    size: int | None = None
    files: int = 0
    preview: str = ""
    encodings: str = ""
    """What the files are in, in words."""
    estimate: int | None = None
    """About how many characters there are, from the beginning of the text."""
    notes: tuple[str, ...] = ()
    """What should be known of how the text came to be, in sentences; see `corpus_notes`."""
    characters: int | None = None
    lines: int | None = None
    vocabulary: tuple[str, ...] | None = None
    unigram_entropy: float | None = None
    progress: float | None = None
    error: str = ""
    problem: EncodingProblem | None = None
    """Why the text does not decode, if that is the error."""

    @property
    def complete(self) -> bool:
        """Whether the whole text was read."""
        return self.characters is not None

    def unread(self) -> CorpusFacts:
        """Return the same corpus, to be read in the same way, with nothing known of it."""
        return CorpusFacts(self.spec, self.encoding, self.errors, self.rules)


def inspect_corpus(
    spec: str, encoding: str = "auto", errors: Errors = "stop", rules: int = PRESENT_RULES
) -> Iterator[CorpusFacts]:
    """Find the corpus, read its beginning, then all of it; stop by not asking for more."""
    known = CorpusFacts(spec, encoding, errors, rules)
    try:
        for facts in _inspect(known):
            known = facts
            yield facts
    except RequestError as error:
        problem = encoding_problem(error)
        yield replace(known, error=str(error), progress=None, problem=problem)
    except Exception as error:  # of any kind: the screen must not wait for more
        yield replace(known, error=f"{type(error).__name__}: {error}", progress=None)


def encoding_problem(error: RequestError) -> EncodingProblem | None:
    """Return the particulars of a text that does not decode."""
    from megatron_model.data.encoding import UndecodableError

    if not isinstance(error, UndecodableError):
        return None
    guess = error.guess
    return EncodingProblem(
        error.label,
        error.encoding,
        error.offset,
        error.line,
        guess.encoding if guess else "",
        guess.confidence if guess else 0.0,
    )


def _inspect(facts: CorpusFacts) -> Iterator[CorpusFacts]:
    from megatron_model.data.corpus import codecs_of, estimated_characters, find_corpus, preview
    from megatron_model.data.report import corpus_notes, encoding_words
    from megatron_model.data.token_cache import prepare_corpus

    source = find_corpus(facts.spec, facts.rules)
    facts = replace(facts, name=source.name, size=source.size, files=len(source.files))
    yield facts
    facts = replace(
        facts,
        preview=preview(source, facts.encoding, errors=facts.errors),
        encodings=encoding_words(codecs_of(source, facts.encoding)),
        estimate=estimated_characters(source, facts.encoding, facts.errors),
        progress=0.0,
    )
    yield facts
    preparing = prepare_corpus(source, facts.encoding, None, facts.errors)
    while True:
        try:
            progress = next(preparing)
        except StopIteration as finished:
            prepared = finished.value
            break
        facts = replace(facts, progress=progress.done / progress.total if progress.total else 1.0)
        yield facts
    yield replace(
        facts,
        progress=None,
        characters=prepared.characters,
        lines=prepared.lines,
        vocabulary=tuple(prepared.vocabulary),
        unigram_entropy=prepared.unigram_entropy,
        notes=tuple(corpus_notes(source, prepared, facts.encoding)),
    )
