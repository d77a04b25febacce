"""Small words: one of a thing is not several, an axis has round places, paths are not blank."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.planning.preflight import _warnings
from megatron_model.util.text import plural
from megatron_tui.generation.sampling_draft import PRESETS, SamplingDraft
from megatron_tui.generation.screen import GenerationScreen
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.services.preferences import Preferences
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.shell.header import RunSummary
from megatron_tui.ui import formatting
from megatron_tui.ui.key_bar import KeyBar
from megatron_tui.ui.panel import Label
from megatron_tui.ui.pick import Pick
from megatron_tui.ui.settings_list import SettingsList
from tests.tui.conftest import copy_recorded, make_app, make_workbench, tale, until

__all__ = ["tale"]


def test_one_of_a_thing_is_not_several() -> None:
    assert [plural(n, "sequence") for n in (0, 1, 2, 1000)] == [
        "0 sequences", "1 sequence", "2 sequences", "1,000 sequences",
    ]  # fmt: skip
    config = with_settings(RunConfig(), {"training.batch_size": 8})
    assert "1 sequence at a time" in _warnings(config, None, 1)[0]
    assert RunSummary("a", "finished", 1, 0, budget="5s").places()[1] == "finished: 1 step"


@pytest.mark.parametrize(
    ("seconds", "label"),
    [
        (0, "0s"), (0.5, "0.5s"), (40, "40s"), (60, "1m"), (80, "1m20s"), (90, "1.5m"),
        (150, "2.5m"), (400, "6m40s"), (3600, "1h"), (4000, "1h07m"), (5400, "1.5h"),
        (7199.9, "2h"), (86_400, "1d"), (100_000, "1d04h"), (216_000, "2.5d"),
    ],
)  # fmt: skip
def test_a_place_on_the_time_axis_is_one_that_people_say(seconds: float, label: str) -> None:
    assert formatting.clock(seconds) == label


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_folder_of_a_long_name_is_shown_by_its_end(
    runs_dir: Path, size: tuple[int, int]
) -> None:
    name = "a-run-of-" + "the-collected-works-" * 4 + "with-a-long-name"
    copy_recorded(runs_dir, name)
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=size) as pilot:
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen) and bool(app.screen.rows))
        facts = app.screen.query_one("#facts Label", Label)
        await until(lambda: "folder" in facts.plain)
        await pilot.resize_terminal(size[0] + 3, size[1])
        await pilot.pause()
        region = facts.content_region
        rows = [
            strip.crop(region.x, region.right).text.rstrip()
            for strip in app.screen._compositor.render_strips(app.size)[region.y : region.bottom]
        ]
        (folder,) = [row for row in rows if row.startswith("folder")]
        assert folder.endswith("with-a-long-name"), rows
        assert any(row.startswith("corpus   ") and len(row) > 9 for row in rows)


async def test_a_slash_is_no_key_where_it_is_typed(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(160, 40)) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete)

        async def offered(widget: str) -> set[str]:
            screen.set_focus(screen.query_one(widget))
            await pilot.pause()
            await pilot.pause()
            return {word for _, word, _ in screen.query_one(KeyBar).keys}

        assert "Find" in await offered("#corpora")
        assert "Find" not in await offered("#path")
        await pilot.press("slash", "minus", "plus", "underscore", "at", "backslash")
        assert screen.query_one("#path", Input).value == "/-+_@\\"
        assert "Find" not in await offered("#name")
        screen.set_focus(screen.query_one(SettingsList))
        await pilot.press("slash")
        await until(lambda: screen.query_one("#find").has_focus)


@pytest.mark.parametrize("name", PRESETS)
def test_the_preset_in_force_is_known_by_its_values(name: str) -> None:
    draft = SamplingDraft(Preferences())
    assert draft.preset == "balanced"
    draft.put("max_new_tokens", "77")
    draft.put("seed", "5")
    draft.take(PRESETS[name][1])
    assert draft.preset == name
    draft.put("temperature", "0.50" if name == "careful" else draft.texts["temperature"])
    assert draft.preset == name
    draft.put("top_p", "0.37")
    assert draft.preset == ""
    draft.put("top_p", "nonsense")
    assert draft.preset == ""


async def test_the_list_of_presets_marks_the_one_in_force(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("f4")
        await until(lambda: isinstance(app.screen, GenerationScreen))
        screen = app.screen
        assert isinstance(screen, GenerationScreen)
        for values, marked in ((PRESETS["wild"][1], ["wild"]), ({"temperature": "0.33"}, [])):
            screen.draft.take(values)
            screen.action_presets()
            await until(lambda: isinstance(app.screen, Pick))
            await pilot.pause()
            pick = app.screen
            assert isinstance(pick, Pick)
            options = pick.query_one("PickList")
            prompts = [str(option.prompt) for option in options.options]  # type: ignore[attr-defined]
            assert [row.split()[1] for row in prompts if "●" in row] == marked
            pick.dismiss()
            await until(lambda: app.screen is screen)
