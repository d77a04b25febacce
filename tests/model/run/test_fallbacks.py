"""What a run can do without, and what it cannot: faults of file systems, one at a time."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import pathlib
import shutil
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from megatron_model.cli.parser import parse
from megatron_model.cli.verbs.tell import run as tell
from megatron_model.cli.verbs.train import run as train_verb
from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import Event, Notice, RunFailed, RunFinished, StepCompleted
from megatron_model.run import fork
from megatron_model.run import lock as run_lock
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import Control
from megatron_model.run.folder import CHECKPOINTS, LOCK_FILE, RunFolder
from megatron_model.run.runner import run_training
from megatron_model.util import fallback
from megatron_model.util.errors import RequestError
from megatron_model.util.files import whole_folder, write_atomically
from tests.model.helpers import train

UNKNOWN_LOCKS = [errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL]


def fails(code: int) -> Callable[..., Any]:
    def call(*arguments: object, **options: object) -> None:
        raise OSError(code, os.strerror(code))

    return call


def notices(seen: list[Event]) -> list[str]:
    return [event.text for event in seen if isinstance(event, Notice)]


def short(config: RunConfig, **changes: object) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return with_settings(config, {"training.steps": 4, **dotted})


# The lock


@pytest.mark.parametrize("code", UNKNOWN_LOCKS)
def test_without_locks_a_run_is_trained_and_it_is_said_once(
    runs_dir: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(code))
    folder = RunFolder.create(runs_dir, "unlocked", short(config))
    with folder.lock():
        assert folder.is_active(), "what the file says counts where there is no lock"
        with pytest.raises(RequestError, match="being trained by another process"), folder.lock():
            pass
    assert not folder.is_active()
    if code == UNKNOWN_LOCKS[0]:
        seen = train(folder)
        assert isinstance(seen[-1], RunFinished)
        assert sum("no locks" in text for text in notices(seen)) == 1


def test_without_locks_a_dead_trainer_is_dead(
    run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    lock = run_copy.path / LOCK_FILE
    begun = psutil.Process().create_time()
    for pid, since in ((2**22 + 1, time.time()), (os.getpid(), begun - 1.0)):
        # No such process; and another one that got its number since.
        about = {"host": socket.gethostname(), "boot": "b", "pid": pid, "since": since}
        lock.write_text(json.dumps(about))
        assert not run_copy.is_active()
    about["since"] = begun + 0.1
    lock.write_text(json.dumps(about))
    assert run_copy.is_active()


def test_without_locks_a_trainer_in_another_container_is_believed_for_a_while(
    run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "flock", fails(errno.ENOSYS))
    boot = run_lock.boot_id()
    about = {"host": "elsewhere", "boot": boot, "pid": 7, "since": 1.0}
    (run_copy.path / LOCK_FILE).write_text(json.dumps(about))
    os.utime(run_copy.events_path)
    with pytest.raises(RequestError, match="ago on elsewhere"), run_copy.lock():
        pass


def test_a_container_started_anew_resumes_at_once(
    run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    boot = tmp_path / "boot_id"
    boot.write_text("one start of the kernel\n")
    monkeypatch.setattr(run_lock, "_BOOT_ID", boot)
    about = {"host": "3f2a9c", "boot": "one start of the kernel", "pid": 7, "since": 1.0}
    (run_copy.path / LOCK_FILE).write_text(json.dumps(about))
    os.utime(run_copy.events_path)
    with run_copy.lock():
        assert run_copy.is_active()
    (run_copy.path / LOCK_FILE).write_text(json.dumps({**about, "boot": "another start"}))
    with pytest.raises(RequestError, match="ago on 3f2a9c"), run_copy.lock():
        pass


def patch_os(monkeypatch: pytest.MonkeyPatch, call: str, instead: Callable[..., Any]) -> None:
    """Replace a function of `os`, also where pathlib has kept it (before Python 3.11)."""
    monkeypatch.setattr(os, call, instead)
    kept = getattr(pathlib, "_normal_accessor", None)
    if hasattr(kept, call):
        monkeypatch.setattr(kept, call, instead)


# Modes and fsync


def only_for_folders(code: int) -> Callable[[int], None]:
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real(descriptor)

    return fsync


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_fsync_and_modes_holds_a_run(
    runs_dir: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setattr(os, "fsync", only_for_folders(code))
    patch_os(monkeypatch, "chmod", fails(errno.EPERM))
    folder = RunFolder.create(runs_dir, "cifs", short(config))
    assert fallback.take_missing(set())
    seen = train(folder)
    assert isinstance(seen[-1], RunFinished)
    assert folder.latest_checkpoint() is not None
    said = notices(seen)
    assert sum("bring folders to disk" in text for text in said) == 1
    assert sum("made private" in text for text in said) == 1


def test_a_file_that_does_not_reach_the_disk_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "fsync", fails(errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "a", b"a")
    with pytest.raises(OSError, match="Input/output"), whole_folder(tmp_path / "b") as folder:
        (folder / "a").write_bytes(b"a")
    assert list(tmp_path.iterdir()) == []


# What fails before the first step leaves nothing behind


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("call", ["replace", "fsync", "mkdir"])
def test_a_run_folder_that_cannot_be_written_is_not_left(
    runs_dir: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    real = os.mkdir

    def mkdir(path: Any, *arguments: Any, **options: Any) -> None:
        if os.path.basename(path) == CHECKPOINTS:
            raise OSError(code, os.strerror(code), str(path))
        real(path, *arguments, **options)

    patch_os(monkeypatch, call, mkdir if call == "mkdir" else fails(code))
    with pytest.raises(RequestError, match=rf"^Cannot write .*: {os.strerror(code)}\.$"):
        RunFolder.create(runs_dir, "new", config)
    assert list(runs_dir.iterdir()) == []


def never_begins(folder: RunFolder, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        train(folder)
    assert not folder.path.exists()


def test_no_folder_is_left_where_the_lock_cannot_be_had(runs_dir: Path, config: RunConfig) -> None:
    folder = RunFolder.create(runs_dir, "new", config)
    (folder.path / LOCK_FILE).symlink_to("elsewhere")
    never_begins(folder, "Cannot write")


def test_no_folder_is_left_where_the_log_cannot_be_had(runs_dir: Path, config: RunConfig) -> None:
    folder = RunFolder.create(runs_dir, "new", config)
    folder.events_path.symlink_to("elsewhere")
    never_begins(folder, "Cannot write")


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.ENOSPC, "No space left", "x")])
@pytest.mark.parametrize("where", ["Trainer", "trigram_entropy", "restore", "split"])
def test_no_folder_is_left_where_there_is_no_room(
    runs_dir: Path,
    config: RunConfig,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    where: str,
) -> None:
    from megatron_model.run import runner

    def full(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(runner, where, full)
    never_begins(RunFolder.create(runs_dir, "new", config), "out of memory|Cannot write x")


def test_no_folder_is_left_by_the_command_line(runs_dir: Path, corpus: Path) -> None:
    options = parse(["train", str(corpus), "--preset", "smoke", "--set", "training.device=cuda:99"])
    with pytest.raises(RequestError, match="cuda:99"):
        train_verb(options)
    assert not runs_dir.exists() or list(runs_dir.iterdir()) == []


def test_what_fails_at_the_first_step_leaves_no_folder(
    runs_dir: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_model.training.learner import Learner

    def full(*arguments: object) -> None:
        raise MemoryError

    folder = RunFolder.create(runs_dir, "new", config)
    with monkeypatch.context() as patch:
        patch.setattr(Learner, "step", full)
        patch.setattr(Learner, "can_halve_micro_batch", lambda self: False)
        seen = train(folder)
    assert isinstance(seen[-1], RunFailed)
    assert "out of memory" in seen[-1].error
    assert not folder.path.exists()


def test_what_fails_later_or_had_begun_before_is_kept(
    runs_dir: Path, config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_model.training.learner import Learner

    folder = RunFolder.create(runs_dir, "begun", config)
    step = Learner.step

    def full(self: Learner, number: int, *arguments: Any) -> Any:
        if number == 3:
            raise MemoryError
        return step(self, number, *arguments)

    monkeypatch.setattr(Learner, "can_halve_micro_batch", lambda self: False)
    monkeypatch.setattr(Learner, "step", full)
    assert isinstance(train(folder)[-1], RunFailed)
    assert folder.path.exists()
    monkeypatch.setattr(Learner, "step", lambda self, *arguments: full(self, 3))
    assert isinstance(train(folder)[-1], RunFailed)  # at step 0: there is no checkpoint
    assert folder.path.exists(), "its curves are worth keeping"


def test_a_fork_that_cannot_begin_leaves_no_folder_but_one_of_another_day_stays(
    run_copy: RunFolder, tmp_path: Path
) -> None:
    checkpoint = run_copy.checkpoints()[0]
    config = with_settings(run_copy.read_config(), {"training.steps": 40})
    child = fork.fork_run(run_copy, checkpoint, "child", config)
    child.write_config(
        with_settings(child.read_config(), {"data.corpus": str(tmp_path / "nowhere")}),
        fingerprint="",
    )
    of_another_day = RunFolder.open(child.path)
    with pytest.raises(RequestError):
        train(of_another_day)
    assert child.path.exists(), "its parent may be gone by now"
    never_begins(child, "nowhere")
    assert run_copy.path.exists()


def test_a_run_that_another_process_is_about_to_train_is_not_removed(
    runs_dir: Path, config: RunConfig
) -> None:
    folder = RunFolder.create(runs_dir, "contended", config)
    with run_lock.hold(folder.path / LOCK_FILE) as held:
        assert held
        with pytest.raises(RequestError, match="another process"):
            train(folder)
    assert folder.path.exists()


# What comes too late, and what is gone


def test_a_command_to_a_finished_run_is_refused_and_leaves_no_file(run_copy: RunFolder) -> None:
    options = parse(["tell", run_copy.name, "stop"])
    with pytest.raises(RequestError, match="No process trains"):
        tell(options)
    about_to_leave = run_lock.hold(run_copy.path / LOCK_FILE)
    with about_to_leave, pytest.raises(RequestError, match="No process trains"):
        tell(options)
    commands = CommandFolder(run_copy.path).path
    assert not commands.exists() or list(commands.iterdir()) == []


def test_a_command_that_came_too_late_does_not_wait_for_another_day(
    runs_dir: Path, config: RunConfig
) -> None:
    folder = RunFolder.create(runs_dir, "late", short(config))
    for event in run_training(folder, Control()):
        if isinstance(event, RunFinished):
            CommandFolder(folder.path).send("stop")
    assert list(CommandFolder(folder.path).path.iterdir()) == []


@pytest.mark.parametrize("way", ["deleted", "paused"])
def test_a_run_that_is_deleted_under_its_trainer_fails_and_stays_deleted(
    runs_dir: Path, config: RunConfig, way: str
) -> None:
    folder = RunFolder.create(runs_dir, "deleted", with_settings(config, {"training.steps": 10**6}))
    control, seen = Control(), []
    for event in run_training(folder, control):
        seen.append(event)
        if isinstance(event, StepCompleted) and event.step == 3:
            if way == "paused":
                control.put("pause")
            shutil.rmtree(folder.path)
    assert isinstance(seen[-1], RunFailed)
    assert "was deleted while it trained" in seen[-1].error
    assert str(folder.path) in seen[-1].error
    assert not folder.path.exists()


def test_a_run_that_is_moved_for_a_while_waits_for_its_folder(
    runs_dir: Path, config: RunConfig
) -> None:
    folder = RunFolder.create(runs_dir, "moved", config)
    away, seen, control = runs_dir / "away", [], Control()
    for event in run_training(folder, control):
        seen.append(type(event).__name__)
        if isinstance(event, StepCompleted) and event.step == 3:
            folder.path.rename(away)
        if seen[-1] == "RunPaused":
            assert not folder.path.exists()
            away.rename(folder.path)
            control.put("resume")
    assert seen[-1] == "RunFinished"
    assert folder.latest_checkpoint() is not None
