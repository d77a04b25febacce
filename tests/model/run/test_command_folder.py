"""Commands through the run's folder: whole, in order, from its own user alone."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.events.schema import CheckpointSaved, Notice, RunFinished, StepCompleted
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import ENDINGS, REQUESTS, Change, Control, is_ending
from megatron_model.run.folder import RunFolder
from megatron_model.run.runner import run_training
from megatron_model.util.errors import RequestError
from tests.model.helpers import kinds, train


@pytest.fixture
def folder(tmp_path: Path) -> CommandFolder:
    return CommandFolder(tmp_path)


def put(folder: CommandFolder, text: str, name: str = "0.json") -> Path:
    folder.path.mkdir(mode=0o700, exist_ok=True)
    path = folder.path / name
    path.write_text(text)
    return path


def test_commands_arrive_in_order_and_once(folder: CommandFolder) -> None:
    assert folder.take() == ([], [])
    change = Change("training.learning_rate", 0.5)
    for command in ("pause", change, "stop"):
        folder.send(command)  # type: ignore[arg-type]
    assert folder.take() == (["pause", change, "stop"], [])
    assert folder.take() == ([], [])
    assert list(folder.path.iterdir()) == []


def test_files_are_the_users_own(folder: CommandFolder) -> None:
    folder.send("save")
    (path,) = folder.path.iterdir()
    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert json.loads(path.read_bytes())["uid"] == os.geteuid()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"command":"explode","time":0,"uid":0}',
        '{"command":"stop"}',
        "\x1b[31m" * 100,
        '{"command":' * 3000,
        "x" * 10_000,
    ],
    ids=lambda text: ascii(text)[:20],
)
def test_what_is_no_command_is_refused_in_one_line_and_removed(
    folder: CommandFolder, text: str
) -> None:
    put(folder, text)
    commands, refusals = folder.take()
    assert commands == []
    assert len(refusals) == 1
    assert "\n" not in refusals[0]
    assert "\x1b" not in refusals[0]
    assert list(folder.path.iterdir()) == []


def test_another_users_command_is_refused(folder: CommandFolder) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can make a file of another user")
    folder.send("stop")
    (path,) = folder.path.iterdir()
    os.chown(path, 12345, -1)
    commands, refusals = folder.take()
    assert commands == []
    assert "another user (number 12345)" in refusals[0]


def test_what_is_no_file_is_neither_followed_nor_waited_for(
    folder: CommandFolder, tmp_path: Path
) -> None:
    outside = tmp_path / "outside.json"
    outside.write_text(f'{{"command":"stop","time":0,"uid":{os.geteuid()}}}')
    folder.path.mkdir(mode=0o700)
    (folder.path / "1.json").symlink_to(outside)
    os.mkfifo(folder.path / "2.json")
    (folder.path / "3.json").mkdir()
    commands, refusals = folder.take()
    assert commands == []
    assert len(refusals) == 3
    assert outside.exists()
    assert folder.take() == ([], [])  # the folder that cannot be deleted is reported once


def test_a_folder_that_leads_elsewhere_is_not_used(folder: CommandFolder, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "0.json").write_text("{}")
    folder.path.symlink_to(elsewhere)
    assert folder.take() == ([], [])
    with pytest.raises(RequestError, match="Cannot command the run"):
        folder.send("stop")
    assert [path.name for path in elsewhere.iterdir()] == ["0.json"]


def test_a_trainer_obeys_another_process(run_copy: RunFolder) -> None:
    from megatron_model.config.fields import with_settings

    config = with_settings(run_copy.read_config(), {"training.steps": 10_000_000})
    seen = []
    for event in run_training(run_copy, Control(), config=config):
        seen.append(event)
        if isinstance(event, StepCompleted) and event.step == 20:
            put(CommandFolder(run_copy.path), "nonsense", "00.json")
            for word in ("save", "stop"):
                command = [sys.executable, "-m", "megatron_model", "tell", str(run_copy.path), word]
                subprocess.run(command, check=True)
    assert any("was refused" in e.text for e in seen if isinstance(e, Notice))
    saved = [event.step for event in seen if isinstance(event, CheckpointSaved)]
    finished = seen[-1]
    assert isinstance(finished, RunFinished)
    assert finished.reason == "stopped"
    assert saved[-1] == finished.step < 10_000_000


def test_what_was_meant_for_a_trainer_that_is_gone_is_dropped(run_copy: RunFolder) -> None:
    from megatron_model.config.fields import with_settings

    CommandFolder(run_copy.path).send("stop")
    config = with_settings(run_copy.read_config(), {"training.steps": 20})
    events = list(run_training(run_copy, Control(), config=config))
    assert kinds(events).count("StepCompleted") == 2
    assert train(run_copy)[-1].step == 20  # type: ignore[comparison-overlap]


def test_a_run_without_a_trainer_is_not_told_anything(run_copy: RunFolder) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megatron_model", "tell", str(run_copy.path), "stop"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No process trains" in done.stderr


def test_every_command_survives_the_folder(folder: CommandFolder) -> None:
    """Also those that no person sends: a process that takes a run over asks for a hand-over."""
    commands = [*dict.fromkeys([*REQUESTS, *ENDINGS]), Change("training.steps", 20)]
    for command in commands:
        folder.send(command)
    assert folder.take() == (commands, [])
    assert [command for command in commands if is_ending(command)] == list(ENDINGS)


def test_a_trainer_from_before_understands_that_another_takes_over(tmp_path: Path) -> None:
    commands = CommandFolder(tmp_path)
    commands.send("hand_over")
    (file,) = commands.path.glob("*.json")
    assert json.loads(file.read_text())["command"] == "release"
    assert commands.take() == (["hand_over"], [])
