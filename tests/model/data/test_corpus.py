"""Finding a corpus and reading its text."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_model.config.fields import FIRST_RULES, Errors
from megatron_model.data.corpus import (
    BUILTIN_CORPORA,
    Changes,
    CorpusSource,
    estimated_characters,
    find_corpus,
    preview,
    read_chunks,
)
from megatron_model.data.token_cache import prepare_now
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.util.errors import RequestError

FRENCH = "Là-bas, l'été, les garçons déçus dînaient à l'hôtel; où était-ce? Voilà.\n" * 40


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8"))
    return path


def text_of(spec: str | Path, encoding: str = "auto", size: int = 1 << 18) -> str:
    chunks = read_chunks(find_corpus(str(spec)), encoding, chunk_characters=size)
    return "".join(text for text, _ in chunks)


def refusal(spec: str | Path, encoding: str = "auto") -> str:
    with pytest.raises(RequestError) as refused:
        text_of(spec, encoding)
    message = str(refused.value)
    assert "\n" not in message
    return message


# Finding


@pytest.mark.parametrize("spec", BUILTIN_CORPORA)
def test_built_in_corpora_are_there_without_a_network(spec: str) -> None:
    source = find_corpus(spec)
    text = text_of(spec)
    assert len(text) > 100_000
    assert source.name == spec.removeprefix("builtin:")
    assert source.size >= len(text)
    assert find_corpus(source.location).files == source.files


def test_a_misspelt_built_in_gets_a_suggestion() -> None:
    assert 'Did you mean "builtin:python-reference"?' in refusal("builtin:python-refrence")


def test_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "the book.txt", "héllo\n")
    monkeypatch.chdir(tmp_path)
    source = find_corpus("./the book.txt")
    assert (source.spec, source.name, source.size) == ("./the book.txt", "the book", 7)
    assert source.files == (path,)
    assert source.location == str(path)


def test_the_home_folder_may_be_abbreviated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "a.txt", "abc")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text_of("~/a.txt") == "abc"


def test_what_is_missing_is_named_with_its_neighbour(tmp_path: Path) -> None:
    write(tmp_path / "hamlet.txt", "x")
    message = refusal(tmp_path / "hamlt.txt")
    assert f'no file or folder "{tmp_path / "hamlt.txt"}"' in message
    assert 'Did you mean "hamlet.txt"?' in message


def test_a_forgotten_prefix_is_suggested(tmp_path: Path) -> None:
    assert '"builtin:python-stdlib"' in refusal(tmp_path / "python-stdlib")


@pytest.mark.parametrize("spec", ["", "   ", "a\0b", "x" * 5000])
def test_names_that_name_nothing_are_refused(spec: str) -> None:
    assert refusal(spec)


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    assert "is empty" in refusal(write(tmp_path / "a.txt", ""))


def test_a_device_and_a_pipe_are_refused_without_being_read(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "neither a file nor a folder" in refusal(pipe)
    assert "neither a file nor a folder" in refusal("/dev/zero")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc")
    path.chmod(0)
    assert "Permission denied" in refusal(path)


def test_a_folder_is_all_its_text_in_the_order_of_the_paths(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "2")
    write(tmp_path / "a-z.txt", "1")
    write(tmp_path / "a" / "z.md", "0")
    write(tmp_path / "c" / "no suffix", "3é")
    write(tmp_path / "empty.txt", "")
    write(tmp_path / "picture.png", b"\x89PNG\r\n\x1a\n\0\0")
    write(tmp_path / "latin", "é".encode("latin-1"))
    write(tmp_path / ".hidden.txt", "x")
    write(tmp_path / ".git" / "config", "x")
    source = find_corpus(str(tmp_path))
    assert text_of(tmp_path) == "0\n1\n2\n3é"
    assert {(one.reason, one.count) for one in source.left_out} == {
        ("hidden", 2), ("no text", 2), ("empty", 1),
    }  # fmt: skip
    assert list(source.files) == sorted(source.files)
    assert (source.name, source.size) == (tmp_path.name, 6)


def test_a_character_cut_by_the_look_at_a_file_does_not_hide_it(tmp_path: Path) -> None:
    text = "é" * 5000
    write(tmp_path / "no suffix", "x" + text)
    assert text_of(tmp_path) == "x" + text


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """A folder with every kind of link in it."""
    write(tmp_path / "outside" / "secret.txt", "secret")
    write(tmp_path / "outside" / "deep" / "more.txt", "more")
    write(tmp_path / "corpus" / "a.txt", "a")
    for name, target in [
        ("out.txt", tmp_path / "outside" / "secret.txt"),
        ("out", tmp_path / "outside"),
        ("twice.txt", tmp_path / "corpus" / "a.txt"),
        ("loop", tmp_path / "corpus"),
        ("above", tmp_path),
        ("broken.txt", tmp_path / "nothing"),
        ("itself.txt", tmp_path / "corpus" / "itself.txt"),
    ]:
        (tmp_path / "corpus" / name).symlink_to(target)
    (tmp_path / "outside" / "back").symlink_to(tmp_path / "corpus")
    return tmp_path / "corpus"


def test_links_are_followed_and_nothing_is_read_twice(linked: Path) -> None:
    source = find_corpus(str(linked))
    assert text_of(linked) == "a\nmore\nsecret"
    assert [str(path.relative_to(linked)) for path in source.files] == [
        "a.txt", "out/deep/more.txt", "out/secret.txt",
    ]  # fmt: skip
    assert {one.reason: one.count for one in source.left_out} == {
        "links to what is read anyway": 5, "links that lead nowhere": 2,
    }  # fmt: skip
    link = linked.with_name("link to corpus")
    link.symlink_to(linked)
    assert text_of(link) == "a\nmore\nsecret"


def test_a_run_from_before_links_were_followed_finds_its_text(linked: Path) -> None:
    source = find_corpus(str(linked), FIRST_RULES)
    assert "".join(text for text, _ in read_chunks(source)) == "a"
    assert [one.count for one in source.left_out] == [7]


def test_the_layout_of_a_model_hub_is_a_corpus(tmp_path: Path) -> None:
    for number in range(1, 4):
        write(tmp_path / "blobs" / f"{9 - number}ab", f"text {number}\n")
        link = tmp_path / "snapshots" / "abc" / "data" / f"{number}.txt"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(f"../../../blobs/{9 - number}ab")
    assert text_of(tmp_path / "snapshots" / "abc") == "text 1\ntext 2\ntext 3\n"
    assert len(find_corpus(str(tmp_path)).files) == 3


def test_files_come_as_people_count_with_a_line_end_where_one_is_missing(tmp_path: Path) -> None:
    names = ["0.txt", "1.txt", "2.txt", "10.txt", "part 2/1.txt", "part 10/1.txt", "v1.9", "v1.10"]
    for number, name in enumerate(names):
        write(tmp_path / name, f"{number}" + "\n" * (number % 2))
    assert text_of(tmp_path) == "".join(f"{number}\n" for number in range(8))
    changes = Changes()
    for size in (1, 1 << 17):
        changes = Changes()
        source = find_corpus(str(tmp_path))
        text = "".join(t for t, _ in read_chunks(source, chunk_characters=size, changes=changes))
        assert text == "".join(f"{number}\n" for number in range(8))
        assert changes == Changes(line_ends=4)
    old = find_corpus(str(tmp_path), FIRST_RULES)
    assert "".join(text for text, _ in read_chunks(old)) == "01\n3\n25\n47\n6"


def test_a_name_without_a_number_comes_before_those_with_one(tmp_path: Path) -> None:
    for name in ("a2.txt", "a.txt", "a10.txt", "a02.txt"):
        write(tmp_path / name, "x")
    names = [path.name for path in find_corpus(str(tmp_path)).files]
    assert names == ["a.txt", "a02.txt", "a2.txt", "a10.txt"]


def test_a_name_that_is_not_utf_8_is_no_trouble_in_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write(folder / "a.txt", "a\n")
    write(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")), "b\n")
    assert text_of(folder) == "a\nb\n"
    prepared = prepare_now(find_corpus(str(folder)), cache_dir=tmp_path / "cache")
    assert prepared.characters == 4
    write(Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")), b"b\xff\n")
    assert "caf\ufffd.txt is not valid utf-8" in refusal(folder)
    assert "is not UTF-8" in refusal(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt"))
    assert refusal(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.txt")).isascii() is False


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "picture.png", b"\x89PNG\0")
    assert "has no text files" in refusal(tmp_path)


def test_looking_for_a_corpus_loads_nothing_heavy() -> None:
    code = (
        "import sys, megatron_model.data.corpus as c; c.find_corpus('builtin:python-stdlib');"
        "print({'torch', 'numpy', 'charset_normalizer'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


# Reading


@settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50
)
@given(
    text=st.text(st.sampled_from("ab\r\né—😀\u2028")),
    size=st.integers(1, 9),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_pieces_make_the_text_that_open_reads(
    tmp_path: Path, text: str, size: int, encoding: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(("x" + text).encode(encoding))
    with open(path, encoding=encoding) as file:
        assert text_of(path, size=size) == file.read()


def test_the_vocabulary_is_that_of_the_whole_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "one\r\ntwo\rthree\r\r\n\n— é 😀\r")
    with open(path, encoding="utf-8") as file:
        tokenizer = CharTokenizer(file.read())
    assert CharTokenizer(text_of(path, size=1)) == tokenizer


def test_progress_counts_the_bytes_of_all_files(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "é" * 100)
    write(tmp_path / "b.txt", b"\xff\xfe" + "b".encode("utf-16-le"))
    source = find_corpus(str(tmp_path))
    raw: list[bytes] = []
    done = [d for _, d in read_chunks(source, chunk_characters=7, on_bytes=raw.append)]
    assert done == sorted(done)
    assert done[-1] == source.size == 204
    assert b"".join(raw) == b"".join(path.read_bytes() for path in source.files)


def test_a_line_end_at_the_end_of_a_file_is_not_joined_to_the_next(tmp_path: Path) -> None:
    write(tmp_path / "1.txt", "a\r")
    write(tmp_path / "2.txt", "\nb")
    assert text_of(tmp_path) == "a\n\nb"


def test_every_file_may_have_its_own_byte_order_mark(tmp_path: Path) -> None:
    for number, encoding in enumerate(["utf-8-sig", "utf-16", "utf-32", "utf-8"]):
        write(tmp_path / f"{number}.txt", f"é{number}".encode(encoding))
    write(tmp_path / "5.txt", b"\xfe\xff" + "é5".encode("utf-16-be"))
    assert text_of(tmp_path) == "é0\né1\né2\né3\né5"


def test_another_encoding_is_read_when_it_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", FRENCH.encode("latin-1"))
    assert text_of(path, "Latin-1", size=11) == FRENCH
    path = write(tmp_path / "b.txt", "吾輩は猫である。\r\n".encode("shift_jis"))
    assert text_of(path, "shift_jis", size=3) == "吾輩は猫である。\n"


def test_another_encoding_is_suggested(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", FRENCH.encode("latin-1"))
    message = refusal(path)
    assert f"{path} is not valid utf-8: byte 0xE0 at offset 1 (line 1)" in message
    assert "--set data.encoding=cp1252" in message


@pytest.mark.parametrize("size", [5, 1 << 18])
def test_a_damaged_byte_is_located(tmp_path: Path, size: int) -> None:
    before = "größer\r\n" * 99 + "l"
    path = write(tmp_path / "a.txt", before.encode() + b"\xff" + "änger\r\n".encode() * 50)
    with pytest.raises(RequestError) as refused:
        text_of(path, size=size)
    assert str(refused.value) == (
        f"{path} is not valid utf-8: byte 0xFF at offset {len(before.encode()):,} (line 100) "
        "does not fit, though the text around it does; repair that line, or try "
        "--set data.errors=replace (puts U+FFFD in place) or data.errors=drop."
    )


def test_a_text_cut_within_a_character_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "ж\nж".encode()[:-1])
    assert "byte 0xD0 at offset 3 (line 2)" in refusal(path)


@pytest.mark.parametrize(
    ("encoding", "data", "said"),
    [
        ("ascii", "ab\né".encode(), "is not valid ascii: byte 0xC3 at offset 3 (line 2)"),
        ("cp1252", b"ab\n\x81", "is not valid cp1252: byte 0x81 at offset 3 (line 2)"),
        ("euc_jp", "猫".encode("euc_jp") * 9 + b"\n\xff", "byte 0xFF at offset 19 (line 2)"),
        ("utf-16", "ab\n".encode("utf-16") + b"\x00\xd8a\x00", "at offset 8 (line 2)"),
        ("utf-7", b"+2AA-", "is not valid utf-7"),
    ],
)
def test_damage_is_located_in_any_encoding(
    tmp_path: Path, encoding: str, data: bytes, said: str
) -> None:
    path = write(tmp_path / "a.txt", data)
    for size in (1, 4, 1 << 18):
        with pytest.raises(RequestError) as refused:
            text_of(path, encoding, size)
        if size > 1:
            assert said in str(refused.value)


def test_encoded_surrogates_do_not_come_through(tmp_path: Path) -> None:
    assert "byte 0xED at offset 1" in refusal(write(tmp_path / "a.txt", b"a\xed\xa0\x80"))


def test_a_nul_looks_binary(tmp_path: Path) -> None:
    message = refusal(write(tmp_path / "a.txt", "one\ntwo é\0\n"))
    assert "a.txt looks binary: it has a NUL byte at offset 10 (line 2)" in message
    assert "looks binary" in refusal(write(tmp_path / "b.txt", b"a\0b"), "latin-1")


def test_utf_16_without_a_mark_is_recognized(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", FRENCH.encode("utf-16-be"))
    assert "--set data.encoding=utf-16-be" in refusal(path)
    assert text_of(path, "utf-16-be") == FRENCH


@pytest.mark.parametrize("encoding", ["utf-9", "", "base64", "rot13", "a\0b", "é"])
def test_an_unknown_encoding_is_refused(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path / "a.txt", "abc")
    assert refusal(path, encoding).startswith(f'data.encoding is "{encoding}"')


def test_a_file_that_goes_away_is_a_wrong_request(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "abc")
    source = find_corpus(str(path))
    path.unlink()
    with pytest.raises(RequestError, match="Cannot read .*a.txt: No such file"):
        list(read_chunks(source))


def test_files_are_closed_when_reading_stops_early(tmp_path: Path) -> None:
    source = find_corpus(str(write(tmp_path / "a.txt", "abc" * 1000)))
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        assert preview(source, characters=4) == "abca"
    assert not before or len(os.listdir("/proc/self/fd")) <= before


@pytest.mark.parametrize("characters", [1, 10, 4000])
def test_a_preview_is_the_beginning(tmp_path: Path, characters: int) -> None:
    text = "é—😀\n" * 30
    source = find_corpus(str(write(tmp_path / "a.txt", text)))
    assert preview(source, characters=characters) == text[:characters]
    assert isinstance(source, CorpusSource)


# Damage, and marks


def with_advice(message: str) -> dict[str, str]:
    """Return the settings that a message advises."""
    return dict(re.findall(r"--set data\.(\w+)=([\w-]+)", message))


def read_with(spec: Path, advice: dict[str, str]) -> str:
    errors = cast(Errors, advice.get("errors", "stop"))
    chunks = read_chunks(find_corpus(str(spec)), advice.get("encoding", "auto"), errors=errors)
    return "".join(text for text, _ in chunks)


@pytest.mark.parametrize("size", [1, 3, 1 << 17])
@pytest.mark.parametrize(("errors", "instead"), [("replace", "\ufffd"), ("drop", "")])
@pytest.mark.parametrize(
    ("data", "encoding", "text"),
    [
        (b"a\xffb\xc3\n\xc3\xa9\0\xe2\x82", "auto", "a?b?\né??"),
        (b"\xef\xbb\xbfa\xff", "auto", "a?"),
        ("ab".encode("utf-16") + b"x", "auto", "ab?"),
        (b"a\x81b", "cp1252", "a?b"),
        ("猫".encode("euc_jp") + b"\xffa", "euc_jp", "猫?a"),
        (b"+2AA-a", "utf-7", "?a"),
    ],
)
def test_damage_is_replaced_or_dropped_and_counted(
    tmp_path: Path, size: int, errors: Errors, instead: str, data: bytes, encoding: str, text: str
) -> None:
    changes = Changes()
    source = find_corpus(str(write(tmp_path / "a.txt", data)))
    chunks = read_chunks(source, encoding, chunk_characters=size, errors=errors, changes=changes)
    assert "".join(text for text, _ in chunks) == text.replace("?", instead)
    assert changes.damaged == text.count("?")


def test_all_damaged_places_are_counted_and_there_is_a_way_on(tmp_path: Path) -> None:
    for name in ("1.txt", "2.txt", "10.txt"):
        write(tmp_path / name, "größer\n".encode() * 9 + b"\xff\n" + "größer\n".encode() + b"\xff")
    message = refusal(tmp_path)
    assert f"{tmp_path / '1.txt'} is not valid utf-8: byte 0xFF at offset 81 (line 10)" in message
    assert "there are 6 such places in 3 files" in message
    assert with_advice(message) == {"errors": "replace"}
    assert read_with(tmp_path, with_advice(message)).count("\ufffd") == 6


def test_an_encoding_that_garbles_other_files_is_not_advised(tmp_path: Path) -> None:
    write(tmp_path / "1.txt", FRENCH)
    write(tmp_path / "2.txt", FRENCH.encode("cp1252"))
    write(tmp_path / "3.txt", "plain")
    message = refusal(tmp_path)
    assert "2.txt is not valid utf-8" in message
    assert with_advice(message) == {}
    assert "another file is not: make it UTF-8, as iconv -f cp1252 -t utf-8 does" in message
    (tmp_path / "1.txt").unlink()
    assert with_advice(refusal(tmp_path)) == {"encoding": "cp1252", "errors": "replace"}
    # A file with the mark of UTF-8 says itself what it is in, whatever was named for the others.
    write(tmp_path / "1.txt", FRENCH.encode("utf-8-sig"))
    advice = with_advice(refusal(tmp_path))
    assert advice == {"encoding": "cp1252", "errors": "replace"}
    assert read_with(tmp_path, advice) == FRENCH * 2 + "plain"


@pytest.mark.parametrize("marked", [True, False])
def test_utf_16_with_an_odd_byte(tmp_path: Path, marked: bool) -> None:
    data = FRENCH.encode("utf-16" if marked else "utf-16-le") + b"\n"
    path = write(tmp_path / "a.txt", data)
    advice = with_advice(refusal(path))
    assert advice == (
        {"errors": "replace"} if marked else {"encoding": "utf-16-le", "errors": "drop"}
    )
    assert read_with(path, advice).rstrip("\ufffd") == FRENCH


@pytest.mark.parametrize("marked", [True, False])
def test_utf_16_that_is_shifted_gets_no_advice_that_reads_garbage(
    tmp_path: Path, marked: bool
) -> None:
    data = FRENCH.encode("utf-16" if marked else "utf-16-le")
    message = refusal(write(tmp_path / "a.txt", data[:2000] + b"x" + data[2000:]))
    assert "shifted by one" in message
    assert with_advice(message) == {}


def test_utf_16_without_its_mark_is_told_from_damage(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", FRENCH.encode("utf-16-le"))
    advice = with_advice(refusal(path, "utf-16"))
    assert read_with(path, advice) == FRENCH


def test_a_nul_in_a_text_can_be_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", FRENCH + "\0" + FRENCH)
    advice = with_advice(refusal(path))
    assert read_with(path, advice) == FRENCH * 2


@pytest.mark.parametrize("encoding", ["auto", "utf-8", "utf-16-le", "cp1252"])
def test_byte_order_marks_are_no_characters(tmp_path: Path, encoding: str) -> None:
    codec = "utf-8" if encoding in ("auto", "cp1252") else encoding
    path = write(tmp_path / "a.txt", "\ufeffé\n\ufeff1\n".encode(codec))
    for size in (1, 1 << 17):
        changes = Changes()
        source = find_corpus(str(path))
        chunks = read_chunks(source, encoding, chunk_characters=size, changes=changes)
        assert "".join(text for text, _ in chunks) == "é\n1\n"
        # One that decides the encoding is a part of it, and announced as that.
        assert changes.marks == (1 if encoding in ("auto", "cp1252") else 2)
    old = find_corpus(str(path), FIRST_RULES)
    assert "".join(text for text, _ in read_chunks(old, encoding)) != "é\n1\n"


@pytest.mark.parametrize(
    ("text", "encoding"), [("abc\n", "utf-8"), ("abc\n", "utf-16"), ("吾輩は猫", "utf-8")]
)
def test_characters_are_estimated_by_the_encoding(tmp_path: Path, text: str, encoding: str) -> None:
    whole = text * 20_000
    source = find_corpus(str(write(tmp_path / "a.txt", whole.encode(encoding))))
    assert estimated_characters(source) == pytest.approx(len(whole), rel=0.001)


def test_a_stray_byte_in_plain_ascii_can_be_passed_over(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"\xff" + b"The sea under the moon.\n" * 99 + b"\xff")
    advice = with_advice(refusal(path))
    assert advice.pop("encoding", "") != "cp932"  # where it would be for private use
    assert advice == {"errors": "replace"}
    assert read_with(path, advice).count("\ufffd") == 2
