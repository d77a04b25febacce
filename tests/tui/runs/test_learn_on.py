"""Learning on from the Runs screen: a text is asked for, and a new run begins with the weights."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from megatron_model.events.schema import WeightsTakenOver
from megatron_model.run.folder import RunFolder
from megatron_tui.ui.pick import AskPath
from tests.tui.conftest import make_app, make_workbench, until


@pytest.mark.parametrize("text", ["Sea and sky; ¿when?\n" * 60, "short\n"])
async def test_a_run_begins_with_the_weights_of_the_one_under_the_cursor(
    run_copy: RunFolder, runs_dir: Path, tmp_path: Path, text: str
) -> None:
    more = tmp_path / "more.txt"
    more.write_text(text, encoding="utf-8")
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(120, 40)) as pilot:
        app.switch_mode("runs")
        await pilot.pause()
        await until(lambda: bool(getattr(app.screen, "rows", None)))
        await pilot.press("F")
        await until(lambda: isinstance(app.screen, AskPath))
        app.screen.query_one(Input).value = str(tmp_path / "mor.txt")
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(app.screen, AskPath), "a text that is not there is refused at once"
        app.screen.query_one(Input).value = str(more)
        await pilot.press("enter")
        if text == "short\n":
            await until(lambda: any("6 characters" in n.message for n in app._notifications))
            assert [path.name for path in runs_dir.iterdir()] == [run_copy.name]
            return
        made = RunFolder(runs_dir / f"more-from-{run_copy.name}")
        training = app.workbench.training
        await until(lambda: training.shown is not None and training.shown.name == made.name)
        await until(lambda: training.idle.is_set() and made.state().status == "finished")
        taken = [e for e in made.read_events()[0] if isinstance(e, WeightsTakenOver)]
        assert [event.model for event in taken] == [run_copy.name]
