"""Every screen and dialog at every size: nothing is cut off, nothing lies over its neighbour."""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.containers import ScrollableContainer
from textual.content import Content
from textual.events import Key
from textual.geometry import Region
from textual.screen import Screen
from textual.scroll_view import ScrollView
from textual.widget import Widget
from textual.widgets import Button

import megatron_tui
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.app import MegatronApp
from megatron_tui.comparison.screen import ComparisonScreen
from megatron_tui.generation.dialogs import AskCharacter, AskText, HistoryScreen
from megatron_tui.generation.prompt_history import PromptHistory
from megatron_tui.services.preferences import Preferences
from megatron_tui.setup.file_browser import FileBrowser
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.setup.xray import XrayScreen
from megatron_tui.shell.help import HelpScreen
from megatron_tui.shell.too_small import TooSmall
from megatron_tui.training.compare_dialog import CompareScreen
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.training.stop_dialog import StopRun
from megatron_tui.ui.ask_values import AskValues, Question
from megatron_tui.ui.dialogs import Confirm, Leave, Saving
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label
from megatron_tui.ui.path_input import PathInput
from megatron_tui.ui.pick import AskPath, Entry, Pick, RunPick
from megatron_tui.ui.settings_list import SettingsList
from tests.tui.conftest import copy_recorded, make_app, make_workbench, tale, until

__all__ = ["tale"]

SIZES = [(80, 24), (100, 30), (120, 40), (200, 60)]
LONG = "a-run-with-a-very-long-name-of-the-collected-works-2"
WORDS = (
    "It needs a good many words to say what is wrong here, and what could be done about it. " * 3
)


def scrolls(widget: Widget) -> bool:
    return isinstance(widget, (ScrollableContainer, ScrollView)) or widget.is_scrollable


def within_scroll(widget: Widget) -> bool:
    return any(isinstance(node, Widget) and scrolls(node) for node in widget.ancestors[:-2])


def faults(screen: Screen[Any]) -> list[str]:
    """Return what is cut off or lies over something else on a screen."""
    found = []
    for widget in screen.walk_children(Widget):
        if not widget.display or not widget.region or within_scroll(widget):
            continue
        parent = widget.parent
        if isinstance(parent, Widget) and widget.region not in parent.region:
            found.append(f"{widget!r} at {widget.region} is outside {parent!r} at {parent.region}")
        found += over_siblings(widget)
        if isinstance(widget, (Label, KeyHints)):
            found += cut(widget)
    return found + [fault for button in screen.query(Button) for fault in hidden(screen, button)]


def hidden(screen: Screen[Any], button: Button) -> list[str]:
    """Return what of the label of a button cannot be read on the screen as it is drawn."""
    label = Content.from_text(button.label).plain
    if not button.display or any(not node.display for node in button.ancestors_with_self):
        return []
    x, y, width, height = button.region
    rows = screen._compositor.render_strips(screen.size)[y : y + height]
    drawn = " ".join(row.crop(x, x + width).text for row in rows)
    return [] if label in drawn else [f"{label!r} is drawn as {drawn!r}"]


def dialogs_of_the_app() -> set[type[Screen[Any]]]:
    """Return every dialog that the workbench has, found where it is defined."""
    found: set[type[Screen[Any]]] = set()
    for info in pkgutil.walk_packages(megatron_tui.__path__, "megatron_tui."):
        if not info.name.endswith("__main__"):
            for kind in vars(importlib.import_module(info.name)).values():
                if isinstance(kind, type) and issubclass(kind, ModalScreen):
                    found.add(kind)
    return found - {ModalScreen}


def over_siblings(widget: Widget) -> list[str]:
    children = [
        child
        for child in widget.children
        if child.display and child.region and child.styles.position != "absolute"
    ]
    if scrolls(widget) or widget.styles.layers:
        return []
    empty = Region(0, 0, 0, 0)
    return [
        f"{one!r} lies over {other!r}"
        for number, one in enumerate(children)
        for other in children[number + 1 :]
        if one.region.intersection(other.region) != empty and one.region.overlaps(other.region)
    ]


def cut(text: Label | KeyHints) -> list[str]:
    """Return whether words are missing, without three dots that say so."""
    if not text.size or text.styles.text_overflow == "ellipsis":
        return []
    width, height = text.size
    if isinstance(text, KeyHints):
        lines = text.plain.split("\n")
        return [f"{text.plain} in {width}x{height}"] if len(lines) > height else []
    needed = text.get_content_height(text.container_size, text.screen.size, width)
    longest = max((len(line) for line in text.plain.split("\n")), default=0)
    wide = text.styles.text_wrap == "nowrap" and longest > width
    return [f"{text.plain!r} in {width}x{height}"] if needed > height or wide else []


def refuse(_values: object) -> None:
    raise RequestError(WORDS)


def many(count: int) -> list[Entry]:
    return [Entry(f"{n}", f"{LONG}-{n}", WORDS, WORDS) for n in range(count)]


