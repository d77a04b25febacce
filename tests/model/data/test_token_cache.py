"""From a corpus to its token array, and the cache of arrays."""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_model.config.fields import FIRST_RULES, RunConfig
from megatron_model.data import token_cache
from megatron_model.data.corpus import BUILTIN_CORPORA, CorpusSource, find_corpus
from megatron_model.data.token_cache import (
    PreparedCorpus,
    check_whole,
    prepare_corpus,
    prepare_now,
    prune,
    retokenize,
    split,
)
from megatron_model.data.tokenizer import CharTokenizer, UnknownCharacterError
from megatron_model.events.schema import (
    CorpusProgress,
    PhaseChanged,
    RunFailed,
    RunFinished,
    StepCompleted,
)
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_model.run.runner import run_training
from megatron_model.util.errors import RequestError, RunFailedError
from megatron_model.util.text import plural
from tests.model.helpers import train

TEXT = "To be, or not to be;\nthat is the question — “whether” ’tis nobler 😀\n"


def corpus(path: Path, text: str = TEXT, encoding: str = "utf-8") -> CorpusSource:
    path.write_bytes(text.encode(encoding))
    return find_corpus(str(path))


def text_of(prepared: PreparedCorpus) -> str:
    return CharTokenizer.from_vocabulary(prepared.vocabulary).decode(prepared.tokens)


def steps_of(source: CorpusSource, cache: Path) -> list[CorpusProgress]:
    """What preparing says; nothing when it is served from the cache."""
    return list(prepare_corpus(source, cache_dir=cache))


def token_files(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.tokens"))


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25
)
@given(text=st.text(min_size=1).filter(lambda text: "\0" not in text and "\ufeff" not in text))
def test_tokens_are_the_text(tmp_path: Path, text: str) -> None:
    source = corpus(tmp_path / "a.txt", text)
    prepared = prepare_now(source, cache_dir=tmp_path / "cache")
    with open(tmp_path / "a.txt", encoding="utf-8") as file:
        read = file.read()
    assert text_of(prepared) == read
    assert prepared.vocabulary == CharTokenizer(read).vocabulary
    assert dict(zip(prepared.vocabulary, prepared.counts, strict=True)) == Counter(read)
    assert prepared.characters == len(read) == len(prepared.tokens)
    assert prepared.lines == len(read.removesuffix("\n").split("\n"))


