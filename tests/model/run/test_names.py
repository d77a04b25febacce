"""Names made from other names: of runs, of temporary files; and what a name stands for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from megatron_model.run.folder import (
    MODEL_FILE,
    NAME_BYTES,
    RunFolder,
    check_run_name,
    find_model,
    free_name,
)
from megatron_model.run.fork import fork_name
from megatron_model.util.errors import RequestError
from megatron_model.util.files import write_atomically
from megatron_model.util.text import cut_to_bytes
from megatron_tui.app import make_app
from megatron_tui.setup.corpus_facts import CorpusFacts
from megatron_tui.setup.dialogs import save_dialog
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui.path_input import complete_path


@pytest.mark.parametrize(
    "stem", ["x" * 180, "x" * 251, "é" * 120, "日" * 83, "e\u0301" * 80, "\udcff"]
)
def test_a_name_made_from_a_long_one_can_be_one(tmp_path: Path, stem: str) -> None:
    seen = set()
    for _ in range(3):
        name = free_name(tmp_path, stem, "-cpu")
        check_run_name(name)
        assert "-cpu" in name
        (tmp_path / name).mkdir()
        seen.add(name)
    assert len(seen) == 3


def test_a_long_ending_leaves_room_for_the_beginning(tmp_path: Path) -> None:
    name = free_name(tmp_path, "hamlet", "-" + "p" * 250)
    check_run_name(name)
    assert name.startswith("hamlet-p")


def test_what_is_short_enough_is_left_whole(tmp_path: Path) -> None:
    assert free_name(tmp_path, "the book", "-cpu") == "the-book-cpu"
    assert free_name(tmp_path, "...") == "run"


def test_a_text_is_cut_between_characters() -> None:
    assert cut_to_bytes("aé", 2) == "a"
    assert cut_to_bytes("ae\u0301x", 2) == "a"
    assert cut_to_bytes("aé", 3) == "aé"


@pytest.mark.parametrize("name", ["a\u200bb", "a\u200d", "\u2060a", "a\u00adb"])
def test_a_run_has_no_characters_that_are_nothing_to_see(name: str) -> None:
    with pytest.raises(RequestError, match="cannot be a run name"):
        check_run_name(name)


def test_setup_names_a_run_on_a_text_with_the_longest_name(tmp_path: Path) -> None:
    text = tmp_path / ("x" * 251 + ".txt")
    text.write_text("abc")
    plan = SetupPlan(tmp_path / "runs", "cpu")
    plan.facts = CorpusFacts(str(text), name=text.stem, size=3)
    assert plan.name_error(plan.default_name()) == ""


def test_a_fork_of_a_long_name_can_be_named(tmp_path: Path) -> None:
    parent = RunFolder(tmp_path / ("é" * (NAME_BYTES // 2)))
    check_run_name(fork_name(parent, 123_456))


@pytest.mark.parametrize("length", [250, 255])
def test_a_file_of_the_longest_name_can_be_written(tmp_path: Path, length: int) -> None:
    path = tmp_path / ("é" * (length // 2))
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.parametrize("kind", ["file", "safetensors", "checkpoint"])
def test_what_is_called_like_a_run_does_not_hide_it(
    run_copy: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    runs = run_copy.path.parent
    name = run_copy.name + ".safetensors" * (kind == "safetensors")
    run_copy.path.rename(runs / name)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    if kind == "checkpoint":
        (here / name).mkdir()
        (here / name / MODEL_FILE).write_bytes(b"no model")
    else:
        (here / name).write_text("to be")
    assert find_model(name, runs).is_relative_to(runs / name)
    # With a slash it is a path, whatever runs there are.
    if kind == "checkpoint":
        assert find_model(f"./{name}", runs) == Path(name, MODEL_FILE)


def test_a_model_file_is_found_beside_runs(
    finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = finished_run.best_checkpoint()
    assert checkpoint is not None
    shutil.copy(checkpoint.path / MODEL_FILE, tmp_path / "tale.safetensors")
    monkeypatch.chdir(tmp_path)
    assert find_model("tale.safetensors", finished_run.path.parent) == Path("tale.safetensors")


def test_the_workbench_refuses_a_target_that_is_too_long_for_a_name(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="File name too long"):
        make_app(tmp_path, "x" * 300)


@pytest.mark.parametrize("typed", ["~nobody-of-this-name/settings.toml", "x" * 300])
def test_a_typed_path_that_cannot_be_is_said(tmp_path: Path, typed: str) -> None:
    plan = SetupPlan(tmp_path, "cpu")
    plan.facts = CorpusFacts("builtin:python-reference")
    said = save_dialog(plan, "a")._take(typed, False)
    assert "Cannot write" in said
    assert complete_path(typed) is None


def test_a_name_that_cannot_be_shown_is_not_completed(tmp_path: Path) -> None:
    (tmp_path / "good one").mkdir()
    for name in (b"good\x1b[31m", b"good\xff"):
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_text("x")
    assert complete_path(f"{tmp_path}/go") == f"{tmp_path}/good one/"
