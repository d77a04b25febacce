"""What the tests of the Generation screen share: the screen on a real run, and what runs write."""

from __future__ import annotations

import asyncio
import contextlib
import io
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from textual.screen import Screen

from megatron_model.cli.parser import main
from megatron_model.config.fields import RunConfig, SamplingConfig, with_settings
from megatron_model.events.schema import Event
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_tui.app import MegatronApp
from megatron_tui.generation.prompt_area import PromptArea
from megatron_tui.generation.screen import GenerationScreen
from megatron_tui.generation.written_text import RULE
from megatron_tui.services.generation import GenerationStatus
from megatron_tui.services.preferences import Preferences
from megatron_tui.ui.choice import Choice
from megatron_tui.ui.key_bar import KeyBar
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.settings_list import SettingsList
from megatron_tui.ui.stream_view import StreamView
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
        return self.app.screen.query_one(selector, Label).plain

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
        from megatron_model.run.runner import run_training

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


def stream(run: RunFolder, prompt: str, **options: object) -> str:
    """What the best model of a run writes, without any screen."""
    from megatron_model.run.checkpoint import load_model

    best = run.best_checkpoint()
    assert best is not None
    sampling = SamplingConfig(**options)  # type: ignore[arg-type]
    return "".join(load_model(best.path / "model.safetensors").stream(prompt, sampling))


def run_header(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command in the header of a saved text; return what it prints."""
    header, _, _ = path.read_text(encoding="utf-8").partition(RULE + "\n")
    command = next(line for line in header.splitlines() if line.startswith("# again: "))
    # A shell takes the words apart.
    shell = ["bash", "-c", f"printf '%s\\0' {command.removeprefix('# again: ')}"]
    words = subprocess.run(shell, capture_output=True, text=True, check=True).stdout.split("\0")
    assert words[:2] == ["megatron-model", "sample"]
    monkeypatch.setattr("sys.argv", words[:-1])
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main()
    return out.getvalue()
