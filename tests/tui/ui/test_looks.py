"""What is on screen can be told apart in 256 colours, in 16, in none, and in ASCII."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.color import Color as RichColor
from rich.color import ColorSystem
from rich.style import Style
from textual.color import Color

from megatron_tui.app import MegatronApp
from megatron_tui.plot.chart import Chart
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.ui import theme
from megatron_tui.ui.theme import Palette
from tests.tui.conftest import copy_recorded, make_app, make_workbench, tale, until

__all__ = ["tale"]

SYSTEMS = {
    "truecolor": ColorSystem.TRUECOLOR,
    "256": ColorSystem.EIGHT_BIT,
    "standard": ColorSystem.STANDARD,
}
LEGIBLE, QUIET, CLEAR = 2.3, 3.9, 7.0
"""Least contrast of any letter, of text that matters less, and of text that matters."""


def shown(colour: str, system: str) -> tuple[int, int, int]:
    """Return what a terminal makes of a colour."""
    triplet = Color.parse(colour).rich_color.downgrade(SYSTEMS[system]).get_truecolor()
    return triplet.red, triplet.green, triplet.blue


def contrast(one: tuple[int, int, int], other: tuple[int, int, int]) -> float:
    """Return the contrast of two colours by the formula of WCAG, from 1 to 21."""

    def luminance(colour: tuple[int, int, int]) -> float:
        parts = [c / 255 for c in colour]
        red, green, blue = (c / 12.92 if c <= 0.04 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    bright, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def palettes() -> Iterator[Any]:
    for system in SYSTEMS:
        for found in theme.themes(system):
            yield pytest.param(system, found, id=f"{system}-{found.name}")


@pytest.mark.parametrize(("system", "found"), palettes())
def test_curves_differ_from_each_other_and_from_the_background(system: str, found: Any) -> None:
    names = ["raw", "train", "validation", "axis", *(f"compare-{n}" for n in range(1, 5))]
    drawn = {name: shown(found.variables[f"chart-{name}"], system) for name in names}
    background = shown(found.background, system)
    for name, colour in drawn.items():
        assert contrast(colour, background) > 1.5, name
    together = ["raw", "train", "validation"]
    others = [f"compare-{n}" for n in range(1, 5)]
    for group in (together, others, ["train", *others[1:3]]):
        assert len({drawn[name] for name in group}) == len(group), group
    assert contrast(shown(found.variables["quiet"], system), background) > QUIET
    assert contrast(shown(found.foreground, system), background) > CLEAR


def test_the_palettes_for_256_colours_are_made_of_them() -> None:
    for palette in (theme.MANY_DARK, theme.MANY_LIGHT):
        assert isinstance(palette, Palette)
        for name in ("primary", "secondary", "accent", "success", "error", "raw"):
            colour = getattr(palette, name)
            wished = tuple(Color.parse(colour).rgb)
            assert shown(colour, "256") == wished, name


def cells(app: MegatronApp) -> list[list[tuple[str, Style]]]:
    """Return every cell of the screen with its style, as it is sent but for the colour depth."""
    rows = []
    for strip in app.screen._compositor.render_strips():
        rows.append([(c, s.style or Style()) for s in strip for c in s.text])
    return rows


def seen(style: Style, system: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return ink and paper of a cell."""

    def of(colour: RichColor | None, default: int) -> tuple[int, ...]:
        if colour is None or colour.is_default:
            return (default,) * 3
        return tuple(colour.downgrade(SYSTEMS[system]).get_truecolor())

    ink, paper = of(style.color, 255), of(style.bgcolor, 0)
    return (paper, ink) if style.reverse else (ink, paper)


def illegible(app: MegatronApp, system: str) -> list[str]:
    """Return the words that are not to be read on the screen in front."""
    found = []
    for y, row in enumerate(cells(app)):
        for alike, group in itertools.groupby(row, lambda cell: seen(cell[1], system)):
            text = "".join(c for c, _ in group).strip()
            if any(c.isalnum() for c in text) and contrast(*alike) < LEGIBLE:  # type: ignore[arg-type]
                found.append(f"{y}: {text} {alike}")
    return found