def history() -> PromptHistory:
    found = PromptHistory(Preferences())
    for number in range(30):
        found.add(f"{number} {WORDS}")
    return found


DIALOGS: dict[str, Callable[[], Screen[Any]]] = {
    "confirm": lambda: Confirm(f"Delete {LONG}?", WORDS, yes="Delete", no="Keep", danger=True),
    "leave": lambda: Leave(LONG, 123_456_789),
    "leave-apart": lambda: Leave(LONG, 123_456_789, apart=True),
    "saving": lambda: Saving(LONG),
    "handing-over": lambda: Saving(LONG, leaving=True),
    "stop": lambda: StopRun(LONG, 123_456_789, 123_456_000),
    "ask-text": lambda: AskText("Which text is to be looked at?", WORDS),
    "ask-values": lambda: AskValues(
        "Fork at step 123,456,000", WORDS[:180],
        [Question(f"k{n}", f"setting {n}", "0.1") for n in range(12)], refuse, yes="Start it",
    ),
    "history": lambda: HistoryScreen(history()),
    "pick": lambda: Pick("Which one?", many(3), "1", verb="Take this one"),
    "pick-of-many": lambda: Pick("Which one?", many(60), "1"),
    "ask-path": lambda: AskPath("Save the settings as", f"{LONG}.toml", lambda *_: WORDS),
    "ask-character": lambda: AskCharacter("Which character is to stand here?", "\n abc"),
    "pick-of-none": lambda: RunPick("Begin with the settings of which run?", []),
}  # fmt: skip

ELSEWHERE: set[type[Screen[Any]]] = {
    ComparisonScreen,  # with runs, in tests/tui/runs/test_board.py
    CompareScreen,  # these are opened by keys, below
    FileBrowser,
    HelpScreen,
    XrayScreen,
    TooSmall,  # in front in a terminal that is too small for everything else
}


def test_no_dialog_goes_unseen() -> None:
    seen = {type(make()) for make in DIALOGS.values()} | ELSEWHERE
    assert dialogs_of_the_app() <= seen, "add the new one to DIALOGS"


FROM_SETUP = ["p", "b", "X", "ctrl+s", "ctrl+l", "E", "f", "W", "at", "question_mark"]
FROM_TRAINING = ["F", "c", "question_mark"]


@contextlib.asynccontextmanager
async def workbench(
    runs_dir: Path, corpus: str, size: tuple[int, int]
) -> AsyncIterator[tuple[MegatronApp, Any]]:
    """The app on two recorded runs, Training in front."""
    folder = copy_recorded(runs_dir, LONG)
    copy_recorded(runs_dir, "another")
    app = make_app(make_workbench(runs_dir), run=RunFolder.open(folder.path), corpus=corpus)
    async with app.run_test(size=size) as pilot:
        await until(lambda: app.workbench.torch_loader.state == "ready")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        await pilot.pause()
        yield app, pilot


async def look(app: MegatronApp, pilot: Any, what: str) -> list[str]:
    """Return the faults of the screen in front, once it has come to rest."""
    screen = app.screen
    if isinstance(screen, XrayScreen):
        await until(lambda: not screen.facts.doing)
    await pilot.pause()
    await pilot.pause()
    return [f"{what}: {fault}" for fault in faults(app.screen)]


async def walk(app: MegatronApp, pilot: Any, keys: Sequence[str]) -> list[str]:
    """Open what each key opens, and close it."""
    found = []
    for key in keys:
        beneath = app.screen
        await pilot.press(key)
        await until(lambda beneath=beneath: app.screen is not beneath)  # type: ignore[misc]
        found += await look(app, pilot, key)
        app.screen.dismiss()
        await until(lambda beneath=beneath: app.screen is beneath)  # type: ignore[misc]
    return found


@pytest.mark.parametrize("size", SIZES)
async def test_every_screen_and_what_its_keys_open_fit(
    runs_dir: Path, tale: str, size: tuple[int, int]
) -> None:
    async with workbench(runs_dir, tale, size) as (app, pilot):
        found = await look(app, pilot, "training") + await walk(app, pilot, FROM_TRAINING)
        for panel in "12345":  # hidden and shown again, alone in front
            await pilot.press(panel)
            found += await look(app, pilot, f"training {panel}")
            await pilot.press(panel)
        await pilot.press("f2")
        await until(lambda: isinstance(app.screen, SetupScreen) and app.screen.facts.complete)
        found += await look(app, pilot, "setup") + await walk(app, pilot, FROM_SETUP)
        for key in ("f4", "f5"):
            await pilot.press(key)
            found += await look(app, pilot, key)
        assert not found, "\n".join(found)


