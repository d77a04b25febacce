"""A run's note and tags: a small file that a person may have written, or damaged."""

from __future__ import annotations

import os
import stat

import pytest

from megatron_model.run.about import (
    ABOUT_FILE,
    LONGEST_NOTE,
    MOST_TAGS,
    About,
    read_about,
    write_about,
)
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError


def test_what_was_written_is_read(run_copy: RunFolder) -> None:
    assert read_about(run_copy) == About()
    about = About('two lines,\nand "quotes" — été \x1b[31m', ("good", "v1.2", "lr:3e-4"))
    write_about(run_copy, about)
    assert read_about(run_copy) == about
    assert stat.S_IMODE((run_copy.path / ABOUT_FILE).stat().st_mode) == 0o600
    write_about(run_copy, About())
    assert read_about(run_copy) == About()


def test_what_else_stands_in_the_file_stays(run_copy: RunFolder) -> None:
    path = run_copy.path / ABOUT_FILE
    path.write_text('# mine\ncolour = "red"\ntags = ["a"]\n', encoding="utf-8")
    write_about(run_copy, About("new", (*read_about(run_copy).tags, "b")))
    assert read_about(run_copy) == About("new", ("a", "b"))
    text = path.read_text(encoding="utf-8")
    assert "# mine" in text and 'colour = "red"' in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"note = 3\ntags = 4\n",
        b"tags = [1, '', '-a', 'a b', '\\u0007', {a = 1}]\n",
        b"[note]\na = 1\n[tags]\n",
        b"\xff\xfe",
        b"note = '''",
        b"#" * (2 << 20),
        b"a" + b".a" * 5000 + b" = 1",
    ],
    ids=range(8),
)
def test_damage_says_nothing(run_copy: RunFolder, content: bytes) -> None:
    (run_copy.path / ABOUT_FILE).write_bytes(content)
    assert read_about(run_copy) == About()


def test_what_is_no_file_says_nothing(run_copy: RunFolder) -> None:
    os.mkfifo(run_copy.path / ABOUT_FILE)
    assert read_about(run_copy) == About()


def test_a_damaged_file_is_not_overwritten(run_copy: RunFolder) -> None:
    path = run_copy.path / ABOUT_FILE
    path.write_text("note = '''half", encoding="utf-8")
    with pytest.raises(RequestError, match="about.toml is not valid TOML"):
        write_about(run_copy, About("new"))
    assert path.read_text(encoding="utf-8") == "note = '''half"


@pytest.mark.parametrize(
    ("about", "words"),
    [
        (About("x" * (LONGEST_NOTE + 1)), "longer than"),
        (About("\udcff"), "UTF-8"),
        (About(tags=("a b",)), '"a b" cannot be a tag'),
        (About(tags=("",)), "cannot be a tag"),
        (About(tags=("\x1b[2J",)), "cannot be a tag"),
        (About(tags=tuple(map(str, range(MOST_TAGS + 1)))), "at most"),
    ],
)
def test_what_can_be_none_is_refused(run_copy: RunFolder, about: About, words: str) -> None:
    with pytest.raises(RequestError, match=words):
        write_about(run_copy, about)
    assert not (run_copy.path / ABOUT_FILE).exists()
