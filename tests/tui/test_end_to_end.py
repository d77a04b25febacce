"""From a key press to a trained model that writes, with nothing in place of anything."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from megatron_model.run.folder import RunFolder
from megatron_tui.app import make_app
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.ui.settings_list import SettingsList
from megatron_tui.ui.stream_view import StreamView
from tests.tui.conftest import until


@pytest.mark.timeout(900)
async def test_train_and_write(runs_dir: Path, tale: str) -> None:
    app = make_app(runs_dir, tale)
    async with app.run_test(size=(120, 40)) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete, 60)
        await until(lambda: app.workbench.torch_loader.state == "ready", 60)
        await pilot.press("enter", "left")  # from the preset cpu to smoke
        await until(lambda: screen.draft.preset == "smoke")
        settings = screen.query_one(SettingsList)
        settings.focus()
        for key, value in (
            ("training.steps", "12"),
            ("training.log_every", "2"),
            ("training.evaluate_every", "6"),
            ("model.block_size", "16"),
        ):
            settings.go_to(key)
            await pilot.press(*value, "enter")
        await until(lambda: screen.plan.checked.config.training.steps == 12)
        await until(lambda: screen.plan.checked.config.model.block_size == 16)
        await pilot.press("ctrl+r")
        training = app.workbench.training
        await until(lambda: training.shown is not None)  # it may be over before the next look
        # Its thread steps back behind whatever else this machine does: that may take minutes.
        await until(lambda: training.training is None, 600)
        run = training.shown
        assert run is not None
        assert run.problem is None
        assert run.standing == "finished"
        folder = RunFolder.open(runs_dir / "tale-smoke")
        assert folder.state().step == run.state.step == 12
        assert len(run.state.train_loss) == 6
        assert run.state.best_val_loss is not None

        # The Generation screen is preset to the run; its model writes.
        await pilot.press("f4")
        await until(lambda: app.workbench.generation.status.phase == "ready", 60)
        await pilot.press("t", "h", "e", "enter")
        await until(lambda: app.workbench.generation.status.phase == "done", 60)
        await until(lambda: len(app.screen.query_one(StreamView).text) == 503)
        assert app.screen.query_one(StreamView).text.startswith("the")

        await pilot.press("f5")
        runs = app.screen
        assert isinstance(runs, RunsScreen)
        await until(lambda: [row.standing for row in runs.rows] == ["finished"])
    assert "torch" in sys.modules
