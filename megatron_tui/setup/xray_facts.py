"""What the X-ray finds out about a corpus, quick things first, each as soon as it is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from megatron_model.config.fields import PRESENT_RULES
from megatron_model.util.errors import RequestError

if TYPE_CHECKING:
    from megatron_model.config.fields import Errors
    from megatron_model.data.report import CharacterCount, CorpusReport, TextReport
    from megatron_model.data.token_cache import PreparedCorpus


@dataclass(frozen=True)
class XrayFacts:
    """What is known so far; `doing` says what is being found out, `error` why it ended."""

    spec: str
    encoding: str
    errors: Errors = "stop"
    rules: int = PRESENT_RULES
    name: str = ""
    size: int | None = None
    files: int = 0
    report: CorpusReport | None = None
    """Encodings and line ends; its text part is `text`."""
    characters: int | None = None
    table: tuple[CharacterCount, ...] = ()
    unigram_entropy: float | None = None
    text: TextReport | None = None
    doing: str = ""
    error: str = ""


def xray(
    spec: str,
    encoding: str,
    validation_fraction: float,
    errors: Errors = "stop",
    rules: int = PRESENT_RULES,
) -> Iterator[XrayFacts]:
    """Look through a corpus; stop by not asking for more."""
    known = XrayFacts(spec, encoding, errors, rules)
    try:
        for facts in _look(known, validation_fraction):
            known = facts
            yield facts
    except RequestError as error:
        yield replace(known, error=str(error), doing="")
    except (OSError, ImportError, MemoryError) as error:
        yield replace(known, error=f"{type(error).__name__}: {error}", doing="")


def _look(facts: XrayFacts, validation_fraction: float) -> Iterator[XrayFacts]:
    from megatron_model.data.corpus import find_corpus
    from megatron_model.data.report import inspect_corpus, inspect_text
    from megatron_model.data.token_cache import prepare_corpus

    source = find_corpus(facts.spec, facts.rules)
    facts = replace(
        facts,
        name=source.name,
        size=source.size,
        files=len(source.files),
        doing="looking at encodings and line ends",
    )
    yield facts
    report = inspect_corpus(source, facts.encoding, errors=facts.errors)
    facts = replace(facts, report=report, doing="" if report.problem else "counting characters")
    yield facts
    if report.problem is not None:
        return
    preparing = prepare_corpus(source, facts.encoding, errors=facts.errors)
    while True:
        try:
            next(preparing)
            yield facts  # a chance to stop asking
        except StopIteration as finished:
            prepared: PreparedCorpus = finished.value
            break
    facts = replace(
        facts,
        characters=prepared.characters,
        table=_table(prepared),
        unigram_entropy=prepared.unigram_entropy,
        doing="counting trigrams and repeated lines",
    )
    yield facts
    yield replace(facts, text=inspect_text(prepared, validation_fraction), doing="")


def _table(prepared: PreparedCorpus) -> tuple[CharacterCount, ...]:
    from megatron_model.data.report import CharacterCount, describe_name

    pairs = sorted(zip(prepared.vocabulary, prepared.counts, strict=True), key=lambda p: -p[1])
    return tuple(
        CharacterCount(character, describe_name(character), count, count / prepared.characters)
        for character, count in pairs
    )
