"""Checkpoints: whole or absent, enough by themselves, and refused in one sentence when they lie."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_model.config.fields import SamplingConfig
from megatron_model.run import checkpoint as checkpoint_module
from megatron_model.run.checkpoint import (
    Snapshot,
    load_model,
    load_training,
    load_weights,
    save_plain_weights,
    write_checkpoint,
)
from megatron_model.run.folder import MODEL_FILE, TRAINING_FILE, RunFolder
from megatron_model.training.trainer import Trainer
from megatron_model.util import files
from megatron_model.util.errors import RequestError
from tests.model.helpers import make_trainer, tiny_config


def trained(steps: int = 3, **changes: object) -> Trainer:
    trainer = make_trainer(tiny_config({"training.steps": steps, **changes}))
    for _ in trainer.run():
        pass
    return trainer


def save(trainer: Trainer, path: Path) -> Path:
    weights, state = trainer.learner.weights(), trainer.state()
    write_checkpoint(path, Snapshot(weights, trainer.tokenizer, trainer.config, state))
    return path


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    return trained()


@pytest.fixture
def saved(trainer: Trainer, tmp_path: Path) -> Path:
    return save(trainer, tmp_path / "checkpoints" / "step-00000003")


@pytest.mark.parametrize(
    ("architecture", "optimizer"), [("classic", "adamw"), ("modern", "adamw"), ("modern", "muon")]
)
def test_what_was_saved_is_loaded(architecture: str, optimizer: str, tmp_path: Path) -> None:
    trainer = trained(**{"model.architecture": architecture, "training.optimizer": optimizer})
    path = save(trainer, tmp_path / "step-00000003")
    loaded = load_model(path / MODEL_FILE)
    assert (loaded.step, loaded.val_loss) == (3, trainer.val_loss)
    assert loaded.config == trainer.config
    assert loaded.tokenizer == trainer.tokenizer
    assert not loaded.model.training
    for name, weight in trainer.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], weight), name
    state, wanted = load_training(path), trainer.state()
    assert state.scalars == msgspec.structs.replace(
        wanted.scalars, elapsed_seconds=state.scalars.elapsed_seconds
    )
    assert state.tensors.keys() == wanted.tensors.keys()
    for name, value in wanted.tensors.items():
        assert torch.equal(state.tensors[name], value), name


def test_the_model_file_alone_is_enough_to_write(
    saved: Path, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    shutil.move(saved / MODEL_FILE, empty / "a.safetensors")
    shutil.rmtree(saved.parent)
    monkeypatch.chdir(empty)
    sampling = SamplingConfig(max_new_tokens=20)
    loaded = load_model(Path("a.safetensors"))
    text = "".join(loaded.stream("the ", sampling))
    assert len(text) == 20
    assert text == "".join(
        checkpoint_module.generate_stream(trainer.model, trainer.tokenizer, "the ", sampling)
    )


def content(folder: Path) -> dict[str, bytes]:
    """Return everything under a folder by relative name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def fail_once_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function`, which raises in the call after so many."""
    left = [calls]

    def failing(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] == -1:
            raise OSError(28, "No space left on device")
        return function(*args, **options)

    return failing


MOMENTS = [
    pytest.param(checkpoint_module, "save_file", 0, id="weights"),
    pytest.param(checkpoint_module, "save_file", 1, id="training"),
    pytest.param(os, "fsync", 0, id="first-fsync"),
    pytest.param(os, "fsync", 3, id="last-fsync"),
    pytest.param(os, "rename", 0, id="first-rename"),
    pytest.param(os, "rename", 1, id="second-rename"),
]


@pytest.mark.parametrize(("module", "name", "calls"), MOMENTS)
def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_new(
    saved: Path, module: Any, name: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(saved.parent)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail_once_after(calls, getattr(module, name)))
        with pytest.raises(OSError, match="No space left"):
            save(trained(4), saved)
    assert content(saved.parent) == before
    assert load_model(saved / MODEL_FILE).step == 3


@pytest.mark.parametrize(("module", "name", "calls"), MOMENTS[:5])
def test_a_failed_save_leaves_no_part_of_a_new_checkpoint(
    trainer: Trainer,
    module: Any,
    name: str,
    calls: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail_once_after(calls, getattr(module, name)))
        with pytest.raises(OSError, match="No space left"):
            save(trainer, tmp_path / "checkpoints" / "step-00000003")
    assert content(tmp_path) == {}


def test_a_checkpoint_of_the_same_step_is_replaced(saved: Path) -> None:
    save(trained(5), saved)
    assert load_model(saved / MODEL_FILE).step == 5
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_save_cut_between_its_two_renames_loses_nothing(saved: Path) -> None:
    before = content(saved)
    shutil.copytree(saved, saved.with_name(f".{saved.name}.77.tmp"))
    saved.rename(saved.with_name(f".{saved.name}.77.old"))
    files.clear_leftovers(saved.parent)
    assert content(saved) == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_what_an_interrupted_save_left_is_cleared_away(saved: Path) -> None:
    before = content(saved)
    for ending in ("tmp", "old"):
        leftover = saved.with_name(f".{saved.name}.77.{ending}")
        shutil.copytree(saved, leftover)
        (leftover / MODEL_FILE).write_bytes(b"older")
    files.clear_leftovers(saved.parent)
    assert content(saved.parent) == {f"{saved.name}/{name}": data for name, data in before.items()}


# What is refused


def about(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        metadata: dict[str, Any] = json.loads(file.metadata()["megatron"])
    return metadata


def rewrite(path: Path, **changes: object) -> None:
    """Write the model file anew with parts of its description changed."""
    described = {**about(path), **changes}
    save_file(load_file(path), path, metadata={"megatron": json.dumps(described)})


def refusal(path: Path) -> str:
    with pytest.raises(RequestError) as refused:
        load_model(path)
    message = str(refused.value)
    assert "\n" not in message
    assert message.startswith(str(path))
    return message


def test_a_file_that_does_not_exist(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "none.safetensors")


@pytest.mark.parametrize("content", [b"", b"hello", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_file_of_another_kind(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_a_truncated_file(share: float, saved: Path) -> None:
    path = saved / MODEL_FILE
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert "not a readable .safetensors file" in refusal(path)
    with pytest.raises(RequestError, match="is damaged"):
        load_weights(saved)


def test_a_file_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "theirs.safetensors"
    save_file({"w": torch.zeros(2)}, path)
    assert "not written by this program" in refusal(path)
    save_file({"w": torch.zeros(2)}, path, metadata={"megatron": "[1"})
    assert "not written by this program" in refusal(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocabulary": ""},
        {"vocabulary": "aa"},
        {"vocabulary": 7},
        {"step": None},
        {"val_loss": "low"},
        {"config": []},
        {"config": {"model": {"layers": 0}}},
        {"config": {"model": {"wings": 2}}},
    ],
    ids=str,
)
def test_a_description_that_describes_no_model(changes: dict[str, object], saved: Path) -> None:
    rewrite(saved / MODEL_FILE, **changes)
    assert "does not describe a model" in refusal(saved / MODEL_FILE)


@pytest.mark.parametrize("layers", [1, 3])
def test_weights_that_do_not_fit_their_configuration(layers: int, saved: Path) -> None:
    path = saved / MODEL_FILE
    config = about(path)["config"]
    config["model"]["layers"] = layers
    rewrite(path, config=config)
    assert "does not fit its own configuration" in refusal(path)


def test_a_header_that_promises_terabytes_costs_nothing(saved: Path) -> None:
    path = saved / MODEL_FILE
    config = about(path)["config"]
    config["model"].update(embed_dim=2**20, ff_dim=2**20)
    rewrite(path, config=config)
    assert "does not fit its own configuration" in refusal(path)


@pytest.mark.parametrize("name", [TRAINING_FILE, "training.safetensors"])
def test_a_damaged_trainer_state(name: str, saved: Path) -> None:
    (saved / name).write_bytes(b"{")
    with pytest.raises(RequestError, match="is damaged"):
        load_training(saved)
    (saved / name).unlink()
    with pytest.raises(RequestError, match="is damaged"):
        load_training(saved)


def test_plain_weights_are_read_by_torch_alone(trainer: Trainer, tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    save_plain_weights(path, trainer.model.state_dict())
    weights = torch.load(path, weights_only=True)
    assert weights.keys() == trainer.model.state_dict().keys()
    fresh = make_trainer(trainer.config).model
    fresh.load_state_dict(weights, strict=True)
    assert torch.equal(next(fresh.parameters()), next(trainer.model.parameters()))


def test_the_runs_final_file_is_read_by_torch_alone(finished_run: RunFolder) -> None:
    best = finished_run.best_checkpoint()
    assert best is not None
    weights = torch.load(finished_run.path / "megatron_trained_model.pt", weights_only=True)
    wanted = load_weights(best.path)
    assert weights.keys() == wanted.keys()
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
