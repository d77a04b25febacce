"""Checkpoints written in the background: the same ones, whole, and tried again on a full disk."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_model.config.fields import RunConfig
from megatron_model.events.schema import (
    Alert,
    CheckpointSaved,
    RunFinished,
    RunPaused,
    StepCompleted,
)
from megatron_model.run import save as saving
from megatron_model.run.checkpoint import load_training, load_weights
from megatron_model.run.control import Control
from megatron_model.run.folder import MODEL_FILE, RunFolder
from megatron_model.run.runner import run_training
from megatron_model.util.files import is_unharmed
from tests.model.helpers import history, train
from tests.model.run.test_runner import no_file_longer_than


@pytest.fixture
def in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """Write even the smallest checkpoint in the background."""
    monkeypatch.setattr(saving, "BACKGROUND_FROM_BYTES", 0)


def test_training_goes_on_meanwhile_and_changes_nothing_of_it(
    in_background: None,
    runs_dir: Path,
    config: RunConfig,
    finished_run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, stepped = threading.Event(), []
    write = saving.write_checkpoint

    def slow(path: Path, snapshot: Any) -> None:
        if path.name == "step-00000005":
            gate.wait(30)
        write(path, snapshot)

    monkeypatch.setattr(saving, "write_checkpoint", slow)
    folder = RunFolder.create(runs_dir, "background", config)
    seen = []
    for event in run_training(folder, Control()):
        seen.append(event)
        if isinstance(event, StepCompleted) and event.step > 5 and not gate.is_set():
            stepped.append(event.step)
            assert not folder.checkpoint_path(5).exists()
            gate.set()
    assert stepped
    saved = [event.step for event in seen if isinstance(event, CheckpointSaved)]
    assert saved == sorted(saved)
    assert 5 in saved
    assert history(folder.read_events()[0]) == history(finished_run.read_events()[0])
    wanted = {checkpoint.step: checkpoint for checkpoint in finished_run.checkpoints()}
    assert wanted.keys() == {checkpoint.step for checkpoint in folder.checkpoints()}
    for checkpoint in folder.checkpoints():
        other = wanted[checkpoint.step]
        for name, weight in load_weights(other.path).items():
            assert torch.equal(load_weights(checkpoint.path)[name], weight)
        tensors = load_training(other.path).tensors
        for name, value in load_training(checkpoint.path).tensors.items():
            assert torch.equal(tensors[name], value), name


def test_a_full_disk_is_waited_for_beside_training_too(
    in_background: None, runs_dir: Path, config: RunConfig, finished_run: RunFolder
) -> None:
    folder, control = RunFolder.create(runs_dir, "background", config), Control()
    seen = []
    with contextlib.ExitStack() as full:
        for event in run_training(folder, control):
            seen.append(event)
            if isinstance(event, StepCompleted) and event.step == 4:
                full.enter_context(no_file_longer_than(8000))
            if isinstance(event, RunPaused):
                full.close()
                control.put("resume")
    assert sum(isinstance(event, Alert) for event in seen) == 1
    assert isinstance(seen[-1], RunFinished)
    assert history(folder.read_events()[0]) == history(finished_run.read_events()[0])


def test_a_run_killed_beside_a_save_resumes_exactly(
    in_background: None, runs_dir: Path, config: RunConfig, finished_run: RunFolder
) -> None:
    folder = RunFolder.create(runs_dir, "background", config)
    events = run_training(folder, Control())
    next(event for event in events if isinstance(event, StepCompleted) and event.step == 11)
    events.close()  # type: ignore[attr-defined]
    assert not folder.is_active()
    train(folder)
    assert history(folder.read_events()[0]) == history(finished_run.read_events()[0])


def test_a_flipped_bit_anywhere_is_noticed(finished_run: RunFolder, run_copy: RunFolder) -> None:
    checkpoint = run_copy.checkpoints()[-1]
    for path in sorted(checkpoint.path.iterdir()):
        assert path.stat().st_mode & 0o777 == 0o600
        if path.name == "SHA256SUMS":
            continue
        assert is_unharmed(path)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        assert not is_unharmed(path), path.name
        path.write_bytes(whole)
    model = checkpoint.path / MODEL_FILE
    whole = model.read_bytes()
    model.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    before = run_copy.checkpoints()[-2].step
    started = train(run_copy)
    notes = [line.text for line in run_copy.state().log if "damaged" in line.text]
    assert len(notes) == 1
    assert "checksum" in notes[0]
    assert next(e.step for e in started if type(e).__name__ == "RunStarted") == before
