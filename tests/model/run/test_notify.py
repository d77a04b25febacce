"""The program of a person's own that hears of the end of a run."""

from __future__ import annotations

import time
from pathlib import Path

import platformdirs
import pytest

from megatron_model.config.fields import RunConfig
from megatron_model.events.schema import RunFailed, RunFinished, RunPaused
from megatron_model.run import notify
from megatron_model.run.folder import RunFolder
from tests.model.helpers import train


def script(path: Path, heard: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'#!/bin/sh\nprintf "%s|" "$@" > {heard}.tmp\nmv {heard}.tmp {heard}\n')
    path.chmod(0o700)
    return path


def wait_for(path: Path) -> str:
    end = time.monotonic() + 10
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text()


def test_should_notify_hook_hears_of_the_end(
    runs_dir: Path, config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = tmp_path / "heard"
    monkeypatch.setenv(notify.VARIABLE, str(script(tmp_path / "hook", heard)))
    train(RunFolder.create(runs_dir, "a", config))
    assert wait_for(heard) == "a|completed|finished: all 18 steps are done|"


def test_the_file_in_the_config_folder_is_the_usual_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(notify.VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert notify.hook() == []
    heard = tmp_path / "heard"
    folder = Path(platformdirs.user_config_path("megatron"))
    script(folder / notify.FILE, heard)
    assert notify.notify("a\x1b[2J", RunFailed(step=1, error="Out of\nmemory.")) == ""
    assert wait_for(heard) == "a\ufffd[2J|failed|Out of memory.|"


def test_what_is_no_end_and_what_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(notify.VARIABLE, "/nowhere/to/be/found --loud")
    assert notify.notify("a", RunPaused(step=1)) == ""
    ended = RunFinished(step=1, reason="stopped", elapsed_seconds=1.0)
    assert "could not be started" in notify.notify("a", ended)
    monkeypatch.setenv(notify.VARIABLE, "")
    assert notify.notify("a", ended) == ""
    monkeypatch.setenv(notify.VARIABLE, "'unclosed")
    assert notify.notify("a", ended) == ""
