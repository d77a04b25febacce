"""What the tests of the Generation screen share: the screen on a real run, and what is on it."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from textual.screen import Screen

from megatron_model.config import RunConfig, with_settings
from megatron_model.control import Control
from megatron_model.events import Event
from megatron_model.run_folder import RunFolder
from megatron_tui.app import MegatronApp
from megatron_tui.generation_service import GenerationStatus
from megatron_tui.preferences import Preferences
from megatron_tui.screens.generation import GenerationScreen
from megatron_tui.widgets.choice import Choice
from megatron_tui.widgets.key_bar import KeyBar
from megatron_tui.widgets.panel import Panel, Text
from megatron_tui.widgets.prompt_area import PromptArea
from megatron_tui.widgets.settings_list import SettingsList
from megatron_tui.widgets.stream_view import StreamView
from tests.tui.conftest import make_app, make_workbench, until

WIDE, NARROW = (120, 40), (80, 24)
S = TypeVar("S", bound=Screen[Any])


class Writing:
    """The Generation screen, and what can be read there."""

    def __init__(self, app: MegatronApp, pilot: Any) -> None:
        self.app = app
        self.pilot = pilot

    async def press(self, *keys: str) -> None:
        """Press keys; a word of several letters that is no key is typed."""
        await self.pilot.press(*keys)
        await self.pilot.pause()

    async def type(self, text: str) -> None:
        """Type a text."""
        names = {" ": "space", "\n": "ctrl+j"}
        await self.press(*(names.get(character, character) for character in text))

    @property
    def screen(self) -> GenerationScreen:
        screen = self.app.screen_stack[0]
        assert isinstance(screen, GenerationScreen)
        return screen

    @property
    def status(self) -> GenerationStatus:
        return self.app.workbench.generation.status

    @property
    def text(self) -> str:
        return self.screen.query_one(StreamView).text

    @property
    def prompt(self) -> str:
        return self.screen.query_one(PromptArea).text

    @property
    def key_bar(self) -> str:
        return " ".join(f"{key} {word}" for key, word, _ in self.app.screen.query_one(KeyBar).keys)

    def line(self, selector: str) -> str:
        """What a line of text says."""
        return self.app.screen.query_one(selector, Text).plain

    def panel(self, name: str) -> str:
        """Title and subtitle of a panel."""
        panel = self.app.screen.query_one(f"#{name}", Panel)
        return f"{panel.title} | {panel._subtitle}"

    def value(self, key: str) -> str:
        return self.screen.draft.texts[key]

    def choice(self, name: str) -> str:
        return self.screen.query_one(f"#{name}", Choice).value

    async def set(self, key: str, text: str) -> None:
        """Type a value into the sampling form."""
        settings = self.screen.query_one(SettingsList)
        settings.focus()
        settings.go_to(key)
        await self.press("enter")
        await self.press("home", *["delete"] * 8, *text, "enter")
        assert self.value(key) == text

    async def done(self) -> str:
        """Wait for the text; return it."""
        await until(lambda: not self.screen.busy and self.status.phase == "done")
        self.screen.catch_up()
        await self.pilot.pause()
        return self.text

    async def view(self, kind: type[S]) -> S:
        """Wait for another screen."""
        await until(lambda: isinstance(self.app.screen, kind) and self.app.screen.is_mounted)
        screen = self.app.screen
        assert isinstance(screen, kind)
        return screen


@contextlib.asynccontextmanager
async def writing(
    runs_dir: Path,
    size: tuple[int, int] = WIDE,
    *,
    load_model: Any = None,
    trainer: Any = None,
    preferences: Preferences | None = None,
) -> AsyncIterator[Writing]:
    """The Generation screen on the runs there are, its model loaded."""
    workbench = make_workbench(runs_dir, trainer, load_model)
    if preferences is not None:
        workbench.preferences = preferences
    app = make_app(workbench)
    async with app.run_test(size=size) as pilot:
        await pilot.press("f4")
        await until(lambda: isinstance(app.screen, GenerationScreen) and app.screen.is_mounted)
        shown = Writing(app, pilot)
        await until(lambda: shown.status.phase in ("ready", "idle"))
        shown.screen.catch_up()
        await pilot.pause()
        yield shown


class GatedRun:
    """Stands where `run_training` does, and is it; but each event waits for the test."""

    def __init__(self) -> None:
        self._gate = threading.Semaphore(0)

    def release(self, count: int = 1) -> None:
        """Let so many events happen."""
        self._gate.release(count)

    def __call__(self, folder: RunFolder, control: Control, **options: Any) -> Iterator[Event]:
        from megatron_model.runner import run_training

        for event in run_training(folder, control, **options):
            self._gate.acquire()
            yield event


@contextlib.asynccontextmanager
async def in_training(
    runs_dir: Path, config: RunConfig
) -> AsyncIterator[tuple[Writing, Callable[[Callable[[], bool]], Any]]]:
    """The Generation screen beside a run in training; and how to let it go on until something."""
    trainer = GatedRun()
    app = make_app(make_workbench(runs_dir, trainer))  # type: ignore[arg-type]
    folder = RunFolder.create(runs_dir, "live", with_settings(config, {"training.steps": 5000}))
    async with app.run_test(size=WIDE) as pilot:
        app._train(folder)
        training = app.workbench.training

        async def go_on(condition: Callable[[], bool]) -> None:
            while not condition():
                trainer.release()
                await asyncio.sleep(0.005)

        run = training.training
        assert run is not None
        await go_on(lambda: run.state.step >= 8)
        await pilot.press("f4")
        await until(lambda: isinstance(app.screen, GenerationScreen) and app.screen.is_mounted)
        await pilot.pause()
        yield Writing(app, pilot), go_on
        training.stop()
        await go_on(training.idle.is_set)