def app_of(
    monkeypatch: pytest.MonkeyPatch, runs_dir: Path, system: str, name: str, corpus: str
) -> MegatronApp:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", system)
    folder = copy_recorded(runs_dir)
    copy_recorded(runs_dir, "another")
    app = make_app(make_workbench(runs_dir), run=folder, corpus=corpus)
    app.theme = name
    return app


async def opened(app: MegatronApp, pilot: Any) -> None:
    await until(lambda: app.workbench.torch_loader.state == "ready")
    await until(
        lambda: bool(app.screen.query(Chart)) and app.screen.query(Chart).first().text != ""
    )
    await pilot.pause()


@pytest.mark.parametrize("name", theme.NAMES)
@pytest.mark.parametrize("system", SYSTEMS)
async def test_every_screen_can_be_read(
    monkeypatch: pytest.MonkeyPatch, runs_dir: Path, tale: str, system: str, name: str
) -> None:
    app = app_of(monkeypatch, runs_dir, system, name, tale)
    async with app.run_test(size=(100, 30)) as pilot:
        await opened(app, pilot)
        assert app.console.color_system == system
        unreadable = {"training": illegible(app, system)}
        for key in ("f2", "f4", "f5"):
            await pilot.press(key)
            await pilot.pause()
            if isinstance(screen := app.screen, SetupScreen):
                await until(lambda screen=screen: screen.facts.complete)  # type: ignore[misc]
                await pilot.pause()
            unreadable[key] = illegible(app, system)
        assert not any(unreadable.values()), unreadable


@pytest.mark.parametrize("name", theme.NAMES)
@pytest.mark.parametrize("system", ["256", "standard"])
async def test_the_row_under_the_cursor_and_the_focus_stand_out(
    monkeypatch: pytest.MonkeyPatch, runs_dir: Path, tale: str, system: str, name: str
) -> None:
    app = app_of(monkeypatch, runs_dir, system, name, tale)

    def picture(column: slice, row: Callable[[int], bool] = lambda y: True) -> list[Any]:
        drawn = cells(app)
        return [
            [seen(style, system) for _, style in line[column]]
            for y, line in enumerate(drawn)
            if row(y)
        ]

    async with app.run_test(size=(100, 30)) as pilot:
        await opened(app, pilot)
        await pilot.press("f5")
        await until(lambda: "another" in "".join(c for row in cells(app) for c, _ in row))
        await pilot.pause()
        papers = [line[5][1] for line in picture(slice(0, 20), lambda y: 2 < y < 6)]
        assert len(set(papers)) == 2, "a row of the list"
        await pilot.press("f2")
        await pilot.pause()
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        settings = screen.query_one("#settings").region
        # The frame of a panel, at its left edge.
        before = cells(app)[settings.y + 3][settings.x][1]
        screen.query_one("#settings SettingsList").focus()
        await pilot.pause()
        after = cells(app)[settings.y + 3][settings.x][1]
        assert seen(before, system)[0] != seen(after, system)[0], "the frame of the focus"


async def test_without_colours_the_focus_is_a_heavier_frame(
    monkeypatch: pytest.MonkeyPatch, runs_dir: Path, tale: str
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        await until(lambda: isinstance(app.screen, SetupScreen))
        await pilot.pause()
        frames = {}
        for panel in ("corpus", "settings"):
            place = app.screen.query_one(f"#{panel}").region
            frames[panel] = cells(app)[place.y][place.x][0]
        assert frames == {"corpus": "┏", "settings": "╭"}
        for row in cells(app):
            for _, style in row:
                for colour in (style.color, style.bgcolor):
                    if colour is not None and not colour.is_default:
                        assert len(set(colour.get_truecolor())) == 1, "a hue"


async def test_in_ascii_what_is_done_of_a_bar_is_not_what_is_left(
    monkeypatch: pytest.MonkeyPatch, runs_dir: Path
) -> None:
    monkeypatch.setenv("MEGATRON_ASCII", "1")
    app = make_app(make_workbench(runs_dir), run=copy_recorded(runs_dir))
    app.draw_in_ascii()
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(app, pilot)
        lines = ["".join(c for c, _ in row) for row in cells(app)]
        assert any("===---" in line for line in lines)
        assert any("sample at step 400 . validation" in line for line in lines)
