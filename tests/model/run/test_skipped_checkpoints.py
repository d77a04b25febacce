"""A damaged checkpoint, or one of another run, is skipped by every reader, which says so."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import Notice, RunFinished, RunStarted
from megatron_model.run.checkpoint import load_model
from megatron_model.run.folder import MODEL_FILE, TRAINING_FILE, Checkpoint, RunFolder
from megatron_model.run.fork import fork_run, nearest_checkpoint
from megatron_model.run.handover import last_words
from megatron_model.util.errors import RequestError
from megatron_model.util.files import SUMS_FILE
from tests.model.cli.test_cli import Run, run
from tests.model.helpers import train

__all__ = ["run"]


def damage(checkpoint: Checkpoint | Path, name: str = MODEL_FILE) -> Path:
    """Change the last byte of a weight, which every other check lets pass."""
    path = (checkpoint if isinstance(checkpoint, Path) else checkpoint.path) / name
    data = bytearray(path.read_bytes())
    data[-4] ^= 1  # the least bit of a number
    path.write_bytes(data)
    return path


def best_two(folder: RunFolder) -> tuple[Checkpoint, Checkpoint]:
    first, second = folder.readable_checkpoints("best")[:2]
    return first, second


@pytest.fixture
def spoilt(run_copy: RunFolder) -> RunFolder:
    """A run whose best checkpoint is damaged."""
    damage(best_two(run_copy)[0])
    return run_copy


def test_a_damaged_best_checkpoint_is_not_exported(
    run: Run, run_copy: RunFolder, tmp_path: Path
) -> None:
    best, second = best_two(run_copy)
    damage(best)
    out = tmp_path / "out.safetensors"
    result = run("export", run_copy.name, out)
    assert result.status == 0
    assert f"{best.path.name} was skipped" in result.err
    assert "checksum" in result.err
    assert f"step {second.step:,}" in result.err
    assert out.read_bytes() == (second.path / MODEL_FILE).read_bytes()


@pytest.mark.parametrize("verb", ["sample", "evaluate"])
def test_a_damaged_best_checkpoint_is_neither_sampled_nor_evaluated(
    run: Run, run_copy: RunFolder, verb: str
) -> None:
    best, second = best_two(run_copy)
    expected = run(verb, second.path)
    damage(best)
    result = run(verb, run_copy.name)
    assert (result.status, result.out) == (0, expected.out)
    assert f"{best.path.name} was skipped" in result.err


def test_a_loss_that_was_not_saved_makes_no_best_checkpoint(run: Run, run_copy: RunFolder) -> None:
    worst = run_copy.readable_checkpoints("best")[-1]
    path = worst.path / TRAINING_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "val_loss": 0.001}))
    assert run_copy.readable_checkpoints("best")[0].path == worst.path
    result = run("evaluate", run_copy.name, "--json")
    assert f"{worst.path.name} was skipped: its {TRAINING_FILE}" in result.err
    assert json.loads(result.out)["step"] != worst.step


def test_a_damaged_checkpoint_asked_for_by_name_is_refused(run: Run, spoilt: RunFolder) -> None:
    best = spoilt.best_checkpoint()
    assert best is not None
    for given in (best.path, best.path / MODEL_FILE):
        result = run("sample", given)
        assert result.status == 2
        assert "checksum" in result.err
    # It is known now, and nothing offers it any more.
    assert best.path not in [c.path for c in spoilt.readable_checkpoints()]
    # Until it is what was saved again.
    damage(best)
    assert load_model(best.path / MODEL_FILE).step == best.step
    assert best.path in [c.path for c in spoilt.readable_checkpoints()]


def test_all_damaged_is_said(run: Run, run_copy: RunFolder) -> None:
    for checkpoint in run_copy.checkpoints():
        damage(checkpoint)
    result = run("sample", run_copy.name)
    assert (result.status, result.out) == (2, "")
    assert f'No checkpoint of the run "{run_copy.name}" is what was saved' in result.err


def test_a_fork_takes_no_damaged_checkpoint(run_copy: RunFolder) -> None:
    latest = run_copy.checkpoints()[-1]
    damage(latest)
    config = with_settings(run_copy.read_config(), {"training.steps": 40})
    with pytest.raises(RequestError, match="damaged"):
        fork_run(run_copy, latest, "child", config)
    near = nearest_checkpoint(run_copy)
    assert near is not None
    assert near.path != latest.path


def test_the_final_weights_are_of_the_best_that_is_what_was_saved(run_copy: RunFolder) -> None:
    older, best = run_copy.checkpoints()
    assert best.path == best_two(run_copy)[0].path
    path = older.path / TRAINING_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), "val_loss": 0.001}))
    expected = load_file(best.path / MODEL_FILE)
    train(run_copy)
    found = torch.load(run_copy.path / "megatron_trained_model.pt", weights_only=True)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.fixture
def stranger(run_copy: RunFolder, config: RunConfig, runs_dir: Path) -> Path:
    """A newer checkpoint of a run of the same shapes, copied among the run's own."""
    other = RunFolder.create(runs_dir, "other", with_settings(config, {"training.seed": 5}))
    train(other)
    theirs = other.readable_checkpoints("best")[0].path
    copied = run_copy.path / "checkpoints" / "step-00000019"
    shutil.copytree(theirs, copied)
    return copied


