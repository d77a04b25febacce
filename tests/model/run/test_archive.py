"""Runs that were put aside are in no list, keep all they had, and come back under their name."""

from __future__ import annotations

import shutil

import pytest

from megatron_model.config.fields import with_settings
from megatron_model.run.archive import archive_of, archive_run, bring_back, is_archived
from megatron_model.run.folder import RunFolder, list_runs
from megatron_model.run.fork import fork_name, fork_run, nearest_checkpoint
from megatron_model.util.errors import RequestError


def test_a_run_is_put_aside_and_brought_back_whole(run_copy: RunFolder) -> None:
    runs_dir = run_copy.path.parent
    before = {
        path.relative_to(run_copy.path): path.read_bytes()
        for path in run_copy.path.rglob("*")
        if path.is_file() and path.name not in ("run.toml", "lock")
    }
    aside = archive_run(run_copy)
    assert list_runs(runs_dir) == []
    assert [folder.name for folder in list_runs(archive_of(runs_dir))] == [run_copy.name]
    assert is_archived(aside) and not is_archived(run_copy)
    assert aside.state() == RunFolder(aside.path).state()
    back = bring_back(aside)
    assert back.path == run_copy.path
    assert (
        before.items()
        <= {
            path.relative_to(back.path): path.read_bytes()
            for path in back.path.rglob("*")
            if path.is_file()
        }.items()
    )
    assert back.read_config().model.layers == 2


def test_a_name_that_is_taken_harms_neither(run_copy: RunFolder) -> None:
    twin = run_copy.path.with_name("twin")
    shutil.copytree(run_copy.path, twin)
    first = archive_run(run_copy)
    shutil.move(twin, run_copy.path)
    with pytest.raises(RequestError, match="exists in"):
        bring_back(first)
    assert first.path.is_dir() and run_copy.path.is_dir()
    second = archive_run(RunFolder(run_copy.path))
    assert second.name == f"{run_copy.name}-2"
    assert bring_back(first).name == run_copy.name
    with pytest.raises(RequestError, match="not put aside"):
        bring_back(RunFolder(run_copy.path))
    with pytest.raises(RequestError, match="aside already"):
        archive_run(second)


def test_a_run_in_training_stays_where_it_is(run_copy: RunFolder) -> None:
    with run_copy.lock(), pytest.raises(RequestError, match="in training"):
        archive_run(run_copy)
    assert not archive_of(run_copy.path.parent).exists()


def test_a_fork_of_a_run_that_was_put_aside_is_among_the_others(run_copy: RunFolder) -> None:
    runs_dir = run_copy.path.parent
    aside = archive_run(run_copy)
    checkpoint = nearest_checkpoint(aside)
    assert checkpoint is not None
    config = with_settings(aside.read_config(), {"training.steps": checkpoint.step + 10})
    child = fork_run(aside, checkpoint, fork_name(aside, checkpoint.step), config)
    assert child.path.parent == runs_dir
    assert child.read_parent() == (aside.name, checkpoint.step)
