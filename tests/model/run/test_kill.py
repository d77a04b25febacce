"""A trainer that is killed at any moment loses nothing but time."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.config.fields import config_to_toml, with_settings
from megatron_model.run.checkpoint import load_model
from megatron_model.run.folder import MODEL_FILE, RunFolder
from tests.model.helpers import history, tiny_config, train

pytestmark = pytest.mark.slow


KILLS = 20 if os.environ.get("MEGATRON_TORTURE") == "1" else 3


def live_and_die(arguments: list[str], events: int) -> None:
    """Let a trainer print so many events, then kill it."""
    command = [sys.executable, "-m", "megatron_model", "train", *arguments, "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as trainer:
        assert trainer.stdout is not None
        for _ in range(events):
            trainer.stdout.readline()
        trainer.kill()
        assert trainer.wait() == -signal.SIGKILL


def test_killed_again_and_again_a_run_ends_as_if_nothing_had_been(
    runs_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    config = tiny_config(
        {
            "data.corpus": str(corpus),
            "training.optimizer": "muon",
            "training.steps": 20 + 8 * KILLS,
            "training.evaluate_every": 4,
            "training.checkpoint_every": 3,
            "model.dropout": 0.1,
        }
    )
    settings = tmp_path / "settings.toml"
    settings.write_text(config_to_toml(config), encoding="utf-8")
    draw = random.Random(os.urandom(8).hex() if KILLS > 3 else "fixed")
    folder = RunFolder(runs_dir / "tortured")
    for _ in range(KILLS):
        begun = (folder.path / "run.toml").is_file()
        begin = [str(corpus), "--config", str(settings), "--name", folder.name]
        live_and_die(["--resume", folder.name] if begun else begin, draw.randint(4, 30))
        assert not folder.is_active()
        for checkpoint in folder.checkpoints():
            assert load_model(checkpoint.path / MODEL_FILE).step == checkpoint.step
    assert folder.read_config() == config
    train(folder)

    undisturbed = RunFolder.create(runs_dir, "undisturbed", with_settings(config, {}))
    train(undisturbed)
    assert history(folder.read_events()[0]) == history(undisturbed.read_events()[0])
    best, wanted = folder.best_checkpoint(), undisturbed.best_checkpoint()
    assert best is not None
    assert wanted is not None
    assert (best.step, best.val_loss) == (wanted.step, wanted.val_loss)
    assert [c.step for c in folder.checkpoints()] == [c.step for c in undisturbed.checkpoints()]
    assert folder.state().best_val_loss == undisturbed.state().best_val_loss