@pytest.mark.parametrize("spec", BUILTIN_CORPORA)
def test_built_in_corpora_are_prepared(tmp_path: Path, spec: str) -> None:
    prepared = prepare_now(find_corpus(spec), cache_dir=tmp_path)
    assert prepared.characters > 100_000
    assert 2 < prepared.unigram_entropy < 4
    assert steps_of(find_corpus(spec), tmp_path) == []


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize(
    ("characters", "dtype"), [(1, "u1"), (256, "u1"), (257, "u2"), (65536, "u2"), (65537, "u4")]
)
def test_tokens_take_the_smallest_type(
    tmp_path: Path, characters: int, dtype: str, long: bool
) -> None:
    codes = [
        code
        for code in range(1, 70_000)
        if code not in (13, 0xFEFF) and not 0xD800 <= code < 0xE000
    ]
    text = "".join(map(chr, codes[:characters]))
    text += chr(codes[0]) * 200_000 * long  # An ASCII piece after one that is not.
    prepared = prepare_now(corpus(tmp_path / "a.txt", text), cache_dir=tmp_path / "cache")
    assert len(prepared.vocabulary) == characters
    assert prepared.tokens.dtype == np.dtype(dtype)
    assert prepared.tokens.max() == characters - 1
    assert prepared.tokens[:characters].tolist() == list(range(characters))
    assert not prepared.tokens[characters:].any()


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every token array is so large that its file is mapped."""
    monkeypatch.setattr(token_cache, "_MEMORY_BYTES", 0)


@pytest.mark.parametrize("large", [False, True])
def test_tokens_are_read_only_and_mapped_where_they_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    source = corpus(tmp_path / "a.txt")
    before = prepare_now(source, cache_dir=tmp_path / "cache").tokens
    if large:
        monkeypatch.setattr(token_cache, "_MEMORY_BYTES", len(before) - 1)
    tokens = prepare_now(source, cache_dir=tmp_path / "cache").tokens
    assert isinstance(tokens.base, np.memmap) == large
    assert np.array_equal(tokens, before)
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 1


def test_a_cache_that_is_shortened_does_not_reach_who_reads_it(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.txt")
    prepared = prepare_now(source, cache_dir=tmp_path / "cache")
    (path,) = token_files(tmp_path / "cache")
    os.truncate(path, 0)
    assert text_of(prepared) == TEXT
    check_whole(prepared.tokens)
    assert text_of(prepare_now(source, cache_dir=tmp_path / "cache")) == TEXT


def test_a_large_cache_that_is_shortened_is_noticed(tmp_path: Path, mapped: None) -> None:
    source = corpus(tmp_path / "a.txt")
    tokens = prepare_now(source, cache_dir=tmp_path / "cache").tokens
    for part in (tokens, tokens[3:9], tokens[3:9][2:]):
        check_whole(part)
    (path,) = token_files(tmp_path / "cache")
    os.truncate(path, path.stat().st_size - 1)
    for part in (tokens, tokens[3:9], tokens[3:9][2:]):
        with pytest.raises(RunFailedError, match="was shortened while it was read"):
            check_whole(part)


@pytest.mark.parametrize("kind", ["training", "validation"])
def test_a_run_whose_tokens_are_shortened_fails_in_a_sentence(
    runs_dir: Path, config: RunConfig, mapped: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(runs_dir.parent / "cache"))
    folder = RunFolder.create(runs_dir, "shortened", config)
    seen = []
    for event in run_training(folder, Control()):
        seen.append(event)
        before_validation = kind == "validation" and isinstance(event, PhaseChanged)
        if (before_validation and event.phase == "evaluating") or (
            kind == "training" and isinstance(event, StepCompleted)
        ):
            (path,) = token_files(runs_dir.parent / "cache" / "megatron" / "tokens")
            os.truncate(path, 0)
    assert isinstance(seen[-1], RunFailed)
    assert "was shortened while it was read. Resume" in seen[-1].error
    assert isinstance(train(folder)[-1], RunFinished)


def test_an_encoding_is_part_of_what_was_prepared(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.txt", "déjà vu", "latin-1")
    western = prepare_now(source, "latin-1", tmp_path / "cache")
    cyrillic = prepare_now(source, "cp1251", tmp_path / "cache")
    assert text_of(western) == "déjà vu"
    assert western.fingerprint != cyrillic.fingerprint
    assert prepare_now(source, "Latin1", tmp_path / "cache").fingerprint == western.fingerprint


def test_entropy_is_that_of_the_counts(tmp_path: Path) -> None:
    even = prepare_now(corpus(tmp_path / "a.txt", "abcd" * 5), cache_dir=tmp_path / "cache")
    assert even.unigram_entropy == pytest.approx(math.log(4))
    single = prepare_now(corpus(tmp_path / "b.txt", "aaaa"), cache_dir=tmp_path / "cache")
    assert (single.vocabulary, single.unigram_entropy) == ("a", 0)


def test_progress_rises_to_the_whole(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.txt", TEXT * 50_000)
    steps = steps_of(source, tmp_path / "cache")
    done = [step.done for step in steps]
    assert done == sorted(done)
    assert (steps[0].step, steps[-1].done, steps[-1].total) == (0, source.size, source.size)


def test_a_corpus_without_characters_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbf")
    with pytest.raises(RequestError, match="has no characters"):
        prepare_now(find_corpus(str(tmp_path / "a.txt")), cache_dir=tmp_path / "cache")


# The cache


def test_a_second_time_nothing_is_read_or_written(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.txt")
    first = prepare_now(source, cache_dir=tmp_path / "cache")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()}
    assert steps_of(source, tmp_path / "cache") == []
    second = prepare_now(source, cache_dir=tmp_path / "cache")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").iterdir()} == before
    assert second.tokens.tolist() == first.tokens.tolist()
    assert second.vocabulary == first.vocabulary
    assert second.counts == first.counts
    assert (second.characters, second.lines) == (first.characters, first.lines)
    assert second.fingerprint == first.fingerprint


def test_a_copy_shares_the_array(tmp_path: Path) -> None:
    one = prepare_now(corpus(tmp_path / "a.txt"), cache_dir=tmp_path / "cache")
    other = prepare_now(corpus(tmp_path / "b.txt"), cache_dir=tmp_path / "cache")
    assert one.fingerprint == other.fingerprint
    assert len(token_files(tmp_path / "cache")) == 1


def test_a_changed_file_is_prepared_again(tmp_path: Path) -> None:
    old = prepare_now(corpus(tmp_path / "a.txt", "abc"), cache_dir=tmp_path / "cache")
    changed = corpus(tmp_path / "a.txt", "abd")
    new = prepare_now(changed, cache_dir=tmp_path / "cache")
    assert (text_of(old), text_of(new)) == ("abc", "abd")


def test_a_file_put_in_place_with_its_old_time_is_prepared_again(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.txt", "abc")
    times = source.files[0].stat()
    prepare_now(source, cache_dir=tmp_path / "cache")
    corpus(tmp_path / "b.txt", "abd")
    os.utime(tmp_path / "b.txt", ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(tmp_path / "b.txt", tmp_path / "a.txt")
    assert text_of(prepare_now(source, cache_dir=tmp_path / "cache")) == "abd"


def test_a_file_added_to_a_folder_is_seen(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    corpus(tmp_path / "texts" / "b.txt", "b")
    source = find_corpus(str(tmp_path / "texts"))
    assert text_of(prepare_now(source, cache_dir=tmp_path / "cache")) == "b"
    corpus(tmp_path / "texts" / "a.txt", "a")
    source = find_corpus(str(tmp_path / "texts"))
    assert text_of(prepare_now(source, cache_dir=tmp_path / "cache")) == "a\nb"


@pytest.mark.parametrize("moment", [0.0, 0.5])
@pytest.mark.parametrize("change", ["grows", "shrinks", "turns"])
def test_a_text_that_changes_while_it_is_read_is_refused(
    tmp_path: Path, moment: float, change: str
) -> None:
    text = TEXT * 5_000
    other = {"grows": text + TEXT * 9, "shrinks": TEXT, "turns": text.swapcase()}[change]
    source = corpus(tmp_path / "a.txt", text)
    work = prepare_corpus(source, cache_dir=tmp_path / "cache")
    with pytest.raises(RequestError, match="changed while it was read"):
        for step in work:
            if step.done >= step.total * moment:
                source.files[0].write_text(other, encoding="utf-8")
                moment = 2
    assert token_files(tmp_path / "cache") == []
    assert text_of(prepare_now(source, cache_dir=tmp_path / "cache")) == other


@pytest.mark.parametrize("damage", ["short", "long", "gone", "empty"])
def test_a_damaged_array_is_made_again(tmp_path: Path, damage: str) -> None:
    source = corpus(tmp_path / "a.txt")
    expected = prepare_now(source, cache_dir=tmp_path / "cache").tokens.tolist()
    (path,) = token_files(tmp_path / "cache")
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes({"short": data[:-1], "long": data + b"\0", "empty": b""}[damage])
    assert steps_of(source, tmp_path / "cache") != []
    assert path.read_bytes() == data
    assert prepare_now(source, cache_dir=tmp_path / "cache").tokens.tolist() == expected


@pytest.mark.parametrize(
    "description",
    [b"", b"{", b"[]", b"\xff", b'{"version":0,"vocabulary":"","counts":[],"lines":0}'],
)
def test_a_damaged_description_is_made_again(tmp_path: Path, description: bytes) -> None:
    source = corpus(tmp_path / "a.txt")
    expected = prepare_now(source, cache_dir=tmp_path / "cache").tokens.tolist()
    (path,) = (tmp_path / "cache").glob("*.json")
    path.write_bytes(description)
    assert prepare_now(source, cache_dir=tmp_path / "cache").tokens.tolist() == expected
    assert json.loads(path.read_text(encoding="utf-8"))["vocabulary"]


@pytest.mark.parametrize("note", [b"", b"\xff", b"../../etc/passwd", b"f" * 64])
def test_a_damaged_note_of_the_source_is_made_again(tmp_path: Path, note: bytes) -> None:
    source = corpus(tmp_path / "a.txt")
    prepare_now(source, cache_dir=tmp_path / "cache")
    (path,) = (tmp_path / "cache").glob("*.source")
    path.write_bytes(note)
    assert text_of(prepare_now(source, cache_dir=tmp_path / "cache")) == TEXT
    assert steps_of(source, tmp_path / "cache") == []


def test_stopping_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.txt", TEXT * 5_000)
    work = prepare_corpus(source, cache_dir=tmp_path / "cache")
    assert any(step.done > step.total / 2 for step in work)
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".tmp"]
    work.close()
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_processes_may_prepare_one_corpus_at_once(tmp_path: Path) -> None:
    source = corpus(tmp_path / "a.txt", TEXT * 20_000)
    code = (
        "import sys; from pathlib import Path; from megatron_model.data.corpus import find_corpus;"
        "from megatron_model.data.token_cache import prepare_now;"
        "sys.stdin.readline();"
        "prepared = prepare_now(find_corpus(sys.argv[1]), cache_dir=Path(sys.argv[2]));"
        "print(prepared.characters, int(prepared.tokens.sum()))"
    )
    command = [sys.executable, "-c", code, str(source.files[0]), str(tmp_path / "cache")]
    builders = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for builder in builders:
        assert builder.stdin is not None
        builder.stdin.write("go\n")
        builder.stdin.flush()
    said = {builder.communicate(timeout=60)[0] for builder in builders}
    prepared = prepare_now(source, cache_dir=tmp_path / "cache")
    assert said == {f"{prepared.characters} {int(prepared.tokens.sum())}\n"}
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_without_a_cache_folder_a_small_corpus_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    for number, text in enumerate([TEXT, "plain", "".join(map(chr, range(1000, 1400)))]):
        source = corpus(tmp_path / f"{number}.txt", text)
        prepared = prepare_now(source, cache_dir=tmp_path / "cache")
        assert text_of(prepared) == text
        assert not prepared.tokens.flags.writeable


def test_a_large_corpus_needs_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_model.data.token_cache._MEMORY_BYTES", 10)
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(RequestError, match="Cannot write the token cache in .*cache: "):
        prepare_now(corpus(tmp_path / "a.txt"), cache_dir=tmp_path / "cache")


def test_the_arrays_longest_unused_are_removed(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepared = [
        prepare_now(corpus(tmp_path / f"{n}.txt", str(n) * 100), cache_dir=cache) for n in range(3)
    ]
    for age, path in enumerate([cache / f"{p.fingerprint}.tokens" for p in prepared]):
        os.utime(path, (1000 + age, 1000 + age))
    prepare_now(find_corpus(str(tmp_path / "0.txt")), cache_dir=cache)  # Used again.
    (cache / "abandoned.tmp").write_bytes(b"x")
    os.utime(cache / "abandoned.tmp", (1000, 1000))
    (cache / "growing.tmp").write_bytes(b"x")
    prune(cache, keep_bytes=200)
    kept = {prepared[0].fingerprint, prepared[2].fingerprint}
    assert {path.stem for path in token_files(cache)} == kept
    assert {path.stem for path in cache.glob("*.json")} == kept
    assert [path.name for path in cache.glob("*.tmp")] == ["growing.tmp"]
    assert prepared[1].tokens.tolist() == [0] * 100
    prune(tmp_path / "nowhere")


# What is done with the tokens


def test_a_corpus_is_put_into_the_vocabulary_of_a_model(tmp_path: Path) -> None:
    prepared = prepare_now(corpus(tmp_path / "a.txt", "abba"), cache_dir=tmp_path / "cache")
    assert retokenize(prepared, "ab") is prepared.tokens
    assert retokenize(prepared, "xbya").tolist() == [3, 1, 1, 3]
    with pytest.raises(UnknownCharacterError, match='The corpus has 1 character .* "b"'):
        retokenize(prepared, "a")


def test_validation_is_the_end_of_the_text(tmp_path: Path) -> None:
    prepared = prepare_now(corpus(tmp_path / "a.txt", "a" * 90 + "b" * 10), cache_dir=tmp_path)
    training, validation = split(prepared, 0.1, block_size=9)
    assert training.tolist() == [0] * 90
    assert validation.tolist() == [1] * 10
    assert np.shares_memory(training, prepared.tokens)
    assert np.shares_memory(validation, prepared.tokens)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(characters=st.integers(1, 400), fraction=st.floats(0.001, 0.5), block=st.integers(1, 100))
def test_a_split_has_more_than_a_block_or_is_refused(
    tmp_path: Path, characters: int, fraction: float, block: int
) -> None:
    prepared = PreparedCorpus(
        tokens=np.zeros(characters, dtype=np.uint8),
        vocabulary="a",
        counts=(characters,),
        characters=characters,
        lines=1,
        fingerprint="",
    )
    try:
        training, validation = split(prepared, fraction, block)
    except RequestError as error:
        assert plural(characters, "character") in str(error)
        assert f"needs at least {block + 1:,}" in str(error)
    else:
        assert min(len(training), len(validation)) > block
        assert len(training) + len(validation) == characters


def test_a_short_text_is_refused_with_both_numbers(tmp_path: Path) -> None:
    prepared = prepare_now(corpus(tmp_path / "a.txt", "a" * 180), cache_dir=tmp_path)
    with pytest.raises(RequestError) as refused:
        split(prepared, 0.1, block_size=64)
    assert str(refused.value) == (
        "The corpus has 180 characters; with data.validation_fraction 0.1 its validation split "
        "has 18, and model.block_size 64 needs at least 65. Use a longer text or a "
        "model.block_size of at most 17."
    )
    assert len(split(prepared, 0.1, block_size=17)[1]) == 18


# Rules of reading


def folder_of_files(path: Path) -> Path:
    path.mkdir()
    for name in ("2.txt", "10.txt"):
        (path / name).write_text(f"{name}", encoding="utf-8")
    (path / "link.txt").symlink_to(path / "2.txt")
    return path


def test_the_text_of_a_run_from_before_is_found_under_its_fingerprint(tmp_path: Path) -> None:
    source = find_corpus(str(folder_of_files(tmp_path / "texts")), FIRST_RULES)
    prepared = prepare_now(source, cache_dir=tmp_path / "cache")
    assert text_of(prepared) == "10.txt2.txt"
    # What such a run wrote into its run.toml.
    assert prepared.fingerprint == hashlib.sha256(b'10.txt2.txt["auto",[6,5]]').hexdigest()
    new = prepare_now(find_corpus(str(tmp_path / "texts")), cache_dir=tmp_path / "cache")
    assert text_of(new) == "2.txt\n10.txt"
    assert new.line_ends == 1
    assert new.fingerprint != prepared.fingerprint


def test_a_cache_from_before_is_read(tmp_path: Path) -> None:
    source = find_corpus(str(folder_of_files(tmp_path / "texts")), FIRST_RULES)
    prepared = prepare_now(source, cache_dir=tmp_path / "cache")
    about = json.loads((tmp_path / "cache" / f"{prepared.fingerprint}.json").read_bytes())
    assert set(about) == {"version", "vocabulary", "counts"}
    assert steps_of(source, tmp_path / "cache") == []


def test_what_is_done_about_damage_is_part_of_what_was_prepared(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\xffb")
    source = find_corpus(str(tmp_path / "a.txt"))
    texts = {}
    for errors in ("replace", "drop", "replace"):
        prepared = prepare_now(source, cache_dir=tmp_path / "cache", errors=errors)  # type: ignore[arg-type]
        texts[errors] = text_of(prepared)
        assert prepared.damaged == 1
    assert texts == {"replace": "a\ufffdb", "drop": "ab"}
    with pytest.raises(RequestError, match="not valid utf-8"):
        prepare_now(source, cache_dir=tmp_path / "cache")


def test_names_that_are_not_utf_8_are_told_apart(tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    prepared = []
    for name in (b"\xff.txt", b"\xfe.txt", b"\\xff.txt"):
        path = Path(os.fsdecode(os.fsencode(folder) + b"/" + name))
        path.write_bytes(b"same")
        os.utime(path, (1, 1))
        source = find_corpus(str(folder))
        prepared.append(prepare_now(source, cache_dir=tmp_path / "cache").characters)
    assert prepared == [4, 9, 14]
