"""A run folder that leads elsewhere: nothing outside of it is written, followed or deleted."""

from __future__ import annotations

import os
import pickle
import shutil
import stat
from pathlib import Path

import pytest

from megatron_model.config.fields import with_settings
from megatron_model.events.schema import RunFinished
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder, find_model
from megatron_model.run.handover import start_successor
from megatron_model.run.runner import run_training
from megatron_model.util.errors import RequestError
from tests.model.helpers import train


def content(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def more(folder: RunFolder, steps: int) -> list[object]:
    config = with_settings(folder.read_config(), {"training.steps": steps})
    return list(run_training(folder, Control(), config=config))


def test_checkpoints_that_are_elsewhere_are_left_alone(run_copy: RunFolder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    shutil.move(run_copy.path / "checkpoints", outside)
    (outside / ".secret").mkdir()
    (outside / ".secret" / "file").write_text("keep")
    (run_copy.path / "checkpoints").symlink_to(outside)
    before = content(outside)
    assert run_copy.checkpoints() == []
    run_copy.prune_checkpoints(1)
    with pytest.raises(RequestError, match="is a link"):
        train(run_copy)
    run_copy.delete()
    assert content(outside) == before


def test_a_checkpoint_that_is_a_link_is_neither_loaded_nor_pruned(
    run_copy: RunFolder, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    shutil.copytree(run_copy.checkpoints()[0].path, outside)
    before = content(outside)
    (run_copy.path / "checkpoints" / "step-00000001").symlink_to(outside)
    assert 1 not in [checkpoint.step for checkpoint in run_copy.checkpoints()]
    assert isinstance(more(run_copy, 40)[-1], RunFinished)
    assert content(outside) == before


@pytest.mark.parametrize("name", ["events.jsonl", "lock"])
def test_a_file_that_is_a_link_is_not_written_through(
    run_copy: RunFolder, tmp_path: Path, name: str
) -> None:
    target = tmp_path / "target"
    target.write_text("keep\n")
    (run_copy.path / name).unlink(missing_ok=True)
    (run_copy.path / name).symlink_to(target)
    with pytest.raises(RequestError, match="Cannot write"):
        more(run_copy, 20)
    assert target.read_text() == "keep\n"


def test_the_trainers_log_is_not_written_through_a_link(
    run_copy: RunFolder, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    (run_copy.path / "trainer.log").symlink_to(target)
    with pytest.raises(RequestError, match="Cannot start a process"):
        start_successor(run_copy)
    assert not target.exists()


def test_replaced_files_do_not_reach_what_links_point_to(
    run_copy: RunFolder, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.write_text("keep\n")
    final = run_copy.path / "megatron_trained_model.pt"
    final.unlink()
    final.symlink_to(target)
    temporary = run_copy.path / f".run.toml.{os.getpid()}.tmp"
    temporary.symlink_to(target)
    assert isinstance(more(run_copy, 20)[-1], RunFinished)
    assert target.read_text() == "keep\n"
    assert not final.is_symlink()


def test_pipes_in_place_of_files_hold_nobody_up(run_copy: RunFolder) -> None:
    run_copy.events_path.unlink()
    os.mkfifo(run_copy.events_path)
    assert run_copy.state().status == "new"
    lock = run_copy.path / "lock"
    lock.unlink()
    os.mkfifo(lock)
    assert not run_copy.is_active()


class _Harm:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("harmed",)


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from megatron_model.run.checkpoint import load_model

    monkeypatch.chdir(tmp_path)
    for name in ("evil.pt", "evil.safetensors"):
        Path(name).write_bytes(pickle.dumps(_Harm()))
        with pytest.raises(RequestError):
            load_model(find_model(name, tmp_path), device="cpu")
    assert not Path("harmed").exists()


def test_everything_in_a_run_is_the_users_own(run_copy: RunFolder) -> None:
    folder = RunFolder.create(run_copy.path.parent, "own", run_copy.read_config())
    train(folder)
    for path in [folder.path, *folder.path.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == wanted, path
