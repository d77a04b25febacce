"""A run on two real processes, by keys: set up, started, commanded, left, found again, stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from textual.pilot import Pilot

from megatron_model.events.schema import CheckpointSaved, RunFinished, RunStarted
from megatron_model.run.folder import RunFolder
from megatron_tui.app import MegatronApp, make_app
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.training.ranks_panel import RanksPanel
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.dialogs import Leave
from megatron_tui.ui.panel import Label
from megatron_tui.ui.pick import Pick
from tests.model.helpers import tiny_config
from tests.survival.processes import ENDLESS, stop
from tests.tui.conftest import until

pytestmark = pytest.mark.slow


WIDE = (120, 40)


@asynccontextmanager
async def workbench(runs_dir: Path, target: str) -> AsyncIterator[tuple[MegatronApp, Pilot[None]]]:
    app = make_app(runs_dir, target)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: app.workbench.torch_loader.state == "ready", 60)
        yield app, pilot


def standing(app: MegatronApp) -> str:
    run = app.workbench.training.shown
    return "" if run is None else run.standing


async def test_two_processes_by_keys(runs_dir: Path, tale: str) -> None:
    folder = RunFolder(runs_dir / "tale-cpu")
    try:
        async with workbench(runs_dir, tale) as (app, pilot):
            await set_up_two(app, pilot)
            await pilot.press("ctrl+r")
            await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
            await until(lambda: standing(app) == "running", 60)
            ranks = app.screen.query_one(RanksPanel)
            await until(lambda: ranks.query_one(Label).plain.count("MiB") == 2, 60)
            await pilot.press("space")
            await until(lambda: standing(app) == "paused")
            await pilot.press("w")
            await until(lambda: folder.latest_checkpoint() is not None)
            await pilot.press("space")
            await until(lambda: standing(app) == "running")
            await pilot.press("q")
            await until(lambda: isinstance(app.screen, Leave))
            await pilot.press("l")
            await until(lambda: app._exit)
        assert folder.is_active()
        async with workbench(runs_dir, folder.name) as (app, pilot):
            await until(lambda: standing(app) == "running")
            await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
            await pilot.press("S", "y")
            await until(lambda: standing(app) == "stopped")
        events = folder.read_events()[0]
        assert [e.devices for e in events if isinstance(e, RunStarted)] == [2]
        finished, saved = events[-1], [e for e in events if isinstance(e, CheckpointSaved)]
        assert isinstance(finished, RunFinished)
        assert saved[-1].step == finished.step
        measured = folder.state().ranks
        assert measured is not None
        assert all(0 < (rank.utilization or 0) <= 1 for rank in measured.ranks)
    finally:
        if folder.path.exists():
            stop(folder)


async def set_up_two(app: MegatronApp, pilot: Pilot[None]) -> None:
    """Choose a tiny run that does not end by itself, and two processes for it."""
    screen = app.screen
    assert isinstance(screen, SetupScreen)
    await until(lambda: screen.facts.complete and screen.plan.device is not None, 60)
    screen.plan.change(screen.draft.with_config(tiny_config(ENDLESS)))
    screen.plan.cores = 2
    await pilot.press("at")
    await until(lambda: isinstance(app.screen, Pick))
    pick = app.screen
    assert isinstance(pick, Pick)
    await until(lambda: pick._entries[-1].value == "2 x cpu")
    await pilot.press("end")
    await until(lambda: pick.entry is not None and pick.entry.value == "2 x cpu")
    await pilot.press("enter")
    await until(lambda: screen.plan.config.training.devices == 2)
