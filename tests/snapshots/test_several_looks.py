"""How runs on several devices look, before they start and while they train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from megatron_tui.app import MegatronApp
from megatron_tui.plot.chart import Chart
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.training.ranks_panel import RanksPanel
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.panel import Label
from tests.snapshots.test_snapshots import Compare
from tests.tui.conftest import _utc as _utc  # the fixture counts here too
from tests.tui.conftest import make_app, make_workbench, until
from tests.tui.conftest import tale as tale
from tests.tui.several import copy_together

NARROW, USUAL = (80, 24), (120, 40)


def training(*keys: str) -> Callable[[Pilot[Any]], Any]:
    async def run_before(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, MegatronApp)
        await until(lambda: app.workbench.torch_loader.state == "ready")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        chart = app.screen.query(Chart).first()
        await until(lambda: "┤" in chart.text)
        text = app.screen.query_one(RanksPanel).query_one(Label)
        await until(lambda: "%" in text.plain)
        await pilot.press(*keys)
        await pilot.pause()

    return run_before


@pytest.mark.parametrize("size", [NARROW, USUAL])
@pytest.mark.parametrize("count", [2, 8])
def test_devices(
    snap_compare: Compare,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    size: tuple[int, int],
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    app = make_app(make_workbench(runs), run=copy_together(runs, count, cards=count > 2))
    assert snap_compare(app, terminal_size=size, run_before=training())


@pytest.mark.parametrize("size", [NARROW, USUAL])
def test_setup_of_two(snap_compare: Compare, tale: str, size: tuple[int, int]) -> None:
    app = make_app(make_workbench(Path("runs")), corpus=tale)

    async def run_before(pilot: Pilot[Any]) -> None:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete and screen.plan.device is not None)
        await until(lambda: len(screen.query_one("#corpora")._options) == 3)  # type: ignore[attr-defined]
        screen.plan.change(screen.draft.with_values({"training.devices": 2}))
        screen.show_plan()
        await pilot.pause()

    assert snap_compare(app, terminal_size=size, run_before=run_before)
