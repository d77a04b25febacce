"""Finding a corpus and reading its text."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_model.corpus import (
    BUILTIN_CORPORA,
    CorpusSource,
    find_corpus,
    preview,
    read_chunks,
)
from megatron_model.errors import RequestError
from megatron_model.tokenizer import CharTokenizer

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
    assert text_of(tmp_path) == "0123é"
    assert list(source.files) == sorted(source.files)
    assert (source.name, source.size) == (tmp_path.name, 6)


def test_a_character_cut_by_the_look_at_a_file_does_not_hide_it(tmp_path: Path) -> None:
    text = "é" * 5000
    write(tmp_path / "no suffix", "x" + text)
    assert text_of(tmp_path) == "x" + text


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "outside" / "secret.txt", "secret")
    write(tmp_path / "corpus" / "a.txt", "a")
    for name, target in [
        ("out.txt", tmp_path / "outside" / "secret.txt"),
        ("out", tmp_path / "outside"),
        ("twice.txt", tmp_path / "corpus" / "a.txt"),
        ("loop", tmp_path / "corpus"),
        ("broken.txt", tmp_path / "nothing"),
    ]:
        (tmp_path / "corpus" / name).symlink_to(target)
    assert text_of(tmp_path / "corpus") == "a"
    (tmp_path / "link to corpus").symlink_to(tmp_path / "corpus")
    assert text_of(tmp_path / "link to corpus") == "a"


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "picture.png", b"\x89PNG\0")
    assert "has no text files" in refusal(tmp_path)


def test_looking_for_a_corpus_loads_nothing_heavy() -> None:
    code = (
        "import sys, megatron_model.corpus as c; c.find_corpus('builtin:python-stdlib');"
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
    assert text_of(tmp_path) == "é0é1é2é3é5"


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
        "does not fit, though the text around it does; repair that line."
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
