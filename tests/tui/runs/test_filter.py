"""Only the runs that are meant are listed, and what means nothing is said."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

from textual.widgets import Input

from megatron_model.run.about import About, write_about
from megatron_model.run.folder import RunFolder
from megatron_tui.runs.listing import RunRow
from megatron_tui.runs.reader import ORDERS, in_order
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.ui.ask_values import AskValues
from tests.tui.conftest import copy_recorded, make_app, make_workbench, until


def three_runs(runs_dir: Path) -> list[str]:
    """Make three runs that were trained alike; the second has a tag."""
    first = copy_recorded(runs_dir)
    names = [first.name, "with-tag", "other"]
    for name in names[1:]:
        shutil.copytree(first.path, runs_dir / name)
    write_about(RunFolder(runs_dir / "with-tag"), About(tags=("good",)))
    return names


async def test_runs_are_filtered_and_shown_again(runs_dir: Path) -> None:
    names = three_runs(runs_dir)
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(120, 40)) as pilot:
        app.switch_mode("runs")
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: len(screen.rows) == 3 and all(row.known for row in screen.rows))

        async def ask(query: str) -> None:
            await pilot.press("slash")
            await until(lambda: isinstance(app.screen, AskValues))
            app.screen.query_one(Input).value = query
            await pilot.press("enter")

        await ask("tag=good")
        await until(lambda: [row.name for row in screen.rows] == ["with-tag"])
        title = str(screen.query_one("#table-panel").border_title)
        assert title == "runs: 1 of 3, tag=good"
        await ask("step>0 and not name~tag and model.layers>=1")
        await until(lambda: {row.name for row in screen.rows} == {names[0], "other"})
        await ask("val<0")
        await until(lambda: not screen.rows)
        assert screen.has_class("-open"), "it is not said that there are no runs"
        assert screen.check_action("filter", ())
        await ask("vall<1")
        await pilot.pause()
        assert isinstance(app.screen, AskValues), "what means nothing is not taken"
        assert 'no "vall"' in str(app.screen.query_one(".error").render())
        await pilot.press("escape")
        await until(lambda: app.screen is screen)
        await pilot.press("escape")
        await until(lambda: len(screen.rows) == 3)
        assert str(screen.query_one("#table-panel").border_title) == "runs"
        assert not screen.check_action("show_all", ())


async def test_runs_are_sorted_by_column_after_column(runs_dir: Path) -> None:
    three_runs(runs_dir)
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(120, 40)) as pilot:
        app.switch_mode("runs")
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: len(screen.rows) == 3 and all(row.known for row in screen.rows))
        newest = [row.name for row in screen.rows]
        panel = screen.query_one("#table-panel")
        for order in [name for name in ORDERS if name != "newest"]:
            await pilot.press("o")
            await until(lambda order=order: str(panel.border_subtitle) == order)  # type: ignore[misc]
            if order == "run":
                await until(lambda: [row.name for row in screen.rows] == sorted(newest))
                assert [row.name for row in screen.table.shown] == sorted(newest)
                await pilot.press("O")
                await until(lambda: [row.name for row in screen.rows] == sorted(newest)[::-1])
                assert str(panel.border_subtitle) == "run, turned round"
        await pilot.press("o")
        await until(lambda: [row.name for row in screen.rows] == newest)
        assert not panel.border_subtitle


def test_what_has_no_value_comes_last_whichever_way_the_others_are() -> None:
    blank = RunRow.unread(RunFolder(Path("unread")))
    rows = [
        replace(blank, name=name, standing="finished", best_val_loss=loss, size=size)
        for name, loss, size in (("a", 2.0, 5), ("nan", math.nan, None), ("b", 1.0, 7))
    ]
    for order, turned, expected in (
        ("best", False, ["b", "a", "nan"]),
        ("best", True, ["a", "b", "nan"]),
        ("disk", False, ["b", "a", "nan"]),
        ("disk", True, ["a", "b", "nan"]),
        ("newest", False, ["a", "nan", "b"]),
        ("newest", True, ["b", "nan", "a"]),
    ):
        assert [row.name for row in in_order(rows, order, turned=turned)] == expected, order
    for order in ORDERS:
        assert len(in_order([*rows, blank], order, turned=True)) == 4
