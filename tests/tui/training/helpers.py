"""What the tests of the Training screen share: a run on show, recorded or live, and its events."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from megatron_model.config.fields import RunConfig
from megatron_model.events.schema import (
    Event,
    MetricsReported,
    PhaseChanged,
    RunStarted,
    encode_event,
)
from megatron_model.run.folder import RunFolder
from megatron_tui.app import MegatronApp
from megatron_tui.plot.chart import Chart
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.shell.header import WorkbenchHeader
from megatron_tui.training.panels import AlertBar, RunProgress
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.key_bar import KeyBar
from megatron_tui.ui.panel import Label, Panel
from tests.tui.conftest import (
    NOW,
    GatedTrainer,
    copy_recorded,
    make_app,
    make_workbench,
    until,
)

WIDE, NARROW = (120, 40), (80, 24)


class Shown:
    """A run on the Training screen, and what can be read there."""

    def __init__(self, app: MegatronApp, pilot: Pilot[Any]) -> None:
        self.app = app
        self.press = pilot.press
        self.resize = pilot.resize_terminal

    @property
    def screen(self) -> TrainingScreen:
        screen = self.app.screen_stack[0]
        assert isinstance(screen, TrainingScreen)
        return screen

    def is_there(self) -> bool:
        return isinstance(self.app.screen, TrainingScreen)

    @property
    def run(self) -> RunHandle:
        run = self.app.workbench.training.shown
        assert run is not None
        return run

    @property
    def loss(self) -> Chart:
        return self.screen.query_one("#loss Chart", Chart)

    @property
    def legend(self) -> str:
        return self.screen.query_one("#loss .legend", Label).plain

    @property
    def colours(self) -> list[str]:
        return [curve.colour for curve in self.loss.plot.curves]

    @property
    def progress(self) -> str:
        return self.screen.query_one(RunProgress).plain

    @property
    def header(self) -> str:
        return self.screen.query_one(WorkbenchHeader).plain

    @property
    def alert(self) -> str:
        bar = self.screen.query_one(AlertBar)
        return bar.plain if bar.display else ""

    def panel(self, name: str) -> Panel:
        return self.screen.query_one(f"#{name}", Panel)

    def tells(self, words: str) -> bool:
        return words in self.progress

    def displays(self, name: str, wanted: bool = True) -> bool:
        return self.panel(name).display == wanted

    def text(self, name: str) -> str:
        return "\n".join(widget.plain for widget in self.panel(name).query(Label))

    @property
    def key_bar(self) -> str:
        return str(self.screen.query_one(KeyBar).keys)


@contextlib.asynccontextmanager
async def recorded(
    runs_dir: Path, size: tuple[int, int] = WIDE, more: tuple[Event, ...] = ()
) -> AsyncIterator[Shown]:
    """The recorded run on show, with `more` behind what was recorded."""
    folder = copy_recorded(runs_dir)
    with folder.events_path.open("ab") as log:
        log.writelines(encode_event(event) for event in more)
    app = make_app(make_workbench(runs_dir), run=folder)
    async with app.run_test(size=size) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen))
        shown = Shown(app, pilot)
        await until(lambda: "┤" in shown.loss.text)
        yield shown


@contextlib.asynccontextmanager
async def live(
    runs_dir: Path, events: list[Event], size: tuple[int, int] = WIDE
) -> AsyncIterator[tuple[Shown, GatedTrainer]]:
    """A run in training, of which nothing has happened yet; it does not end with the events."""
    trainer = GatedTrainer([*events, PhaseChanged(step=events[-1].step, phase="training")])
    app = make_app(make_workbench(runs_dir, trainer))
    async with app.run_test(size=size) as pilot:
        app._train(RunFolder.create(runs_dir, "a", RunConfig()))
        await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
        yield Shown(app, pilot), trainer
        app.workbench.training.stop()
        trainer.release(len(events) + 5)
        await until(app.workbench.training.idle.is_set)


def started(**more: Any) -> RunStarted:
    usual: dict[str, Any] = {
        "step": 0, "time": NOW - 100, "name": "a", "corpus": "tale.txt", "characters": 100_000,
        "vocabulary_size": 65, "parameters": 1000, "steps": 1000, "device": "cpu",
        "batch_size": 4, "block_size": 16, "unigram_entropy": 3.0, "trigram_entropy": 2.1,
        "evaluate_every": 100, "flops_per_character": 6e6, "matrix_rate": 1e11,
    }  # fmt: skip
    return RunStarted(**{**usual, **more})


def report(step: int, loss: float = 2.0, **more: Any) -> MetricsReported:
    usual: dict[str, Any] = {
        "time": NOW - 100 + step / 10, "learning_rate": 1e-3, "gradient_norm": 0.5,
        "tokens_per_second": 6400.0, "elapsed_seconds": step / 10,
    }  # fmt: skip
    return MetricsReported(step=step, train_loss=loss, **{**usual, **more})
