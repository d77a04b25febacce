"""The report on a corpus."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_model.data import report as corpus_report
from megatron_model.data.corpus import find_corpus
from megatron_model.data.report import (
    CorpusReport,
    EncodingUse,
    LineEnds,
    TextReport,
    corpus_notes,
    inspect_corpus,
    inspect_text,
    trigram_entropy,
)
from megatron_model.data.token_cache import PreparedCorpus, prepare_now
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.util.errors import RequestError

FRENCH = "Là-bas, l'été, les garçons déçus dînaient à l'hôtel; où était-ce? Voilà.\n" * 40


def report_on(folder: Path, data: bytes | str, encoding: str = "auto") -> CorpusReport:
    path = folder / "a.txt"
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    source = find_corpus(str(path))
    prepared = prepare_now(source, encoding, folder / "cache")
    return inspect_corpus(source, encoding, prepared)


def text_report(text: str) -> TextReport:
    tokenizer = CharTokenizer(text)
    counts = Counter(text)
    prepared = PreparedCorpus(
        tokens=np.array(tokenizer.encode(text), dtype=np.uint8),
        vocabulary=tokenizer.vocabulary,
        counts=tuple(counts[character] for character in tokenizer.vocabulary),
        characters=len(text),
        lines=len(text.removesuffix("\n").split("\n")),
        fingerprint="",
    )
    return inspect_text(prepared, 0.1)


@pytest.mark.parametrize(
    ("data", "asked", "encoding", "decided"),
    [
        ("é".encode(), "auto", "utf-8", "valid UTF-8"),
        ("é".encode("utf-8-sig"), "auto", "utf-8", "byte-order mark"),
        ("é".encode("utf-16"), "Auto", "utf-16", "byte-order mark"),
        ("é".encode("utf-32"), "auto", "utf-32", "byte-order mark"),
        ("é".encode("cp1252"), "CP1252", "cp1252", "chosen"),
    ],
)
def test_the_encoding_and_what_decided_it(
    tmp_path: Path, data: bytes, asked: str, encoding: str, decided: str
) -> None:
    report = report_on(tmp_path, data, asked)
    assert report.encodings == (EncodingUse(encoding, decided, 1),)  # type: ignore[arg-type]
    assert report.problem is None


def test_files_of_a_folder_are_counted_by_encoding(tmp_path: Path) -> None:
    for name, encoding in [("a", "utf-8"), ("b", "utf-16"), ("c", "utf-8")]:
        (tmp_path / f"{name}.txt").write_bytes("x\r\ny".encode(encoding))
    report = inspect_corpus(find_corpus(str(tmp_path)))
    assert set(report.encodings) == {
        EncodingUse("utf-8", "valid UTF-8", 2),
        EncodingUse("utf-16", "byte-order mark", 1),
    }
    assert report.line_ends == LineEnds(line_feeds=0, pairs=3, carriage_returns=0)
    assert report.text is None


def test_an_undecodable_text_is_located_and_guessed(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("plain\n" * 3 + FRENCH).encode("latin-1"))
    report = inspect_corpus(find_corpus(str(path)))
    assert report.encodings == (EncodingUse("utf-8", "assumed UTF-8", 1),)
    assert report.problem is not None
    assert (report.problem.file, report.problem.offset, report.problem.line) == (str(path), 19, 4)
    assert report.problem.guess is not None
    assert report.problem.guess.encoding == "cp1252"
    assert 0.5 < report.problem.guess.confidence <= 1
    assert "offset 19 (line 4)" in report.problem.message
    assert (report.line_ends, report.text) == (None, None)


def test_damage_in_a_text_is_not_taken_for_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(FRENCH.encode() + b"\xff" + FRENCH.encode())
    problem = inspect_corpus(find_corpus(str(path))).problem
    assert problem is not None
    assert (problem.line, problem.guess) == (41, None)


def test_an_unknown_encoding_is_refused() -> None:
    with pytest.raises(RequestError, match="data.encoding"):
        inspect_corpus(find_corpus("builtin:python-reference"), "utf-9")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.sampled_from("a\r\né"), min_size=1),
    encoding=st.sampled_from(["utf-8", "utf-16-le"]),
)
def test_line_ends_are_those_of_the_files(tmp_path: Path, text: str, encoding: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))
    ends = inspect_corpus(find_corpus(str(path)), encoding).line_ends
    pairs = text.count("\r\n")
    assert ends == LineEnds(text.count("\n") - pairs, pairs, text.count("\r") - pairs)


def test_line_ends_are_not_joined_across_chunks_or_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"x" * ((1 << 17) - 1) + b"\r\n" + b"y\r")
    (tmp_path / "b.txt").write_bytes(b"\nz")
    report = inspect_corpus(find_corpus(str(tmp_path)))
    assert report.line_ends == LineEnds(line_feeds=1, pairs=1, carriage_returns=1)


def test_characters_are_listed_by_frequency_with_their_names() -> None:
    report = text_report("eeee é\n\t\x07\u200b\ue000" + "e" * 10)
    assert report.table[0].character == "e"
    assert (report.table[0].count, report.table[0].share) == (14, 14 / report.characters)
    names = {entry.character: entry.name for entry in report.table}
    assert names["é"] == "LATIN SMALL LETTER E WITH ACUTE"
    assert names["\n"] == "LINE FEED"
    assert (names["\x07"], names["\ue000"]) == ("CONTROL", "UNNAMED")
    assert {entry.character for entry in report.controls} == {"\x07", "\u200b"}
    assert {entry.character for entry in report.rare} == set(" é\n\t\x07\u200b\ue000")
    assert sum(entry.share for entry in report.table) == pytest.approx(1)


@settings(deadline=None)
@given(st.text(st.sampled_from("ab\n"), min_size=1))
def test_the_longest_line_is_found(text: str) -> None:
    report = text_report(text)
    lines = text.split("\n")
    longest = max(map(len, lines))
    assert report.longest_line == longest
    if longest:
        assert report.longest_line_number == [len(line) for line in lines].index(longest) + 1


def test_the_longest_line_may_be_longer_than_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_report, "_CHUNK", 10)
    report = text_report("ab\n" + "c" * 57 + "\nd\n" + "e" * 56)
    assert (report.longest_line, report.longest_line_number) == (57, 2)
    report = text_report("ab\n" + "c" * 57)
    assert (report.longest_line, report.longest_line_number) == (57, 2)


@pytest.mark.parametrize("chunk", [3, 1 << 21])
def test_repeated_lines_are_those_that_came_before(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(corpus_report, "_CHUNK", chunk)
    assert text_report("one\ntwo\n\n\n  \none\ntwo").repeated_lines == 0.5
    assert text_report("one\n\n\ntwo\n").repeated_lines == 0
    assert text_report("\n \n").repeated_lines is None


def trigram_entropy_by_hand(training: list[int], validation: list[int], vocab: int) -> float:
    counts: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for a, b, c in zip(training, training[1:], training[2:], strict=False):
        for context in ((), (b,), (a, b)):
            counts[context][c] += 1
    loss = []
    for a, b, c in zip(validation, validation[1:], validation[2:], strict=False):
        probability = 1 / vocab
        for context in ((), (b,), (a, b)):
            total, followers = counts[context].total(), len(counts[context])
            if total:
                probability = (counts[context][c] + followers * probability) / (total + followers)
        loss.append(-math.log(probability))
    return sum(loss) / len(loss)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=3, max_size=80),
    st.lists(st.integers(0, 4), min_size=3, max_size=40),
)
def test_trigram_entropy_is_that_of_plain_counting(
    training: list[int], validation: list[int]
) -> None:
    found = trigram_entropy(np.array(training, np.uint8), np.array(validation, np.uint8), 5)
    assert found == pytest.approx(trigram_entropy_by_hand(training, validation, 5))


def test_trigram_entropy_does_not_depend_on_the_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = np.random.default_rng(0).integers(0, 7, 1000).astype(np.uint8)
    whole = trigram_entropy(tokens[:900], tokens[900:], 7)
    monkeypatch.setattr(corpus_report, "_CHUNK", 11)
    assert trigram_entropy(tokens[:900], tokens[900:], 7) == whole


def test_trigram_probabilities_add_up() -> None:
    training = np.array([0, 1, 2, 0, 1, 0, 0, 1, 2, 2], np.uint16)
    losses = [trigram_entropy(training, np.array([0, 1, c], np.uint16), 4) for c in range(4)]
    assert sum(math.exp(-loss) for loss in losses if loss is not None) == pytest.approx(1)


def test_context_helps_on_real_text(tmp_path: Path) -> None:
    source = find_corpus("builtin:python-reference")
    report = inspect_corpus(source, "auto", prepare_now(source, cache_dir=tmp_path)).text
    assert report is not None
    assert report.trigram_entropy is not None
    assert 1.5 < report.trigram_entropy < report.unigram_entropy < 3.5
    assert report.sampled_characters == report.characters


def test_only_the_beginning_of_a_long_text_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus_report, "SAMPLED_CHARACTERS", 100)
    report = text_report("a new line\n" * 5 + "".join(f"{n}\n" for n in range(500)))
    assert report.sampled_characters == 100
    assert report.repeated_lines == pytest.approx(4 / 24, abs=0.05)
    assert report.characters > 100


def test_a_text_too_short_for_trigrams_has_none() -> None:
    report = text_report("ab")
    assert (report.trigram_entropy, report.longest_line, report.lines) == (None, 2, 1)


# What a person should know


def test_notes_say_what_was_joined_left_out_and_put_in(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "10.txt").write_bytes("last\u200b".encode("utf-16"))
    (folder / "2.txt").write_bytes("\ufeffone\ufefftwo\xa0\xff".encode("utf-8-sig"))
    (folder / "picture").write_bytes(b"\x89PNG\0")
    (folder / "1.txt").write_bytes(b"first\xff\n")
    source = find_corpus(str(folder))
    prepared = prepare_now(source, cache_dir=tmp_path / "cache", errors="replace")
    expected = [
        "Joined 3 files in the order 1.txt to 10.txt, with 1 line end put in where one was "
        "missing.",
        "Read as UTF-8 and UTF-16.",
        "Left out: 1 no text (picture).",
        "Left out 2 byte-order marks (U+FEFF) within the text.",
        "Replaced or dropped 1 damaged place, as data.errors says.",
        "Invisible characters: 1 U+00A0 NO-BREAK SPACE, 1 U+200B ZERO WIDTH SPACE.",
    ]
    assert corpus_notes(source, prepared) == expected
    # Known from the cache as well, where nothing is read.
    again = prepare_now(source, cache_dir=tmp_path / "cache", errors="replace")
    assert corpus_notes(source, again) == expected


def test_a_plain_text_needs_no_notes(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain\n")
    source = find_corpus(str(path))
    assert corpus_notes(source, prepare_now(source, cache_dir=tmp_path)) == []


def test_damage_that_is_passed_over_is_no_problem(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"a\xff\r\nb\n")
    report = inspect_corpus(find_corpus(str(path)), errors="drop")
    assert report.problem is None
    assert report.line_ends == LineEnds(line_feeds=1, pairs=1, carriage_returns=0)
