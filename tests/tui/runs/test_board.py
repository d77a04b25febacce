"""The list of runs as a board: marked together, changed, put aside and compared, by keys."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from textual.content import Content
from textual.drivers.headless_driver import HeadlessDriver
from textual.widgets import Input

from megatron_model.config.fields import with_settings
from megatron_model.run.about import About, read_about, write_about
from megatron_model.run.archive import archive_of
from megatron_model.run.folder import RunFolder, list_runs
from megatron_tui.app import MegatronApp
from megatron_tui.comparison.screen import ComparisonScreen, Legend
from megatron_tui.messages import RunRequested
from megatron_tui.plot.chart import Chart
from megatron_tui.runs.preview import RunPreview
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.runs.table import COLUMNS, FRAME, MARK, cells, column_widths
from megatron_tui.training.compare_dialog import CompareScreen
from megatron_tui.training.other_runs import ancestors
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.ask_values import AskValues
from megatron_tui.ui.dialogs import Confirm
from megatron_tui.ui.panel import Label
from megatron_tui.ui.pick import AskPath
from tests.tui.conftest import NOW, copy_recorded, make_app, make_workbench, until


class Board(NamedTuple):
    app: MegatronApp
    pilot: Any
    screen: RunsScreen
    runs_dir: Path

    @property
    def names(self) -> list[str]:
        return sorted(row.name for row in self.screen.rows)

    @property
    def title(self) -> str:
        return str(self.screen.query_one("#table-panel").border_title)

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def ask(self, key: str, value: str, kind: type[Any] = AskValues) -> None:
        """Press a key, and answer its question."""
        await self.press(key)
        await until(lambda: isinstance(self.app.screen, kind))
        self.app.screen.query_one(Input).value = value
        await self.press("enter")


@contextlib.asynccontextmanager
async def board(
    runs_dir: Path, *names: str, size: tuple[int, int] = (120, 40)
) -> AsyncIterator[Board]:
    """Runs on the recorded one, sorted by their names."""
    for number, name in enumerate(names):
        folder = copy_recorded(runs_dir, name)
        config = with_settings(folder.read_config(), {"training.batch_size": 16 + number})
        folder.write_config(config, fingerprint="")
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=size) as pilot:
        app.switch_mode("runs")
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: len(screen.rows) == len(names) and all(r.known for r in screen.rows))
        await until(lambda: not screen.reader.reading)
        screen.sort_by("run")
        await until(lambda: [row.name for row in screen.table.shown] == sorted(names))
        screen.table.move_cursor(row=0)
        await pilot.pause()
        yield Board(app, pilot, screen, runs_dir)


@pytest.mark.parametrize("width", [80, 100, 119, 120, 121, 160, 200, 300])
def test_the_columns_fit_every_screen(width: int) -> None:
    widths = column_widths(width)
    assert sum(each + 2 for each in widths.values()) <= width - FRAME
    assert (len(widths) == len(COLUMNS)) == (width >= 120)
    if width >= 120:
        assert widths["run"] >= 17


async def test_a_row_says_how_the_run_did(runs_dir: Path) -> None:
    async with board(runs_dir, "one", size=(200, 60)) as shown:
        row = shown.screen.rows[0]
        found = dict(
            zip(
                column_widths(200),
                (str(cell) for cell in cells(row, NOW, column_widths(200))),
                strict=True,
            )
        )
        state = row.folder.state()
        assert found["best"] == f"{state.best_val_loss:.3f}"
        assert found["curve"][0] == "█" and found["curve"][-1] == "▁"
        assert found["step"].startswith("437 of ")
        assert state.started is not None
        assert row.parameters == state.started.parameters
        assert row.size == sum(p.stat().st_size for p in row.folder.path.rglob("*") if p.is_file())
        assert all(found.values()), found


async def test_marked_runs_are_tagged_together(runs_dir: Path) -> None:
    async with board(runs_dir, "a", "b", "c") as shown:
        await shown.press("space", "space")
        assert [row.name for row in shown.screen.acted_on] == ["a", "b"]
        assert shown.title == "runs, 2 marked"
        assert str(shown.screen.table.get_row_at(0)[0]) == f"{MARK}a"
        await shown.ask("t", "good, +paper")
        await until(lambda: read_about(RunFolder(runs_dir / "b")).tags == ("good", "paper"))
        assert read_about(RunFolder(runs_dir / "c")).tags == ()
        await until(lambda: shown.screen.rows[0].about.tags == ("good", "paper"))
        await shown.ask("t", "!")
        await shown.pilot.pause()
        assert isinstance(shown.app.screen, AskValues), "what is no tag is not taken"
        shown.app.screen.query_one(Input).value = "-good"
        await shown.press("enter")
        await until(lambda: read_about(RunFolder(runs_dir / "a")).tags == ("paper",))
        await shown.press("escape")
        await until(lambda: shown.title == "runs")
        assert [row.name for row in shown.screen.acted_on] == ["c"]


async def test_a_note_is_asked_for_where_there_is_no_editor(runs_dir: Path) -> None:
    async with board(runs_dir, "a") as shown:
        await shown.ask("n", "too [bold]wide[/]")
        await until(lambda: read_about(RunFolder(runs_dir / "a")).note == "too [bold]wide[/]")
        facts = shown.screen.query_one("#facts")
        await until(
            lambda: Content.from_markup(str(facts.border_subtitle)).plain == "too [bold]wide[/]"
        )


async def test_a_run_is_renamed(runs_dir: Path) -> None:
    async with board(runs_dir, "a", "b") as shown:
        await shown.ask("R", "b")
        await shown.pilot.pause()
        assert isinstance(shown.app.screen, AskValues), "a name that is taken is refused"
        shown.app.screen.query_one(Input).value = "c"
        await shown.press("enter")
        await until(lambda: shown.names == ["b", "c"])
        assert RunFolder(runs_dir / "c").state().step == 437
        with RunFolder(runs_dir / "b").lock():
            shown.screen.reader.read()
            await until(lambda: any(row.active for row in shown.screen.rows))
            shown.screen.table.move_cursor(row=0)
            await shown.pilot.pause()
            for action in ("rename", "archive", "delete"):
                assert not shown.screen.check_action(action, ()), action


async def test_runs_are_archived_and_come_back(runs_dir: Path) -> None:
    async with board(runs_dir, "a", "b", "c") as shown:
        assert not shown.screen.check_action("undo", ())
        child = RunFolder(runs_dir / "c")
        text = (child.path / "run.toml").read_text()
        told = '[run]\nparent = "a"\nparent_step = 400\n'
        (child.path / "run.toml").write_text(text.replace("[run]\n", told))
        await shown.press("space", "space", "a")
        await until(lambda: shown.names == ["c"])
        assert {folder.name for folder in list_runs(archive_of(runs_dir))} == {"a", "b"}
        assert [other.name for other in ancestors(child)] == ["before: a"]
        await shown.press("u")
        await until(lambda: shown.names == ["a", "b", "c"])
        assert not shown.screen.check_action("undo", ())
        shown.screen.table.move_cursor(row=0)
        await shown.press("a", "v")
        await until(lambda: shown.names == ["a"] and shown.title == "archived runs")
        assert not shown.screen.check_action("resume", ())
        await until(lambda: bool(shown.screen.table.shown))
        await shown.press("a")
        await until(lambda: not shown.screen.rows)
        await until(
            lambda: "No run is archived" in shown.screen.query_one("#empty Label", Label).plain
        )
        await shown.press("escape")
        await until(lambda: shown.names == ["a", "b", "c"])


async def test_marked_runs_are_deleted_after_one_question(runs_dir: Path) -> None:
    async with board(runs_dir, "a", "b", "c") as shown:
        await shown.press("space", "space", "D")
        await until(lambda: isinstance(shown.app.screen, Confirm))
        await shown.press("n")
        await until(lambda: shown.app.screen is shown.screen)
        assert shown.names == ["a", "b", "c"]
        await shown.press("D")
        await until(lambda: isinstance(shown.app.screen, Confirm))
        await shown.press("y")
        await until(lambda: shown.names == ["c"])
        assert [path.name for path in runs_dir.iterdir()] == ["c"]


async def test_marked_runs_are_exported_together(runs_dir: Path, tmp_path: Path) -> None:
    async with board(runs_dir, "a", "b") as shown:
        await shown.press("space", "space")
        await shown.ask("w", str(tmp_path / "both.txt"), AskPath)
        await shown.pilot.pause()
        assert isinstance(shown.app.screen, AskPath), "another ending is refused"
        shown.app.screen.query_one(Input).value = str(tmp_path / "both.md")
        await shown.press("enter")
        await until((tmp_path / "both.md").exists)
        await until(lambda: shown.app.screen is shown.screen)
        await shown.ask("w", str(tmp_path / "both.html"), AskPath)
        await until((tmp_path / "both.html").exists)
        assert "batch_size" in (tmp_path / "both.md").read_text()
        await until(lambda: shown.app.screen is shown.screen)
        await shown.ask("w", str(tmp_path / "both.md"), AskPath)
        await shown.pilot.pause()
        assert isinstance(shown.app.screen, AskPath), "a file is replaced when asked again"


async def test_a_run_is_begun_again_with_its_settings(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[RunRequested] = []
    async with board(runs_dir, "a") as shown:
        monkeypatch.setattr(
            shown.screen,
            "post_message",
            lambda message, post=shown.screen.post_message: (
                asked.append(message) or True
                if isinstance(message, RunRequested)
                else post(message)
            ),
        )
        await shown.press("s")
        await until(lambda: bool(asked))
        assert asked[0].name == "a-again"
        assert asked[0].config == RunFolder(runs_dir / "a").read_config()


async def test_the_run_under_the_cursor_is_previewed(runs_dir: Path) -> None:
    async with board(runs_dir, "a", "b") as shown:
        preview = shown.screen.query_one(RunPreview)
        sample = shown.screen.query_one("#preview-sample")
        last = RunFolder(runs_dir / "a").state().samples[-1]
        await until(lambda: str(sample.border_title) == f"sample at step {last.step:,}")
        assert last.text.split()[0] in preview.query_one(Label).plain
        assert not preview.query_one(Chart).plot.empty
    async with board(runs_dir.with_name("low"), "a", size=(80, 24)) as shown:
        assert not shown.screen.query_one(RunPreview).display


# Compare


async def test_more_runs_than_four_are_laid_over_each_other(runs_dir: Path, tmp_path: Path) -> None:
    names = [f"run-{number:02}" for number in range(31)]
    async with board(runs_dir, *names) as shown:
        await shown.press("c")
        assert shown.app.screen is shown.screen, "one run is not compared with itself"
        await shown.press(*["space"] * len(names), "c")
        await until(lambda: isinstance(shown.app.screen, ComparisonScreen))
        screen = shown.app.screen
        assert isinstance(screen, ComparisonScreen)
        await until(lambda: len(screen.ranked) == len(names))
        chart, table = screen.query_one(Chart), screen.query_one(Legend)
        assert len(chart.plot.curves) == len(names)
        assert "batch size" in [str(column.label) for column in table.columns.values()]
        first = screen.chosen
        await shown.press("j")
        assert screen.chosen is not first
        second = screen.chosen
        limits = [chart.plot.x_limits]
        for by in ("time", "characters", "flops"):
            await shown.press("x")
            assert screen.view.by == by
            limits.append(chart.plot.x_limits)
        assert len(set(limits[:3])) == 3
        assert screen.chosen is second, "the cursor stays on its run"
        await shown.press("x", "plus", "plus", "L")
        assert (screen.view.by, screen.view.kept, screen.view.log_y) == ("step", 0.9, True)
        path = tmp_path / "table.csv"
        await shown.ask("w", str(path), AskPath)
        await until(path.exists)
        assert len(path.read_text().splitlines()) == len(names) + 1
        await until(lambda: shown.app.screen is screen)
        await shown.press("escape")
        await until(lambda: shown.app.screen is shown.screen)


async def test_a_run_on_show_is_compared_with_more_than_four(
    runs_dir: Path, tmp_path: Path
) -> None:
    for number in range(7):
        copy_recorded(runs_dir, f"run-{number}")
    app = make_app(make_workbench(runs_dir), run=RunFolder(runs_dir / "run-0"))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
        await pilot.pause()
        await pilot.press("c")
        await until(lambda: isinstance(app.screen, CompareScreen))
        dialog = app.screen
        assert isinstance(dialog, CompareScreen)
        await until(lambda: len(dialog._folders) == 6)
        for number in range(6):
            await pilot.press("space", "j")
            await until(lambda number=number: len(dialog.marked) == number + 1)  # type: ignore[misc]
        await pilot.press("w")
        await until(lambda: isinstance(app.screen, AskPath))
        app.screen.query_one(Input).value = str(tmp_path / "table.md")
        await pilot.press("enter")
        await until((tmp_path / "table.md").exists)
        await until(lambda: app.screen is dialog)
        await pilot.press("v")
        await until(lambda: isinstance(app.screen, ComparisonScreen))
        await pilot.press("escape")
        await until(lambda: app.screen is dialog)
        await pilot.press("escape")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        screen = app.screen
        assert isinstance(screen, TrainingScreen)
        assert [other.sign for other in screen.others] == list("ABCDEF")


async def test_what_was_said_of_a_run_is_read_when_it_changes(runs_dir: Path) -> None:
    async with board(runs_dir, "a") as shown:
        write_about(RunFolder(runs_dir / "a"), About(tags=("later",)))
        shown.screen.reader.read()
        await until(lambda: shown.screen.rows[0].about.tags == ("later",))


async def test_a_note_is_written_in_the_editor(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "editor.py"
    program.write_text("import sys\nopen(sys.argv[1], 'a').write(' and more\\nof it')\n")
    monkeypatch.setenv("VISUAL", f"{sys.executable} {program}")
    monkeypatch.setattr(HeadlessDriver, "can_suspend", True)
    async with board(runs_dir, "a", "b") as shown:
        write_about(RunFolder(runs_dir / "a"), About(note="first", tags=("kept",)))
        await shown.press("n")
        await until(lambda: read_about(RunFolder(runs_dir / "a")).note != "first")
        assert read_about(RunFolder(runs_dir / "a")) == About("first and more\nof it", ("kept",))
        monkeypatch.setenv("VISUAL", "false")
        await shown.press("n")
        await until(lambda: any("the note stays" in n.message for n in shown.app._notifications))
        assert read_about(RunFolder(runs_dir / "a")).note == "first and more\nof it"