def test_a_checkpoint_of_another_run_is_not_resumed(run_copy: RunFolder, stranger: Path) -> None:
    own = run_copy.readable_checkpoints()[0]
    with_more = with_settings(run_copy.read_config(), {"training.steps": 30})
    run_copy.write_config(with_more, fingerprint=run_copy.read_corpus_fingerprint())
    before = len(run_copy.read_events()[0])
    train(run_copy)
    events = run_copy.read_events()[0][before:]
    assert next(e for e in events if isinstance(e, RunStarted)).step == own.step
    said = [e.text for e in events if isinstance(e, Notice)]
    assert any("foreign-step-00000019" in text and "another run" in text for text in said)
    assert (stranger.parent / "foreign-step-00000019").is_dir()
    assert isinstance(events[-1], RunFinished)


def test_a_checkpoint_of_another_run_is_not_written_with(
    run: Run, run_copy: RunFolder, stranger: Path
) -> None:
    result = run("sample", run_copy.name, "--latest")
    assert result.status == 0
    assert f"{stranger.name} was skipped: it is a checkpoint of another run" in result.err
    # Asked for by its own name it is taken: nobody is deceived.
    assert run("sample", stranger).status == 0
    near = nearest_checkpoint(run_copy, 19)
    assert near is not None
    assert near.path != stranger


def test_checkpoints_that_do_not_say_whose_they_are_stay_usable(
    run: Run, run_copy: RunFolder
) -> None:
    for checkpoint in run_copy.checkpoints():
        path = checkpoint.path / TRAINING_FILE
        numbers = json.loads(path.read_text())
        assert numbers.pop("run") == run_copy.read_identity() != ""
        path.write_text(json.dumps(numbers))
        (checkpoint.path / SUMS_FILE).unlink()
    result = run("sample", run_copy.name)
    assert (result.status, result.err) == (0, "")


@pytest.mark.parametrize("verb", ["sample", "export"])
def test_without_checksums_a_file_must_be_as_long_as_it_says(
    run: Run, run_copy: RunFolder, tmp_path: Path, verb: str
) -> None:
    best, second = best_two(run_copy)
    (best.path / SUMS_FILE).unlink()
    os.truncate(best.path / MODEL_FILE, 3000)
    more = (tmp_path / "out.safetensors",) if verb == "export" else ()
    result = run(verb, run_copy.name, *more)
    assert result.status == 0
    assert f"{best.path.name} was skipped: its model.safetensors" in result.err
    assert "header does not fit" in result.err
    with pytest.raises(RequestError, match="damaged"):
        fork_run(
            run_copy, best, "child", with_settings(run_copy.read_config(), {"training.steps": 40})
        )
    (second.path / SUMS_FILE).unlink()
    assert [c.path for c in run_copy.readable_checkpoints("best")][0] == second.path


def test_a_renamed_run_and_a_fork_keep_their_own(run: Run, run_copy: RunFolder) -> None:
    child = fork_run(
        run_copy,
        run_copy.checkpoints()[-1],
        "child",
        with_settings(run_copy.read_config(), {"training.steps": 40}),
    )
    assert child.read_identity() not in ("", run_copy.read_identity())
    moved = RunFolder(run_copy.path.rename(run_copy.path.with_name("renamed")))
    for folder in (child, moved):
        result = run("sample", folder.name)
        assert (result.status, result.err) == (0, "")


def test_a_run_whose_file_lost_its_identity_takes_that_of_its_checkpoints(
    run_copy: RunFolder,
) -> None:
    before = run_copy.read_identity()
    path = run_copy.path / "run.toml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if not line.startswith("identity")))
    assert run_copy.read_identity() == ""
    run_copy.write_config(run_copy.read_config(), fingerprint=run_copy.read_corpus_fingerprint())
    assert run_copy.read_identity() == before != ""


def test_devices_and_pipes_among_the_files_of_a_checkpoint(run: Run, run_copy: RunFolder) -> None:
    best, second = best_two(run_copy)
    (best.path / TRAINING_FILE).unlink()
    (best.path / TRAINING_FILE).symlink_to("/dev/zero")
    for path in (second.path / "more", run_copy.path / "trainer.log"):
        path.symlink_to("/dev/zero")
    os.mkfifo(second.path / "pipe")
    config = with_settings(run_copy.read_config(), {"training.steps": 40})
    child = fork_run(run_copy, second, "child", config)
    names = {path.name for path in child.checkpoints()[0].path.iterdir()}
    assert names.isdisjoint({"more", "pipe"})
    assert len(last_words(run_copy)) <= 4096
    assert run("sample", run_copy.name).status == 0
