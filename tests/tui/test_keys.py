"""Keys: declared once, explained, remapped; and what was chosen is remembered."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_tui.app import MegatronApp
from megatron_tui.app import make_app as make_real_app
from megatron_tui.keys import (
    Declared,
    check_keymap,
    declared_keys,
    place_of,
    read_user_keymap,
    shown,
)
from megatron_tui.services.preferences import Preferences
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.setup.xray import XrayScreen
from megatron_tui.shell.help import HelpScreen
from megatron_tui.terminal.ascii import as_ascii
from megatron_tui.ui.key_bar import KeyBar
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.settings_list import SettingsList
from tests.tui.conftest import copy_recorded, make_app, make_workbench, until

WIDE = (120, 40)


@pytest.fixture(scope="module")
def declared() -> dict[str, Declared]:
    return declared_keys()


def text_of(app: MegatronApp) -> str:
    return "\n".join(text.plain for text in app.screen.query(Label))


# Declared once


def test_every_key_has_an_id_and_says_what_it_does(declared: dict[str, Declared]) -> None:
    assert len(declared) > 80
    assert all(one.tooltip for one in declared.values())
    assert declared["setup.start"].keys == ("ctrl+r", "s")
    assert declared["app.help"].keys == ("question_mark", "f1")


def test_no_key_of_ours_is_one_that_tmux_or_screen_keeps(declared: dict[str, Declared]) -> None:
    kept = {"ctrl+a", "ctrl+b", "ctrl+enter", "shift+enter"}
    assert not [one.id for one in declared.values() if kept & set(one.keys)]


def test_no_two_actions_of_one_class_share_a_key_unless_only_one_is_offered(
    declared: dict[str, Declared],
) -> None:
    for prefix in ("setup.", "settings.", "text.", "xray.", "help."):
        keys = [key for one in declared.values() if one.id.startswith(prefix) for key in one.keys]
        assert len(keys) == len(set(keys)), prefix


def test_the_table_for_the_readme_is_made_of_the_bindings() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "megatron_tui.keys", "--markdown"],
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith("| where | key |")
    assert "| Setup | `ctrl+r` `s` | Start the run | `setup.start` |" in lines
    assert len(lines) == len(declared_keys()) + 2


def test_keys_are_shown_as_people_write_them() -> None:
    assert [shown(key) for key in ("question_mark", "f2", "ctrl+r", "left", "slash")] == [
        "?", "F2", "ctrl+r", "←", "/",
    ]  # fmt: skip
    assert place_of("setup.start") == "Setup"
    assert place_of("something_new.go") == "Something new"


# keys.toml


def check(declared: dict[str, Declared], **wanted: object) -> tuple[dict[str, str], str]:
    keymap = check_keymap({k.replace("__", "."): v for k, v in wanted.items()}, declared)
    return keymap.keys, " ".join(keymap.problems)


def test_keys_can_be_changed(declared: dict[str, Declared]) -> None:
    keys, problems = check(declared, setup__start="ctrl+g", setup__xray=["x", "f9"])
    assert keys == {"setup.start": "ctrl+g", "setup.xray": "x,f9"}
    assert problems == ""


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        ({"setup__strat": "ctrl+g"}, 'no action "setup.strat". Did you mean "setup.start"'),
        ({"setup__start": "Ctrl+G"}, '"Ctrl+G" of "setup.start" is no key. Did you mean "ctrl+g"'),
        ({"setup__start": "notakey"}, "is no key"),
        ({"setup__start": "ctrl+"}, "is no key"),
        ({"setup__start": 3}, "must be text"),
        ({"setup__start": []}, "must be text"),
        ({"setup__start": "X"}, '"X" of "setup.start" is the key of "setup.xray"'),
        ({"setup__start": "ctrl+p"}, 'is the key of "app.palette"'),
        ({"app__quit": "z"}, "could not be typed any more"),
    ],
)
def test_what_is_wrong_in_keys_toml_is_said(
    declared: dict[str, Declared], wanted: dict[str, object], problem: str
) -> None:
    keys, problems = check(declared, **wanted)
    assert keys == {}
    assert problem in problems


def test_two_actions_may_swap_keys(declared: dict[str, Declared]) -> None:
    keys, problems = check(declared, setup__xray="v", setup__preview="x")
    assert keys == {"setup.xray": "v", "setup.preview": "x"}
    assert problems == ""


@pytest.mark.parametrize(
    "text",
    ['[keys]\n"setup.start" = "f9"\n', '[keys]\nsetup.start = "f9"\n', '[setup]\nstart = ["f9"]\n'],
)
def test_ways_to_write_keys_toml(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    assert read_user_keymap(path).keys == {"setup.start": "f9"}


def test_a_damaged_keys_toml_is_a_notice(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    assert read_user_keymap(path).problems == []
    path.write_text("setup.start = \n")
    assert "not valid TOML" in read_user_keymap(path).problems[0]
    path.write_bytes(b"\xff\xfe")
    assert read_user_keymap(path).problems


async def test_remapped_keys_act_and_the_footer_and_help_follow(
    runs_dir: Path, tale: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(
        '[keys]\n"setup.xray" = "f9"\n"setup.find" = "notakey"\n"settings.edit" = "i"\n'
    )
    app = make_app(make_workbench(runs_dir), corpus=tale)
    app.keys_path = keys
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete)
        await until(lambda: "f9 X-ray" in " ".join(f"{k} {w}" for k, w, _ in bar(app)).lower()
                    or "f9" in str(bar(app)).lower())  # fmt: skip
        assert any("notakey" in notice.message for notice in app._notifications)
        await pilot.press("X")
        assert isinstance(app.screen, SetupScreen)
        await pilot.press("f9")
        await until(lambda: isinstance(app.screen, XrayScreen))
        await pilot.press("escape", "slash", *"layers", "enter", "i", "7", "enter")
        await until(lambda: screen.draft.text("model.layers") in ("7", "47"))
        await pilot.press("f1")
        await until(lambda: isinstance(app.screen, HelpScreen))
        assert "f9" in text_of(app).lower()


def bar(app: MegatronApp) -> tuple[tuple[str, str, bool], ...]:
    return app.screen.query_one(KeyBar).keys


# Help


async def test_help_explains_the_panel_with_the_focus(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("question_mark")
        await until(lambda: "The text to learn from" in text_of(app))
        await pilot.press("escape", "slash", "enter", "question_mark")
        await until(lambda: "Every setting of a run" in text_of(app))
        assert "Put the preset's value back" in text_of(app)
        await pilot.press("j", "k", "space", "escape")
        await until(lambda: isinstance(app.screen, SetupScreen))


async def test_every_panel_of_setup_explains_itself(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE):
        assert all(panel.EXPLANATION for panel in app.screen.query(Panel))


async def test_the_footer_names_the_key_that_acts_here(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: ("b", "Browse", False) in bar(app))
        app.screen.query_one("#path").focus()
        # In a text field b is a letter.
        await until(lambda: ("^o", "Browse", False) in bar(app))
        await pilot.press("escape")


async def test_the_palette_offers_what_the_keys_do(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE):
        screen = app.screen
        commands = {command.title: command.help for command in app.get_system_commands(screen)}
        assert commands["Look through the corpus"] == "key: X"
        assert "Change theme" in commands


# Preferences


def test_preferences_are_kept_and_have_types(tmp_path: Path) -> None:
    path = tmp_path / "state" / "preferences.json"
    first = Preferences(path)
    first.set("theme", "megatron-light")
    first.set("smoothing", 3)
    first.set("hidden", ["log"])
    again = Preferences(path)
    assert again.get("theme", "") == "megatron-light"
    assert again.get("smoothing", 0) == 3
    assert again.get("smoothing", 0.5) == 3.0
    assert again.get("hidden", list[str]()) == ["log"]
    assert again.get("theme", 0) == 0
    assert again.get("smoothing", False) is False
    assert again.problem == ""


def test_two_workbenches_do_not_undo_each_others_choices(tmp_path: Path) -> None:
    path = tmp_path / "preferences.json"
    one, other = Preferences(path), Preferences(path)
    one.set("a", 1)
    other.set("b", 2)
    assert json.loads(path.read_text()) == {"a": 1, "b": 2}


@pytest.mark.parametrize("damage", [b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000])
def test_damaged_preferences_are_a_notice(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "preferences.json"
    path.write_bytes(damage)
    preferences = Preferences(path)
    assert "damaged" in preferences.problem
    assert preferences.get("theme", "x") == "x"
    preferences.set("theme", "y")
    assert Preferences(path).get("theme", "x") == "y"


def test_preferences_without_a_place_are_of_the_session(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    preferences = Preferences(tmp_path / "file" / "preferences.json")
    preferences.set("theme", "y")
    assert preferences.get("theme", "x") == "y"


async def test_theme_is_remembered(runs_dir: Path) -> None:
    workbench = make_workbench(runs_dir)
    app = make_app(workbench)
    async with app.run_test(size=WIDE) as pilot:
        app.theme = "megatron-light"
        await pilot.pause()
    assert make_app(workbench).theme == "megatron-light"
    workbench.preferences.set("theme", "gone")
    assert make_app(workbench).theme == "megatron"


# The first frame


async def test_keys_typed_before_the_screen_is_made_reach_it(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale, frames_first=True)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: isinstance(app.screen, SetupScreen))
        await pilot.press("slash", *"ff dim".replace(" ", "_").split("_")[0], "enter")
        assert app.screen.query_one(SettingsList).field.key == "model.ff_dim"


def test_keys_typed_ahead_are_handed_on(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir), frames_first=True)
    assert app.DEFAULT_MODE == "first"
    assert make_real_app(runs_dir).DEFAULT_MODE == "setup"


async def test_a_run_that_is_opened_comes_after_the_first_frame(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    app = make_app(make_workbench(runs_dir), run=folder, frames_first=True)
    async with app.run_test(size=WIDE):
        await until(lambda: app.current_mode == "training")


# Terminals without box drawing


def test_ascii_keeps_every_cell_in_its_place() -> None:
    assert as_ascii("╭─ corpus ─╮ ◂ cpu ▸ ✗ …") == "+- corpus -+ < cpu > x ~"
    assert as_ascii("日本é") == "?????"


async def test_ascii_terminals_get_ascii_only(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    app.draw_in_ascii()
    async with app.run_test(size=(80, 24)) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete)
        await pilot.pause()
        drawn = "\n".join(strip.text for strip in screen._compositor.render_strips(app.size))
        assert drawn.isascii()
        assert "+- corpus --" in drawn
        assert "< " in drawn
