"""Compiled libraries: only what was built here, whole and out of nobody else's reach, is loaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.util.library_store import (
    discard,
    find_library,
    install,
    is_whole,
    library_name,
    open_library,
    place,
)

NAME = "some-library.so"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of libraries, which is not there yet; temporary files are beside it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return tmp_path / "cache" / "megatron" / "compiled"


@pytest.fixture
def private(cache: Path, tmp_path: Path) -> Path:
    """The folder that takes its place."""
    return tmp_path / "temporary" / f"megatron-{os.geteuid()}"


def put(folder: Path, content: bytes = b"machine code" * 100) -> Path:
    built = folder / "just-built"
    built.write_bytes(content)
    install(built, folder / NAME)
    return folder / NAME


def test_a_library_is_found_where_it_was_put(cache: Path) -> None:
    assert find_library(NAME) is None
    assert place() == (cache, "")
    path = put(cache)
    assert find_library(NAME) == path
    assert path.stat().st_mode & 0o077 == 0
    discard(path)
    assert find_library(NAME) is None
    assert not list(cache.iterdir())


@pytest.mark.parametrize("size", [0, 1, 600, 1199])
def test_one_that_was_cut_short_is_not_loaded(cache: Path, size: int) -> None:
    place()
    path = put(cache)
    os.truncate(path, size)
    assert find_library(NAME) is None
    with pytest.raises(OSError, match="some-library.so is damaged"):
        open_library(path)


def test_one_that_was_changed_is_not_loaded(cache: Path) -> None:
    place()
    path = put(cache)
    path.write_bytes(b"other things" * 100)
    assert not is_whole(path)
    put(cache)
    assert is_whole(path), "it was built anew"


@pytest.mark.parametrize("said", [b"", b"\xff\xfe", b"0" * 10**6, b"abc 12x"])
def test_one_with_a_damaged_checksum_is_not_loaded(cache: Path, said: bytes) -> None:
    place()
    path = put(cache)
    (cache / f"{NAME}.sha256").write_bytes(said)
    assert not is_whole(path)


def test_one_without_a_checksum_is_not_loaded(cache: Path) -> None:
    place()
    (cache / NAME).write_bytes(b"planted")
    assert find_library(NAME) is None


def test_a_folder_that_others_may_write_to_is_not_used(cache: Path, private: Path) -> None:
    place()
    put(cache)
    cache.chmod(0o777)
    assert find_library(NAME) is None
    folder, notice = place()
    assert folder == private
    assert folder.stat().st_mode & 0o777 == 0o700
    assert str(cache) in notice
    assert "others may write to it" in notice
    assert str(private) in notice
    assert find_library(NAME) is None
    assert find_library(put(private).name) == private / NAME


def test_a_file_that_others_may_write_to_is_not_loaded(cache: Path) -> None:
    place()
    path = put(cache)
    path.chmod(0o722)
    assert find_library(NAME) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("which", ["folder", "file"])
def test_what_belongs_to_another_user_is_not_used(cache: Path, private: Path, which: str) -> None:
    place()
    path = put(cache)
    os.chown(cache if which == "folder" else path, 12345, 12345)
    assert find_library(NAME) is None
    if which == "folder":
        assert place().folder == private
        assert "belongs to another user" in place().notice
        os.chown(private, 12345, 12345)
        assert place().folder is None, "somebody made it before us"


def test_a_link_in_place_of_the_private_folder_is_not_followed(
    cache: Path, private: Path, tmp_path: Path
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("no folder at all")
    (tmp_path / "mine").mkdir()
    private.symlink_to(tmp_path / "mine")
    assert place().folder is None
    assert "File exists" in place().notice


def test_without_a_home_the_private_folder_is_used(
    cache: Path, private: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(_number: int) -> None:
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert place().folder == private
    assert "there is no home folder" in place().notice


def test_the_name_tells_processors_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    here = library_name("step", "computation")
    assert here == library_name("step", "computation")
    assert here != library_name("step", "another computation")
    monkeypatch.setattr(
        "megatron_model.util.library_store._machine", lambda: ("another processor",)
    )
    assert here != library_name("step", "computation")


@pytest.fixture
def mounted(cache: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own in the cache's place, with the options that the test wants."""
    cache.mkdir(parents=True, mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", str(cache)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        put(cache)
        remount = ["mount", "-o", f"remount,{request.param}", str(cache)]
        subprocess.run(remount, check=True, capture_output=True)
        yield cache
    finally:
        subprocess.run(["umount", "-l", str(cache)], capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("mounted", ["ro"], indirect=True)
def test_a_folder_that_is_read_only_is_read(mounted: Path, private: Path) -> None:
    assert find_library(NAME) == mounted / NAME
    assert place().folder == private
    assert "it cannot be written" in place().notice


@pytest.mark.slow
@pytest.mark.parametrize("mounted", ["noexec"], indirect=True)
def test_a_folder_that_allows_no_code_is_not_used(mounted: Path, private: Path) -> None:
    assert find_library(NAME) is None
    assert place().folder == private
    assert "noexec" in place().notice


def test_one_is_on_disk_before_it_has_its_name(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place()
    order: list[tuple[str, int]] = []
    sync, rename = os.fsync, os.replace

    def watched_sync(descriptor: int) -> None:
        order.append(("synced", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def watched_rename(source: os.PathLike[str], target: os.PathLike[str]) -> None:
        order.append(("renamed", os.stat(source).st_ino))
        rename(source, target)

    monkeypatch.setattr(os, "fsync", watched_sync)
    monkeypatch.setattr(os, "replace", watched_rename)
    library = put(cache).stat().st_ino
    steps = [step for step, file in order if file == library]
    assert steps == ["synced", "renamed"]