@pytest.mark.parametrize("size", SIZES)
async def test_every_dialog_fits_with_long_words(
    runs_dir: Path, tale: str, size: tuple[int, int]
) -> None:
    async with workbench(runs_dir, tale, size) as (app, pilot):
        found = []
        for name, make in DIALOGS.items():
            app.push_screen(make())
            found += await look(app, pilot, name)
            app.screen.dismiss()
            await until(lambda: isinstance(app.screen, TrainingScreen))
        assert not found, "\n".join(found)


async def test_every_setting_has_its_help_whole_or_with_dots(runs_dir: Path, tale: str) -> None:
    async with workbench(runs_dir, tale, (80, 24)) as (app, pilot):
        await pilot.press("f2")
        await until(lambda: isinstance(app.screen, SetupScreen) and app.screen.facts.complete)
        form = app.screen.query_one("#settings")
        about = form.query_one(".about", Label)
        form.query_one("SettingsList").focus()
        found, read = [], set()
        for _ in range(60):
            await pilot.press("down")
            found += cut(about)
            read.add(about.plain)
        assert not found
        assert len(read) > 25
        ranges = [text for text in read if "at least 0 characters" in text]
        assert any("…" in text for text in ranges), "the range stands whole behind a cut help"


async def test_the_keys_of_a_dialog_are_those_it_is_bound_to(runs_dir: Path, tale: str) -> None:
    async with workbench(runs_dir, tale, (80, 24)) as (app, pilot):
        app.set_keymap({"pick.resume": "f9", "pick.take": "ctrl+t"})
        answers: list[object] = []
        app.push_screen(RunPick("Which run?", [Entry("a", "a")]), answers.append)
        await pilot.pause()
        hints = app.screen.query_one(KeyHints).plain
        assert hints == "^t Take its settings   f9 Train it further   esc Cancel"
        await pilot.press("ctrl+t")
        await until(lambda: answers == ["a"])
        app.push_screen(Pick("Which one?", [Entry("a", "a")], verb="Read it so"))
        app.set_keymap({})
        await pilot.pause()
        await until(lambda: app.screen.query_one(KeyHints).plain == "enter Read it so   esc Cancel")


async def test_enter_takes_a_path_though_an_input_has_the_focus(runs_dir: Path, tale: str) -> None:
    taken: list[str] = []

    def take(path: str, again: bool) -> str:
        taken.append(path)
        return "" if again else "It exists."

    async with workbench(runs_dir, tale, (80, 24)) as (app, pilot):
        app.push_screen(AskPath("Save as", "x.toml", take))
        await pilot.pause()
        assert app.screen.query_one(KeyHints).plain == "enter Do it   tab Complete   esc Cancel"
        await pilot.press("enter")
        await until(lambda: "It exists." in app.screen.query_one(".more", Label).plain)
        assert app.screen.query_one(PathInput).value == "x.toml"
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        assert taken == ["x.toml", "x.toml"]


def typed_ahead(app: MegatronApp, *keys: str) -> None:
    """Type faster than anything can be drawn, as a paste or a slow line does."""
    for key in keys:
        app.post_message(Key(key, key if len(key) == 1 else None))


async def test_enter_acts_on_what_was_typed_before_it(runs_dir: Path, tale: str) -> None:
    answers: list[object] = []

    def check(values: object) -> None:
        """Everything can be."""

    async with workbench(runs_dir, tale, (80, 24)) as (app, pilot):
        app.push_screen(Pick("Which one?", many(4), "1"), answers.append)
        await pilot.pause()
        typed_ahead(app, "j", "j", "k", "j", "enter")
        await until(lambda: len(answers) == 1)
        questions = [Question("a", "a", ""), Question("b", "b", "")]
        app.push_screen(AskValues("How?", "", questions, check, yes="Go"), answers.append)
        await pilot.pause()
        typed_ahead(app, "1", "2", "enter")
        await until(lambda: len(answers) == 2)
        app.push_screen(HistoryScreen(history()), answers.append)
        await pilot.pause()
        typed_ahead(app, "1", "7", "enter")
        await until(lambda: len(answers) == 3)
        app.push_screen(AskPath("Save as", "", lambda path, again: ""), answers.append)
        await pilot.pause()
        typed_ahead(app, *"abc", "enter")
        await until(lambda: len(answers) == 4)
    assert answers == ["3", {"a": "12", "b": ""}, f"17 {WORDS}", "abc"]


async def test_a_value_typed_at_once_arrives_whole(runs_dir: Path, tale: str) -> None:
    async with workbench(runs_dir, tale, (80, 24)) as (app, pilot):
        await pilot.press("f2")
        await until(lambda: isinstance(app.screen, SetupScreen) and app.screen.facts.complete)
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await pilot.press("slash")
        typed_ahead(app, *"max", "enter", "1", "0", "5", "enter", "down")
        await until(lambda: screen.draft.text("training.max_seconds") == "105")
        settings = screen.query_one("#settings SettingsList", SettingsList)
        await until(lambda: settings.field.key == "training.patience")
        await pilot.pause()
        assert screen.draft.text("training.max_seconds") == "105"
