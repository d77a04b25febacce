"""A screen is styled and painted whole once when it is opened, and anew when the terminal asks."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.css.stylesheet import Stylesheet, StylesheetParseError
from textual.events import Resize
from textual.geometry import Size

from megatron_tui.screens.runs import RunsScreen
from megatron_tui.screens.setup import SetupScreen
from megatron_tui.sparing import SparingCompositor
from megatron_tui.stylesheet import RememberingStylesheet
from tests.tui.conftest import make_app, make_workbench, until

WIDE, LOW = Size(120, 40), Size(90, 25)


@pytest.fixture
def layouts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Size]]:
    """The screens that were laid out because somebody said a size, and the size."""
    found: list[tuple[str, Size]] = []
    for kind in (SetupScreen, RunsScreen):
        lay_out = kind._screen_resized

        def noted(screen: SetupScreen, size: Size, lay_out=lay_out) -> None:  # type: ignore[no-untyped-def]
            if screen.stack_updates and screen.is_mounted:
                found.append((screen.MODE, size))
            lay_out(screen, size)

        monkeypatch.setattr(kind, "_screen_resized", noted)
    return found


def rules_of(sheet: Stylesheet) -> list[object]:
    return [(rule.selectors, repr(rule.styles.get_rules())) for rule in sheet.rules]


async def test_a_screen_is_made_for_its_size_from_the_beginning(
    runs_dir: Path, layouts: list[tuple[str, Size]]
) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        assert isinstance(app.screen, SetupScreen)
        assert app.screen.has_class("-wide", "-high")
        assert isinstance(app.screen._compositor, SparingCompositor)
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen))
        await pilot.pause()
        assert app.screen.has_class("-wide", "-high")
        assert layouts == []


async def test_what_the_terminal_says_is_obeyed(
    runs_dir: Path, layouts: list[tuple[str, Size]]
) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.pause()
        # There and back too quickly to be seen: the picture may have suffered.
        app.post_message(Resize(WIDE, WIDE))
        await until(lambda: layouts == [("setup", WIDE)])
        await pilot.resize_terminal(*LOW)
        await until(lambda: app.screen.has_class("-narrow", "-low"))
        assert not app.screen.has_class("-wide", "-high")
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen))
        assert app.screen.has_class("-narrow", "-low")


async def test_styles_that_were_parsed_before_are_those_of_textual(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen))
        dark = app.screen.styles.background
        app.theme = "megatron-light"
        await until(lambda: app.screen.styles.background != dark)
        app.theme = "megatron"
        await until(lambda: app.screen.styles.background == dark)
        plain = Stylesheet(variables=app.get_css_variables())
        plain.source = app.stylesheet.source.copy()
        plain.parse()
        assert rules_of(app.stylesheet) == rules_of(plain)


def test_each_set_of_colours_has_rules_of_its_own() -> None:
    def colour(value: str) -> str:
        sheet = RememberingStylesheet(variables={"ink": value})
        sheet.add_source("Label { color: $ink; }", ("a.tcss", ""))
        sheet.reparse()
        return sheet.rules[0].styles.color.hex

    assert [colour("#ff0000"), colour("#00ff00"), colour("#ff0000")] == [
        "#FF0000", "#00FF00", "#FF0000",
    ]  # fmt: skip


def test_a_sheet_with_an_error_leaves_the_rules_that_are_there() -> None:
    sheet = RememberingStylesheet()
    sheet.add_source("Label { color: red; }", ("good.tcss", ""))
    sheet.reparse()
    before = rules_of(sheet)
    sheet.add_source("Label { colour: red; }", ("bad.tcss", ""))
    with pytest.raises(StylesheetParseError):
        sheet.reparse()
    sheet._require_parse = False
    assert rules_of(sheet) == before
