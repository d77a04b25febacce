"""The workbench without a home, a log or a memory of what was chosen: it opens, and says so."""

from __future__ import annotations

import pwd
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.config.fields import RunConfig
from megatron_model.events.schema import Event, RunFailed
from megatron_model.run.folder import RunFolder
from megatron_model.util import fallback as luxury
from megatron_tui import messages
from megatron_tui.app import make_app
from megatron_tui.services.preferences import Preferences
from megatron_tui.setup.train_command import train_command
from megatron_tui.ui import formatting
from megatron_tui.ui.draft import SetupDraft
from megatron_tui.ui.path_input import complete_path
from tests.model.util.test_user_folders import homeless
from tests.tui.conftest import GatedTrainer, make_workbench, recorded_events, until
from tests.tui.conftest import make_app as make_test_app

__all__ = ["homeless"]


@pytest.mark.parametrize("log", ["under a file", "none"])
def test_without_a_log_what_libraries_write_is_dropped(tmp_path: Path, log: str) -> None:
    (tmp_path / "file").write_text("no folder")
    path = f"Path({str(tmp_path / 'file' / 'a' / 'workbench.log')!r})" if log != "none" else "None"
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from megatron_model.util.fallback import take_missing\n"
        "from megatron_tui.terminal.output import isolate_native_output\n"
        f"isolate_native_output({path}, lambda count, seconds: None)\n"
        "os.write(1, b'CUDA warning\\n'); os.write(2, b'OMP: info\\n')\n"
        "sys.__stderr__.write('drawn\\n')\n"
        "for text in take_missing(set()): sys.__stderr__.write(text + '\\n')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    drawn, *said = done.stderr.splitlines()
    assert drawn == "drawn"
    assert len(said) == (log != "none")
    assert all("workbench.log: Not a directory" in text for text in said)


def test_what_cannot_be_remembered_is_said_once_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    preferences = Preferences(tmp_path / "file" / "preferences.json")
    for theme in ("dark", "light"):
        preferences.set("theme", theme)
        assert preferences.get("theme", "") == theme
    (said,) = luxury.take_missing(set())
    assert "for this session only" in said


def test_half_a_file_of_preferences_is_not_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.model.run.test_runner import no_file_longer_than

    preferences = Preferences(tmp_path / "preferences.json")
    preferences.set("theme", "dark")
    before = (tmp_path / "preferences.json").read_bytes()
    with no_file_longer_than(4):
        preferences.set("theme", "light")
    assert [path.name for path in tmp_path.iterdir()] == ["preferences.json"]
    assert (tmp_path / "preferences.json").read_bytes() == before
    assert len(luxury.take_missing(set())) == 1


async def test_the_workbench_opens_for_a_user_without_a_home(
    homeless: None, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(runs_dir)
    assert app.keys_path is None
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        assert app.current_mode == "setup"
    assert formatting.homely(Path("/a/b")) == "/a/b"
    assert complete_path("~nobody-like-this/") is None
    monkeypatch.delenv("MEGATRON_RUNS_DIR")
    words = train_command(SetupDraft("smoke"), corpus="a.txt", name="a", runs_dir=runs_dir)
    assert words[-2:] == ["--runs-dir", str(runs_dir)]


async def test_what_a_session_does_without_is_said_once(tmp_path: Path, runs_dir: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    app = make_app(runs_dir)
    said: list[str] = []
    app.notify = lambda text, **options: said.append(text)  # type: ignore[method-assign,assignment,misc]
    app.workbench.preferences = Preferences(tmp_path / "file" / "preferences.json")
    async with app.run_test(size=(100, 30)) as pilot:
        await pilot.pause()
        for theme in ("textual-dark", "textual-light"):
            app.theme = theme
            await pilot.press("f3")
            await pilot.press("f2")
    assert len([text for text in said if "for this session only" in text]) == 1


@pytest.mark.usefixtures("homeless")
def test_a_path_is_short_only_with_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError):
        pwd.getpwuid(0)
    monkeypatch.setenv("HOME", "/h")
    assert [formatting.homely(Path(p)) for p in ("/h", "/h/a", "/ha")] == ["~", "~/a", "/ha"]


async def test_a_run_that_cannot_start_beside_another_leaves_no_folder(
    runs_dir: Path, config: RunConfig
) -> None:
    trainer = GatedTrainer(recorded_events())
    workbench = make_workbench(runs_dir, trainer)
    app = make_test_app(workbench)
    async with app.run_test(size=(100, 30), notifications=True):
        app.post_message(messages.RunRequested("first", config))
        await until(lambda: workbench.training.training is not None)
        app.post_message(messages.RunRequested("second", config))
        await until(lambda: any("stop it before another" in n.message for n in app._notifications))
        assert [path.name for path in runs_dir.iterdir()] == ["first"]
        workbench.training.stop()
        trainer.release()
        await until(workbench.training.idle.is_set)


async def test_a_run_that_fails_at_its_first_step_returns_to_setup(
    runs_dir: Path, config: RunConfig
) -> None:
    def fail(folder: RunFolder, control: object) -> Iterator[Event]:
        yield RunFailed(step=0, error="The device is out of memory [/x].")
        shutil.rmtree(folder.path)

    workbench = make_workbench(runs_dir, fail)  # type: ignore[arg-type]
    app = make_test_app(workbench)
    async with app.run_test(size=(100, 30), notifications=True):
        app.post_message(messages.RunRequested("first", config))
        await until(lambda: any("out of memory" in n.message for n in app._notifications))
        await until(lambda: app.current_mode == "setup")
        assert workbench.training.shown is None
