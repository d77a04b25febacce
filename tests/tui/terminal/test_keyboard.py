"""Keys as fast as a line can bring them: none is lost, and a heap of them does no harm."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key

from megatron_model.config.fields import RunConfig
from megatron_tui.app import PASTED, MegatronApp
from megatron_tui.generation.prompt_area import PromptArea
from megatron_tui.messages import RunRequested
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.textual_patches.chunks import HAND_SECONDS, MarkingParser, chunk_of
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.training.stop_dialog import StopRun
from megatron_tui.ui.ask_values import AskValues, Question
from megatron_tui.ui.dialogs import Confirm, Leave
from megatron_tui.ui.pick import AskPath
from tests.tui.conftest import (
    GatedTrainer,
    Successor,
    copy_recorded,
    make_app,
    make_workbench,
    recorded_events,
    tale,
    until,
)

__all__ = ["tale"]

SIZE = (80, 24)
DOWN, CLEAR, TAB, ENTER = "\x1b[B", "\x15", "\t", "\r"


class Connection:
    """What a terminal sends: every chunk as the driver reads it, the next one a second later."""

    def __init__(self, app: MegatronApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self._app = app
        self._now = 0.0
        monkeypatch.setattr(MarkingParser, "now", staticmethod(lambda: self._now))
        self._parser = MarkingParser()

    def send(self, *chunks: str, apart: float = 1.0) -> None:
        """Send chunks, so many seconds apart; nobody waits for what becomes of them."""
        for chunk in chunks:
            self._now += apart
            for message in self._parser.feed(chunk):
                self._app.post_message(message)


def allow(_values: object) -> None:
    """Everything can be."""


def ask() -> AskValues:
    questions = [Question("rate", "rate", "0.1"), Question("steps", "steps", "1000")]
    return AskValues("How?", "", questions, allow, yes="Go")


# No key is lost


@pytest.mark.parametrize(
    ("chunk", "values"),
    [
        (DOWN + CLEAR + "250" + ENTER, {"rate": "0.1", "steps": "250"}),
        (TAB + CLEAR + "250" + ENTER, {"rate": "0.1", "steps": "250"}),
        (DOWN + "250" + ENTER, {"rate": "0.1", "steps": "250"}),  # typed over what is selected
        (DOWN + DOWN + CLEAR + "7" + ENTER, {"rate": "7", "steps": "1000"}),
        (CLEAR + "3" + DOWN + CLEAR + "250" + ENTER, {"rate": "3", "steps": "250"}),
        ("\x1b[A" + CLEAR + "9" + TAB + CLEAR + "8" + ENTER, {"rate": "8", "steps": "9"}),
    ],
)
async def test_a_field_takes_what_is_typed_right_after_going_to_it(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch, chunk: str, values: dict[str, str]
) -> None:
    answers: list[object] = []
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=SIZE) as pilot:
        app.push_screen(ask(), answers.append)
        await pilot.pause()
        Connection(app, monkeypatch).send(chunk)
        await until(lambda: bool(answers))
    assert answers == [values]


async def test_a_dialog_takes_what_was_typed_before_it_was_there(
    runs_dir: Path, tale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=SIZE) as pilot:
        await pilot.pause()
        line = Connection(app, monkeypatch)
        line.send("\x13" + CLEAR + "my.toml")  # ctrl+s: save the settings as
        await at_rest(app)
        assert app.screen.query_one("#asked").value == "my.toml"  # type: ignore[attr-defined]
        line.send(ENTER)
        await until(lambda: Path("my.toml").exists())
        # To a field, and to another screen whose prompt is made only then.
        line.send("R" + CLEAR + "quick" + "\x1bOS" + "To be", "\x1bOQ")
        await at_rest(app)
        assert app.screen.query_one("#name").value == "quick"  # type: ignore[attr-defined]
        line.send("\x1bOS")
        await until(lambda: bool(app.screen.query(PromptArea)))
        assert app.screen.query_one(PromptArea).text == "To be"


async def test_what_is_typed_over_the_first_frame_waits_for_the_screen(
    runs_dir: Path, tale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale, frames_first=True)
    async with app.run_test(size=SIZE):
        Connection(app, monkeypatch).send("R" + CLEAR + "a" * 300 + DOWN)
        await until(lambda: isinstance(app.screen, SetupScreen))
        await until(lambda: bool(app.screen.query("#name")))
        await until(lambda: app.screen.query_one("#name").value == "a" * 300)  # type: ignore[attr-defined]


# A burst does nothing that cannot be taken back


@pytest.fixture
def trainer() -> Iterator[GatedTrainer]:
    """A trainer in the middle of a run; it is let go at the end."""
    gated = GatedTrainer(recorded_events())
    yield gated
    gated.release(len(gated.events))


async def in_training(app: MegatronApp, trainer: GatedTrainer, config: RunConfig) -> None:
    app.post_message(RunRequested("long", config))
    trainer.release(20)
    training = app.workbench.training
    await until(lambda: training.training is not None and training.training.state.step > 0)
    await until(lambda: isinstance(app.screen, TrainingScreen))


def warned(app: MegatronApp) -> bool:
    return any(one.message == PASTED for one in app._notifications)


EVERY_KEY = "".join(chr(code) for code in range(33, 127))
PASTES = [
    ("Sally sells\rdata a yard\rat a time\r", 0.0),
    ("Sally sells\rdata a yard\rat a time\r", 0.01),
    ("dS\rs\ry\ra\rqly\rs\rc\r", 0.0),
    ("dS\rs\ry\ra\rqly\rs\rc\r", 0.01),
    ("E3\rE3\rF\rx\r", 0.0),
    (EVERY_KEY + ENTER + EVERY_KEY[::-1] + ENTER, 0.0),
]


@pytest.mark.parametrize(("paste", "apart"), PASTES)
async def test_a_paste_neither_stops_nor_detaches_a_run(
    runs_dir: Path,
    config: RunConfig,
    trainer: GatedTrainer,
    monkeypatch: pytest.MonkeyPatch,
    paste: str,
    apart: float,
) -> None:
    workbench = make_workbench(runs_dir, trainer)
    monkeypatch.setattr(workbench.training, "_start_process", Successor)
    app = make_app(workbench)
    async with app.run_test(size=SIZE) as pilot:
        await in_training(app, trainer, config)
        await pilot.pause()
        # As it is read: all at once, or a key at a time with less than a hand needs between them.
        chunks = [paste] if not apart else list(paste)
        Connection(app, monkeypatch).send(*chunks, apart=apart or 1.0)
        await at_rest(app)
        trainer.release(5)
        run = workbench.training.training
        assert run is not None
        assert not run.stopping
        assert not run.handing_over
        assert app.is_running
        assert not [word for word in trainer.obeyed if word not in ("save", "evaluate", "sample",
                                                                   "pause", "resume")]  # fmt: skip
        assert sorted(path.name for path in runs_dir.iterdir()) == ["long"]


async def at_rest(app: MegatronApp) -> None:
    """Wait until every key was seen through."""
    await until(lambda: not app.message_queue_size and app.keyboard._task is None)


QUESTIONS: list[tuple[Callable[[], Any], Sequence[str]]] = [
    (lambda: Confirm("Delete it?", "", yes="Delete", no="Keep"), ["y", ENTER, "\x1b[D\r"]),
    (lambda: Leave("run", 1), ["l", "s", ENTER, "\x1b[C\r"]),
    (lambda: StopRun("run", 1, 1), ["y", "s", "a", ENTER, "\x1b[C\r"]),
]


async def test_a_question_is_not_answered_by_a_burst_but_by_a_key(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=SIZE) as pilot:
        line = Connection(app, monkeypatch)
        for make, keys in QUESTIONS:
            for key in keys:
                answers: list[object] = []
                dialog = make()
                app.push_screen(dialog, answers.append)
                await pilot.pause()
                line.send("\x1b[C\x1b[C" + key)
                await at_rest(app)
                assert app.screen is dialog, key
                line.send(*key.replace("\r", "|\r").removeprefix("|").split("|"))
                await until(lambda answers=answers: bool(answers))  # type: ignore[misc]


async def test_a_burst_neither_deletes_quits_starts_nor_overwrites(
    runs_dir: Path, tale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_recorded(runs_dir)
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=SIZE) as pilot:
        line = Connection(app, monkeypatch)
        await until(lambda: isinstance(app.screen, SetupScreen) and app.screen.facts.complete)
        line.send("\r\r\r\r\r", "xR", "Rx", "\x12\x12", "q q q", "\x11\x11")
        await at_rest(app)
        await pilot.press("escape")
        assert app.is_running
        assert warned(app)
        assert list(runs_dir.iterdir()) == [folder.path]
        Path("kept.toml").write_text("kept")
        app.screen_stack[0].set_focus(app.screen_stack[0].query_one("#corpora"))
        line.send("\x13" + CLEAR + "kept.toml\r\r\r\r")
        await at_rest(app)
        assert isinstance(app.screen, AskPath)
        line.send("\r\r\r")
        await at_rest(app)
        assert Path("kept.toml").read_text() == "kept"
        line.send("\r")
        await until(lambda: Path("kept.toml").read_text() != "kept")
        line.send("\x1b[15~")
        await until(lambda: isinstance(app.screen, RunsScreen) and bool(app.screen.rows))
        line.send("Dy", "r r")
        await at_rest(app)
        assert folder.path.exists()
        assert app.workbench.training.training is None


async def test_a_key_by_itself_does_what_it_says(
    runs_dir: Path, config: RunConfig, trainer: GatedTrainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench = make_workbench(runs_dir, trainer)
    monkeypatch.setattr(workbench.training, "_start_process", Successor)
    app = make_app(workbench)
    async with app.run_test(size=SIZE):
        await in_training(app, trainer, config)
        line = Connection(app, monkeypatch)
        line.send("xyz", "S")
        await until(lambda: isinstance(app.screen, StopRun))
        line.send("n")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        run = workbench.training.training
        assert run is not None
        line.send("d")
        await until(lambda: run.handing_over)
        assert not warned(app)


def test_a_key_alone_is_told_from_one_that_others_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(MarkingParser, "now", staticmethod(lambda: now[0]))
    parser = MarkingParser()

    def read(data: str, after: float) -> list[Any]:
        now[0] += after
        return [chunk_of(key) for key in parser.feed(data) if isinstance(key, Key)]

    (first,) = read("a", 1.0)
    assert not first.hurried
    (second,) = read("b", HAND_SECONDS / 2)
    assert first.hurried
    assert second.hurried
    assert first.burst == second.burst
    (third,) = read("\x1b[A", HAND_SECONDS * 2)  # three bytes, one key
    assert not third.hurried
    assert third.burst != second.burst
    assert all(chunk.hurried for chunk in read("de", 1.0))
