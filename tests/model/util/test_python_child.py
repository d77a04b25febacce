"""Python processes of our own: the current folder is never a place to take code from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.run.folder import RunFolder
from megatron_model.run.handover import last_words, start_successor
from megatron_model.training.probe import Probe, Request
from megatron_model.util import search_path
from megatron_model.util.python_child import child_environment, python_command, start_python
from tests.model.helpers import tiny_config

TRAP = "import os; os.close(os.open({mark!r}, os.O_CREAT | os.O_WRONLY))\n"


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder has modules that leave a mark when they are executed; that mark."""
    mark, folder = tmp_path / "executed", tmp_path / "here"
    folder.mkdir()
    for name in ("torch", "json", "runpy", "msgspec", "megatron_model", "sitecustomize"):
        (folder / f"{name}.py").write_text(TRAP.format(mark=str(mark)))
    monkeypatch.chdir(folder)
    return mark


def say_json() -> str:
    child = start_python(
        "json.tool", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, complained = child.communicate(b"[7]")
    assert child.returncode == 0, complained
    return "".join(said.decode().split())


@pytest.mark.parametrize("path", [None, "", ":", f"{os.pathsep}/nowhere"])
def test_the_current_folder_is_no_place_for_modules(
    trapped: Path, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if path is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", path)
    assert say_json() == "[7]"
    assert not trapped.exists()


def test_what_a_child_starts_takes_nothing_from_there_either(
    trapped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As torch does, which starts ``python -c`` to try the processor's instructions out."""
    program = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import json'])"
    (folder := trapped.parent / "path").mkdir()
    (folder / "grandparent.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert start_python("grandparent").wait() == 0
    assert not trapped.exists()


def test_a_package_that_is_not_installed_is_found(tmp_path: Path) -> None:
    """A copy of the package beside the current folder, found through a relative PYTHONPATH."""
    package = tmp_path / "place" / "megatron_model"
    (package / "util").mkdir(parents=True)
    source = Path(sys.modules["megatron_model.util.python_child"].__file__ or "")
    (package / "util" / "python_child.py").write_bytes(source.read_bytes())
    (package / "__init__.py").touch()
    (package / "other.py").write_text("import sys; print('found', *sys.argv[1:])")
    program = (
        "from megatron_model.util.python_child import start_python;"
        "raise SystemExit(start_python('megatron_model.other', 'a', '-b').wait())"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "place"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "found a -b\n"), done.stderr


def test_the_environment_stays_but_for_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", "relative", "/absolute"]))
    found = child_environment({"EXTRA": "1"})
    folders = found["PYTHONPATH"].split(os.pathsep)
    assert folders[-2:] == [os.path.abspath("relative"), "/absolute"]
    assert all(os.path.isabs(folder) for folder in folders)
    assert found["EXTRA"] == "1"
    assert found["PATH"] == os.environ["PATH"]


@pytest.mark.parametrize("package", ["megatron_model", "megatron_tui"])
def test_the_program_itself_takes_no_code_from_the_current_folder(
    tmp_path: Path, package: str
) -> None:
    """``python -m`` looks there first; what Python needs to come as far as us is its own affair."""
    for name in ("torch", "json", "typing", "argparse", "contextlib", "msgspec", "threading"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('executed')")
    done = subprocess.run(
        [sys.executable, "-m", package, "--version"], cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_package_in_the_current_folder_is_found_there(tmp_path: Path) -> None:
    """A checkout that was not installed: its own folder is where all of it comes from."""
    package = tmp_path / "megatron_model"
    (package / "util").mkdir(parents=True)
    (package / "util" / "search_path.py").write_bytes(Path(search_path.__file__).read_bytes())
    (package / "__main__.py").write_text(
        "from megatron_model.util.search_path import leave_out_current_folder\n"
        "leave_out_current_folder(__file__)\n"
        "import beside\n"
    )
    (tmp_path / "beside.py").write_text("print('found')")
    done = subprocess.run(
        [sys.executable, "-m", "megatron_model"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == "found\n", done.stderr


def test_the_command_names_the_module_and_its_arguments() -> None:
    assert python_command("some.module", "-x")[-2:] == ["some.module", "-x"]


@pytest.mark.slow
def test_measuring_takes_no_code_from_the_current_folder(trapped: Path) -> None:
    said = list(Probe(Request(tiny_config(), 40)).run())
    assert any(progress.measured for progress in said), said
    assert not trapped.exists()


@pytest.mark.slow
def test_a_successor_takes_no_code_from_the_current_folder(
    trapped: Path, run_copy: RunFolder
) -> None:
    assert start_successor(run_copy).wait() == 0, last_words(run_copy)
    assert not trapped.exists()
