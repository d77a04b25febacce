"""How the Training screen looks in its states, from recorded runs: no clock and no path of ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot
from textual.widgets import Input

from megatron_model.events.schema import (
    CheckpointSaved,
    Evaluated,
    Event,
    SampleGenerated,
    encode_event,
)
from megatron_tui.app import MegatronApp
from megatron_tui.plot.chart import Chart
from megatron_tui.training.compare_dialog import CompareScreen
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.panel import Label
from tests.snapshots.test_snapshots import Compare
from tests.tui.conftest import NOW, copy_recorded, make_app, make_workbench, until
from tests.tui.conftest import _utc as _utc  # the fixture counts here too
from tests.tui.training.helpers import report, started


def troubled(runs: Path, name: str) -> None:
    """Record a run that jumps once and over-fits."""
    folder = copy_recorded(runs, name)
    large = {"characters": 123_456_789, "parameters": 1_234_567_890}
    log: list[Event] = [started(vocabulary_size=97, **large)]
    for i in range(1, 90):
        loss = 1.2 + 2.0 * math.exp(-i / 12) + 0.05 * math.sin(7 * i) - i / 500
        log.append(report(10 * i, loss + (1.4 if i == 40 else 0.0)))
        if i % 8 == 0:
            rising = 1.5 + 2.0 * math.exp(-i / 12) + max(0, i - 48) / 150
            log.append(
                Evaluated(
                    step=10 * i, time=NOW, val_loss=rising, bits_per_character=1.0,
                    elapsed_seconds=float(i),
                )
            )  # fmt: skip
            text = "To be, or not to be, that is the question.\n" * (i // 8 % 4 + 1)
            log.append(SampleGenerated(step=10 * i, time=NOW, prompt="HAMLET:\n", text=text))
    log.append(CheckpointSaved(step=880, time=NOW, path="checkpoints/step-00000400"))
    folder.events_path.write_bytes(b"".join(encode_event(event) for event in log))


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MegatronApp:
    """The app on a run with trouble, one without beside it."""
    monkeypatch.chdir(tmp_path)
    runs = Path("runs")
    copy_recorded(runs, "shakespeare-cpu")
    name = "a-run-with-a-very-long-name-of-the-collected-works-2"
    troubled(runs, name)
    workbench = make_workbench(runs)
    from megatron_model.run.folder import RunFolder

    return make_app(workbench, run=RunFolder.open(runs / name))


def pressed(*keys: str) -> Callable[[Pilot[Any]], Any]:
    async def run_before(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, MegatronApp)
        await until(lambda: app.workbench.torch_loader.state == "ready")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        chart = app.screen.query(Chart).first()
        await until(lambda: "┤" in chart.text or "+" in chart.text)
        if keys == ("C",):
            run = app.workbench.training.shown
            assert run is not None
            run.active = True  # only a living run can be changed
            app.screen.update_run()
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
        screen = app.screen
        if isinstance(screen, CompareScreen):
            await until(lambda: bool(screen._folders))
            await pilot.press("space")
            await until(lambda: "best loss" in screen.query_one(".table", Label).plain)
        for field in screen.query(Input):
            field.cursor_blink = False
        await pilot.pause()

    return run_before


@pytest.mark.parametrize("size", [(80, 24), (100, 30), (120, 40), (200, 60)])
def test_troubled(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    assert snap_compare(app, terminal_size=size, run_before=pressed())


@pytest.mark.parametrize(
    "keys",
    [("n", "n"), ("Y", "L", "x", "h", "]"), ("left", "left", "enter"), ("c",), ("C",), ("F",)],
    ids=["alert", "zoomed-bits-log-time", "film-large", "compare", "change", "fork"],
)
def test_states(snap_compare: Compare, app: MegatronApp, keys: tuple[str, ...]) -> None:
    assert snap_compare(app, terminal_size=(120, 40), run_before=pressed(*keys))


def test_measurements_at_80_columns(snap_compare: Compare, app: MegatronApp) -> None:
    assert snap_compare(app, terminal_size=(80, 24), run_before=pressed("enter", "3"))


def test_ascii(snap_compare: Compare, app: MegatronApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGATRON_ASCII", "1")
    assert snap_compare(app, terminal_size=(80, 24), run_before=pressed("h"))
