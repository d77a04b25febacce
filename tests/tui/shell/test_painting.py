"""A screen has the styles of its theme and size, and they are not made more often than needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.geometry import Size

from megatron_tui.runs.screen import RunsScreen
from megatron_tui.setup.screen import SetupScreen
from tests.tui.conftest import make_app, make_workbench, until

WIDE, LOW = Size(120, 40), Size(90, 25)


async def test_each_screen_has_the_classes_of_the_terminal_size(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: isinstance(app.screen, SetupScreen))
        await until(lambda: app.screen.has_class("-wide", "-high"))
        await pilot.resize_terminal(*LOW)
        await until(lambda: app.screen.has_class("-narrow", "-low"))
        assert not app.screen.has_class("-wide", "-high")
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen))
        await until(lambda: app.screen.has_class("-narrow", "-low"))


async def test_coming_back_to_a_screen_looks_up_no_style(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is half of what changing the screen costs; rests on the order of Textual's handlers."""
    app = make_app(make_workbench(runs_dir))
    styled: list[str] = []
    update = RunsScreen.update_node_styles

    def noted(screen: RunsScreen, animate: bool = True) -> None:
        styled.append(screen.MODE)
        update(screen, animate)

    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen))
        await pilot.pause()
        await pilot.press("f2")
        await until(lambda: isinstance(app.screen, SetupScreen))
        monkeypatch.setattr(RunsScreen, "update_node_styles", noted)
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen))
        await pilot.pause()
        assert styled == []
        await pilot.press("f2")
        await until(lambda: isinstance(app.screen, SetupScreen))
        app.theme = "megatron-light"
        await pilot.press("f5")
        await until(lambda: styled == ["runs"])
