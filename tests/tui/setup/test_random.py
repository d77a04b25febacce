"""Thousands of random keys and resizes on the Setup screen: no exception, and it still answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from textual import events

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.run.folder import RunFolder
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.ui.settings_form import SettingsForm
from tests.tui.conftest import GatedTrainer, copy_recorded, make_app, make_workbench, until
from tests.tui.setup.test_features import FakeProbe

EVENTS = 1000
SEEDS = (1, 2)
BURST = 25
"""Keys that come before the screen was drawn again."""
SIZES = ((80, 24), (100, 30), (120, 40), (200, 60), (60, 15), (90, 25))

LETTERS = "pXBR=@!yEbvx/FmcuUDdeLfnMPjkhlgGaeiours0123456789.-_ [/]$é"
SPECIAL = (
    "enter", "escape", "tab", "shift+tab", "up", "down", "left", "right", "home", "end", "space",
    "backspace", "delete", "pageup", "pagedown", "question_mark", "f1", "ctrl+s", "ctrl+o",
    "ctrl+t", "ctrl+l", "ctrl+y", "ctrl+u", "ctrl+d", "ctrl+p",
)  # fmt: skip
"""Everything but what leaves the screen: quitting, starting a run, the other modes."""


def random_key(draw: random.Random) -> events.Key:
    if draw.random() < 0.5:
        key = draw.choice(SPECIAL)
        return events.Key(key, " " if key == "space" else None)
    character = draw.choice(LETTERS)
    named = {"/": "slash", ".": "full_stop", "-": "minus", "_": "underscore", " ": "space",
             "=": "equals_sign", "@": "at", "!": "exclamation_mark"}  # fmt: skip
    return events.Key(named.get(character, character), character)


@pytest.mark.parametrize("seed", SEEDS)
async def test_random_keys_and_resizes(
    runs_dir: Path, tale: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_model.training.probe.Probe", FakeProbe)
    copy_recorded(runs_dir)
    RunFolder.create(runs_dir, "old [x] [", with_settings(RunConfig(), {"data.corpus": tale}))
    Path("[odd] name.txt").write_text("[/nope] text\n" * 40)
    Path("damaged.toml").write_text("[model]\nlayers = 'many'\n")
    draw = random.Random(seed)
    app = make_app(make_workbench(runs_dir, GatedTrainer([])), corpus=tale)
    async with app.run_test(size=(120, 40), notifications=True) as pilot:
        # Nothing may leave: a run would train, and quitting would end the test.
        monkeypatch.setattr(app, "action_quit", lambda: None)
        monkeypatch.setattr(app, "action_mode", lambda mode: None)
        monkeypatch.setattr(SetupScreen, "action_start", lambda screen: None)
        monkeypatch.setattr(app, "_train", lambda folder, **options: None)  # resumed or forked
        for number in range(EVENTS):
            if number % 97 == 96:
                await pilot.resize_terminal(*draw.choice(SIZES))
            app.post_message(random_key(draw))
            if number % BURST == BURST - 1:
                await pilot.pause(0)
        await pilot.resize_terminal(120, 40)
        await until(lambda: app._exception is None)
        for _ in range(12):
            await pilot.press("escape")
        await until(lambda: isinstance(app.screen, SetupScreen))
        # It still answers.
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        screen.query_one("#corpora").focus()
        await pilot.press("slash", "l", "a", "y", "e", "r", "s", "enter")
        settings = screen.query_one(SettingsForm).settings
        await until(lambda: settings.field.key == "model.layers")
    assert app._exception is None
