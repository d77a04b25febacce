"""The parts that the Training screen owns, without a screen: chart view, dialogs, alerts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from textual.message import Message

from megatron_model.events.state import RunState
from megatron_model.run.control import Change, Command
from megatron_model.util.errors import RequestError
from megatron_tui.messages import CommandGiven, ForkRequested
from megatron_tui.services.preferences import Preferences
from megatron_tui.services.process_run import ProcessRun
from megatron_tui.training.alerts import AlertWatch
from megatron_tui.training.chart_control import ChartControl
from megatron_tui.training.run_dialogs import RunDialogs
from megatron_tui.training.stop_dialog import StopRun
from megatron_tui.ui.ask_values import AskValues
from megatron_tui.ui.modal import ModalScreen
from tests.tui.conftest import NO_TENSORS, copy_recorded
from tests.tui.training.helpers import report, started

T = TypeVar("T")


class Person:
    """Answers each dialog in turn, and keeps what was sent then."""

    def __init__(self, *answers: Any) -> None:
        self.answers: list[Any] = list(answers)
        self.dialogs: list[object] = []
        self.sent: list[Message] = []

    def ask(self, dialog: ModalScreen[T], take: Callable[[T], None]) -> None:
        """Answer a dialog."""
        self.dialogs.append(dialog)
        take(self.answers.pop(0))


def dialogs_of(person: Person) -> RunDialogs:
    return RunDialogs(person.ask, person.sent.append)


def test_the_view_is_changed_told_and_remembered() -> None:
    told: list[str] = []
    preferences = Preferences()
    charts = ChartControl(preferences, lambda: told.append("changed"))
    charts.toggle_log_scale()
    charts.next_axis()
    charts.next_metric(-1)
    assert told == ["changed"] * 3
    assert (charts.view.log_y, charts.view.x_axis, charts.metric) == (True, "time", "speed")
    again = ChartControl(preferences, lambda: None)
    assert (again.view, again.metric) == (charts.view, "speed")


def test_places_in_one_run_are_forgotten_in_the_next() -> None:
    state = RunState()
    state.apply_all([started(), *(report(step) for step in range(10, 110, 10))])
    charts = ChartControl(Preferences(), lambda: None)
    charts.put_cursor(state, 40)
    charts.zoom(1)
    charts.move_cursor(state, 10, 1)
    assert charts.view.cursor is not None
    assert charts.view.cursor > 40
    charts.toggle_raw()
    charts.begin()
    assert (charts.view.cursor, charts.view.zoom, charts.view.raw) == (None, 0, False)


@pytest.mark.parametrize(("answer", "sent"), [("stop", ["stop"]), ("abort", ["abort"]), ("", [])])
def test_a_run_ends_as_it_was_answered(runs_dir: Path, answer: str, sent: list[Command]) -> None:
    person = Person(answer)
    dialogs_of(person).stop(ProcessRun.opened(copy_recorded(runs_dir)))
    assert isinstance(person.dialogs[0], StopRun)
    assert person.sent == [CommandGiven(command) for command in sent]


def test_only_what_was_changed_is_sent(runs_dir: Path) -> None:
    run = ProcessRun.opened(copy_recorded(runs_dir))
    steps = str(run.folder.read_config().training.steps)
    person = Person({"training.learning_rate": "0.001", "training.steps": steps})
    dialogs_of(person).change(run)
    assert [m.command for m in person.sent if isinstance(m, CommandGiven)] == [
        Change("training.learning_rate", 0.001)
    ]


def test_a_fork_begins_at_the_checkpoint_nearest_to_the_cursor(runs_dir: Path) -> None:
    run = ProcessRun.opened(copy_recorded(runs_dir))
    for checkpoint in run.folder.checkpoints():
        (checkpoint.path / "training.safetensors").write_bytes(NO_TENSORS)
    person = Person({"name": "child", "training.learning_rate": "0.002"})
    dialogs_of(person).fork(run, 401)
    assert isinstance(person.dialogs[0], AskValues)
    (wanted,) = person.sent
    assert isinstance(wanted, ForkRequested)
    assert (wanted.name, wanted.checkpoint.step) == ("child", 400)
    assert wanted.config.training.learning_rate == 0.002


def test_without_a_checkpoint_nothing_is_asked(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    for checkpoint in folder.checkpoints():
        (checkpoint.path / "model.safetensors").unlink()
    person = Person()
    with pytest.raises(RequestError, match="no checkpoint"):
        dialogs_of(person).fork(ProcessRun.opened(folder), None)
    assert person.dialogs == []


def test_the_alerts_are_gone_to_one_after_the_other() -> None:
    losses = [2.0 + 0.01 * (i % 3) for i in range(40)]
    losses[20], losses[30] = 4.0, 5.0
    state = RunState()
    state.apply_all([started(), *(report(10 * i, loss) for i, loss in enumerate(losses, 1))])
    alerts = AlertWatch()
    assert alerts.step_to_go_to(None) is None
    alerts.look(state)
    assert alerts.step_to_go_to(None) == 310
    assert alerts.step_to_go_to(310) == 210
    assert alerts.step_to_go_to(210) == 310
    alerts.step_to_go_to(310)
    state.apply_all([report(410 + 10 * i, 9.0) for i in range(2)])
    alerts.look(state)
    assert alerts.chosen == 0, "a new alert is shown at once"
