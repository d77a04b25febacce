"""Completion, as real shells do it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.cli.parser import VERBS
from megatron_model.config.presets import PRESETS
from megatron_model.run.folder import RunFolder
from tests.model.cli.test_cli import Run, run

__all__ = ["run"]  # a fixture

BASH = """
source {script}
compopt() {{ :; }}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
_megatron_model megatron-model "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
HOSTILE = "it is $(touch HACKED)"


@pytest.fixture
def command(tmp_path: Path, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The command by its name on the path, two runs, and the current folder an empty one."""
    folder = tmp_path / "bin"
    folder.mkdir()
    path = folder / "megatron-model"
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m megatron_model "$@"\n')
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    shutil.copytree(run_copy.path, run_copy.path.with_name(HOSTILE))
    here = tmp_path / "here"
    here.mkdir()
    (here / "a text.txt").touch()
    monkeypatch.chdir(here)
    return here


def completed(shell: str, script: Path, words: str) -> set[str]:
    if shell == "bash":
        program = BASH.format(script=script, words=words)
    else:
        line = words.replace("''", "")
        program = f"source {script}; complete -C '{line}'"
    done = subprocess.run([shell, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    return {line.partition("\t")[0] for line in done.stdout.splitlines()}


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_a_shell_completes_what_there_is(run: Run, command: Path, shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    script = command.parent / "completion"
    script.write_text(run("completion", shell).out)
    assert completed(shell, script, "megatron-model ''") == set(VERBS)
    assert completed(shell, script, "megatron-model s") == {v for v in VERBS if v[0] == "s"}
    assert completed(shell, script, "megatron-model runs --s") == {"--sort"}
    assert "model.layers=" in completed(shell, script, "megatron-model train --set model.l")
    presets = completed(shell, script, "megatron-model settings --preset s")
    assert presets == {name for name in PRESETS if name.startswith("s")}
    assert completed(shell, script, "megatron-model show tale") == {"tale-tiny"}
    assert "pause" in completed(shell, script, "megatron-model tell tale-tiny p")
    (hostile,) = completed(shell, script, "megatron-model delete i")
    assert hostile.replace("\\", "") == HOSTILE
    found = completed(shell, script, "megatron-model train --config a")
    assert {name.replace("\\", "") for name in found} == {"a text.txt"}
    assert [path.name for path in command.iterdir()] == ["a text.txt"], "nothing was executed"


def test_bash_knows_values_behind_an_equals_sign_and_other_folders(
    run: Run, command: Path, tmp_path: Path
) -> None:
    script = tmp_path / "completion"
    script.write_text(run("completion", "bash").out)
    presets = completed("bash", script, "megatron-model train --preset = sm")
    assert presets == {"small", "smoke"}
    elsewhere = f"megatron-model show --runs-dir {tmp_path / 'none'} ''"
    assert completed("bash", script, elsewhere) == {""}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_can_read_its_script(run: Run, tmp_path: Path, shell: str) -> None:
    script = tmp_path / "completion"
    printed = run("completion", shell)
    assert (printed.status, printed.err) == (0, "")
    script.write_text(printed.out)
    for verb in VERBS:
        assert verb in printed.out
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    done = subprocess.run([shell, "-n", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
