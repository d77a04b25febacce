"""How the screens look, from a recorded run: no clock, no path of this machine, no trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from megatron_tui.app import MegatronApp
from megatron_tui.generation.screen import GenerationScreen
from megatron_tui.plot.chart import Chart
from megatron_tui.runs.table import RunsTable
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.ui.stream_view import StreamView
from tests.tui.conftest import _utc as _utc  # the fixture counts here too
from tests.tui.conftest import copy_recorded, make_app, make_workbench, tale, until
from tests.tui.services.test_services import Letters

__all__ = ["tale"]

SIZES = [(80, 24), (120, 40)]
Compare = Callable[..., bool]


@pytest.fixture
def app(tmp_path: Path, tale: str) -> MegatronApp:
    """The app on two recorded runs in the relative folder `runs`."""
    runs = Path("runs")
    copy_recorded(runs, "shakespeare-cpu")
    folder = copy_recorded(runs, "another-run")
    model = Letters()
    model.gate.release(200)
    workbench = make_workbench(runs, load_model=lambda path: model)
    return make_app(workbench, run=folder, corpus=tale)


def mode(*keys: str, ready: Callable[[MegatronApp], bool]) -> Callable[[Pilot[Any]], Any]:
    """Return what to do before the picture: press keys, wait, let everything be drawn."""

    async def run_before(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, MegatronApp)
        await until(lambda: app.workbench.torch_loader.state == "ready")
        await pilot.press(*keys)
        await until(lambda: ready(app))
        await pilot.pause()

    return run_before


def setup_ready(app: MegatronApp) -> bool:
    screen = app.screen
    return isinstance(screen, SetupScreen) and screen.facts.complete


@pytest.mark.parametrize("size", SIZES)
def test_setup(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    assert snap_compare(app, terminal_size=size, run_before=mode("f2", ready=setup_ready))


@pytest.mark.parametrize("size", SIZES)
def test_training(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    drawn = mode("f3", ready=lambda app: "┤" in app.screen.query(Chart).first().text)
    assert snap_compare(app, terminal_size=size, run_before=drawn)


@pytest.mark.parametrize("size", SIZES)
def test_generation(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    async def run_before(pilot: Pilot[Any]) -> None:
        await mode("f4", ready=lambda app: app.workbench.generation.status.phase == "ready")(pilot)
        assert isinstance(pilot.app.screen, GenerationScreen)
        pilot.app.screen.catch_up()
        # The text alone: its speed would differ from run to run.
        pilot.app.screen.query_one(StreamView).restart("First ")
        pilot.app.screen.query_one(StreamView).append("Citizen:\nBefore we proceed any further\n")
        await pilot.press(*"First")
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=run_before)


@pytest.mark.parametrize("size", SIZES)
def test_runs(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    listed = mode("f5", ready=lambda app: app.screen.query_one(RunsTable).row_count == 2)
    assert snap_compare(app, terminal_size=size, run_before=listed)


def test_help(snap_compare: Compare, app: MegatronApp) -> None:
    shown = mode("f3", "question_mark", ready=lambda app: app.screen.is_modal)
    assert snap_compare(app, terminal_size=(80, 24), run_before=shown)


def test_light(snap_compare: Compare, app: MegatronApp) -> None:
    app.theme = "megatron-light"
    drawn = mode("f3", ready=lambda app: "┤" in app.screen.query(Chart).first().text)
    assert snap_compare(app, terminal_size=(120, 40), run_before=drawn)
