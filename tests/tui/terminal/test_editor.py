"""The prompt in the person's own editor: what it leaves, and the terminal it has meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyte
import pytest

from megatron_model.util.errors import RequestError
from megatron_tui.terminal import signals as lifeline
from megatron_tui.terminal.editor import LARGEST, edit, editor_command
from megatron_tui.terminal.signals import TerminalSignals
from tests.survival.processes import Terminal, wait_for


class Aside:
    """Stands where the app does: it only steps aside."""

    def __init__(self) -> None:
        self.aside = 0

    @contextlib.contextmanager
    def suspend(self) -> Iterator[None]:
        """As Textual's: what is raised meanwhile leaves the screen as it is."""
        self.aside += 1
        yield
        self.aside -= 1


Script = Callable[[str], Path]


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Make a program of some lines of shell the editor."""
    monkeypatch.delenv("VISUAL", raising=False)

    def make(lines: str) -> Path:
        path = tmp_path / "an editor"
        path.write_text(f"#!/bin/sh\n{lines}\n")
        path.chmod(0o755)
        monkeypatch.setenv("EDITOR", str(path))
        return path

    return make


def edited(text: str) -> str:
    app: Any = Aside()
    try:
        return edit(app, text)
    finally:
        assert app.aside == 0, "the screen came back"


def test_what_the_editor_leaves_is_the_prompt(script: Script) -> None:
    script('cat "$1" "$1" > "$1.new"; echo >> "$1.new"; mv "$1.new" "$1"')
    assert edited("Ünd\n") == "Ünd\nÜnd\n\n"
    assert edited("und") == "undund"


def test_an_editor_comes_with_arguments(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    path = script('printf "%s,%s" "$1" "$2" > "$3"')
    monkeypatch.setenv("VISUAL", f"'{path}' --wait 'two words'")
    assert edited("x") == "--wait,two words"
    monkeypatch.setenv("VISUAL", "  ")
    assert editor_command() == [str(path)], "a program with a blank in its path"
    monkeypatch.setenv("VISUAL", "vi 'unclosed")
    with pytest.raises(RequestError, match="quotation mark is missing in the .* VISUAL"):
        edited("x")


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ("exit 3", "ended with status 3; the prompt stays"),
        ("kill -9 $$", "ended by signal 9; the prompt stays"),
        ('rm "$1"', "left no file behind; the prompt stays"),
        ('rm "$1"; mkdir "$1"', "cannot be read: Is a directory; the prompt stays"),
        (r'printf "ab\377" > "$1"', r"not UTF-8 at byte 2 \(0xff\)"),
        (f'head -c {LARGEST + 1} /dev/zero > "$1"', "more than 10 MiB"),
    ],
)
def test_what_an_editor_does_wrong_is_said(script: Script, lines: str, why: str) -> None:
    script(lines)
    with pytest.raises(RequestError, match=why):
        edited("kept")


def test_an_editor_that_is_not_there_gives_the_screen_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "/dev/null/ed --wait")
    with pytest.raises(RequestError, match="Cannot start /dev/null/ed: Not a directory"):
        edited("kept")
    (tmp_path / "text").write_text("not a program")
    (tmp_path / "text").chmod(0o755)
    monkeypatch.setenv("VISUAL", f"{tmp_path}/text")
    with pytest.raises(RequestError, match="Cannot start .*/text: Exec format error"):
        edited("kept")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(RequestError, match="Cannot write a file for .* in .*gone: No such file"):
        edited("kept")


class Nobody:
    """A trainer that trains nothing."""

    def __init__(self) -> None:
        self.left = False

    def hand_over_or_stop(self) -> None:
        """Take note."""
        self.left = True


def test_a_screen_that_stands_aside_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "STALL_SECONDS", 2.0)
    trainer: Any = Nobody()
    line = TerminalSignals(trainer)
    turns: list[float] = []

    def wait(seconds: float) -> bool:
        turns.append(seconds)
        return len(turns) > 50

    monkeypatch.setattr(line.screen_closed, "wait", wait)
    with line.standing_aside():
        line._watch_screen()
    assert len(turns) > 50
    assert not trainer.left


EDITOR = """\
printf '\\033[2J\\033[1;1HTHE EDITOR HAS THE TERMINAL\\n'
trap 'printf "and ctrl+c" >> "$1"; exit 0' INT
printf ' to be' >> "$1"
echo READY
while :; do sleep 0.05; done
"""


def picture(terminal: Terminal) -> list[str]:
    """Return what is on the terminal now."""
    screen = pyte.Screen(120, 40)
    pyte.ByteStream(screen).feed(terminal.output)
    return list(screen.display)


def settled(terminal: Terminal) -> list[str]:
    """Return what is on the terminal once nothing more comes."""
    before = -1
    while before != len(terminal.output):
        before = len(terminal.output)
        time.sleep(0.5)
    return picture(terminal)


@pytest.mark.slow
def test_the_editor_has_the_terminal_and_ctrl_c_and_gives_them_back(
    runs_dir: Path, script: Script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script(EDITOR)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    terminal = Terminal("-m", "megatron_tui", "--runs-dir", str(runs_dir))
    try:
        terminal.see("preflight")
        terminal.press("\x1bOS")  # F4
        terminal.see("sampling")
        terminal.press("now")
        wait_for(lambda: any("now" in row for row in picture(terminal)), "the prompt")
        before = settled(terminal)
        terminal.output = b""
        terminal.press("\x07")  # ctrl+g
        terminal.see("READY")
        assert "THE EDITOR HAS THE TERMINAL" in picture(terminal)[0]
        terminal.press("\x03")
        wait_for(lambda: any("and ctrl+c" in row for row in picture(terminal)), "the new prompt")
        after = settled(terminal)
        assert [
            row.replace("now to beand ctrl+c", "now                ") for row in after
        ] == before
        terminal.press("!")
        wait_for(lambda: any("and ctrl+c!" in row for row in picture(terminal)), "a key")
        settled(terminal)  # keys that come too close to each other cannot end the program
        terminal.press("\x11")  # ctrl+q
        assert terminal.wait() == 0
    finally:
        terminal.kill()
    log = tmp_path / "state" / "megatron" / "workbench.log"
    assert "EDITOR" not in log.read_text()
