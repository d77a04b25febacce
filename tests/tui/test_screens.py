"""The screens driven by keys, with a gated trainer behind them: state first."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.widgets import Input

from megatron_model.config.fields import RunConfig
from megatron_model.device import DeviceInfo
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.app import MegatronApp
from megatron_tui.app import make_app as make_real_app
from megatron_tui.generation.screen import GenerationScreen
from megatron_tui.plot.chart import Chart
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.runs.table import RunsTable
from megatron_tui.services.training import TrainingService
from megatron_tui.setup.corpus_picker import CorpusPicker
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.shell.header import WorkbenchHeader
from megatron_tui.shell.help import HelpScreen
from megatron_tui.shell.too_small import TooSmall
from megatron_tui.training.panels import RunProgress
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.training.stop_dialog import StopRun
from megatron_tui.ui.dialogs import Confirm, Leave, Saving
from megatron_tui.ui.draft import form_fields
from megatron_tui.ui.key_bar import KeyBar
from megatron_tui.ui.panel import Label
from megatron_tui.ui.settings_list import SettingsList
from megatron_tui.ui.stream_view import StreamView
from tests.tui.conftest import (
    GatedTrainer,
    Successor,
    copy_recorded,
    make_app,
    make_workbench,
    recorded_events,
    until,
)
from tests.tui.services.test_services import Letters

WIDE = (120, 40)


def front(app: MegatronApp) -> object:
    return app.screen_stack[0]


def all_text(app: MegatronApp) -> str:
    return "\n".join(widget.plain for widget in app.screen.query(Label))


async def corpus_read(app: MegatronApp) -> SetupScreen:
    screen = front(app)
    assert isinstance(screen, SetupScreen)
    await until(lambda: screen.facts.complete and app.workbench.torch_loader.state == "ready")
    return screen


async def test_three_keys_from_a_cold_start_to_a_run(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    app = make_app(make_workbench(runs_dir, trainer))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("enter", "enter", "enter")
        await until(lambda: isinstance(front(app), TrainingScreen))
        run = app.workbench.training.training
        assert run is not None
        assert run.folder.read_config().data.corpus == "builtin:python-reference"
        assert run.name == "python-reference-cpu"
        trainer.release(30)
        await until(lambda: run.state.step >= 100)
        await until(lambda: "validation" in all_text(app))
        app.workbench.training.stop()
        trainer.release(2)
        await until(lambda: app.workbench.training.training is None)
        await until(lambda: "stopped" in str(app.screen.query_one(RunProgress).plain))
        assert app.workbench.chosen_run is not None


async def test_there_is_no_screen_in_front_once_they_are_taken_down(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir), run=copy_recorded(runs_dir))
    async with app.run_test(size=WIDE):
        await until(lambda: app.front is not None)
    assert app.front is None  # a last tick of the clock may still ask for it


async def test_one_key_starts_as_well(runs_dir: Path, tale: str) -> None:
    trainer = GatedTrainer(recorded_events())
    app = make_app(make_workbench(runs_dir, trainer), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        await corpus_read(app)
        await pilot.press("ctrl+r")
        await until(lambda: app.workbench.training.training is not None)
        # The run must find its text from any folder.
        text = str(Path(tale).absolute())
        assert RunFolder.open(runs_dir / "tale-cpu").read_config().data.corpus == text
        app.workbench.training.stop()
        trainer.release(1)
        await until(app.workbench.training.idle.is_set)


async def test_training_keys_command_the_trainer(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    workbench = make_workbench(runs_dir, trainer)
    app = make_app(workbench)
    async with app.run_test(size=WIDE) as pilot:
        app._train(RunFolder.create(runs_dir, "a", RunConfig()))
        trainer.release(6)
        run = workbench.training.training
        assert run is not None
        await until(lambda: run.standing == "running")
        await pilot.press("w", "e", "g", "space")
        trainer.release(1)
        await until(lambda: run.standing == "paused")
        assert trainer.obeyed == ["save", "evaluate", "sample", "pause"]
        await pilot.press("space")
        trainer.release(1)
        await until(lambda: run.standing == "running")
        await pilot.press("S")
        await until(lambda: isinstance(app.screen, StopRun))
        await pilot.press("n")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        assert not run.stopping
        await pilot.press("S", "y")
        await until(lambda: run.stopping)
        trainer.release(1)
        await until(lambda: workbench.training.training is None)
        assert trainer.obeyed[-2:] == ["resume", "stop"]


async def test_chart_keys_change_the_view(runs_dir: Path) -> None:
    copy_recorded(runs_dir)
    app = make_app(make_workbench(runs_dir), run=RunFolder.open(runs_dir / "shakespeare-cpu"))
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen))
        screen = app.screen
        assert isinstance(screen, TrainingScreen)
        chart = screen.query(Chart).first()
        await until(lambda: bool(chart.text.strip()))
        linear = chart.text
        await pilot.press("L")
        assert chart.plot.log_y
        assert chart.text != linear
        await pilot.press("L", "x")
        assert chart.plot.x_limits == (0.0, 365.1)
        assert len(chart.plot.curves) == 3
        await pilot.press("0")
        assert len(chart.plot.curves) == 2
        await pilot.press("+")
        assert screen.charts.view.smoothing == 1
        await pilot.press("-")
        assert screen.charts.view.smoothing == 0
        await pilot.press("4")
        assert not screen.query_one("#sample").display
        await pilot.press("4")
        assert screen.query_one("#sample").display


async def test_a_recorded_run_offers_to_resume_and_nothing_else(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    trainer = GatedTrainer(recorded_events())
    app = make_app(make_workbench(runs_dir, trainer), run=folder)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: "Resume" in str(app.screen.query_one(KeyBar).keys))
        assert "Pause" not in str(app.screen.query_one(KeyBar).keys)
        await pilot.press("r")
        await until(lambda: app.workbench.training.training is not None)
        assert "stopped" not in app.workbench.training.training.standing  # type: ignore[union-attr]
        app.workbench.training.stop()
        trainer.release(1)
        await until(app.workbench.training.idle.is_set)


async def test_an_error_stands_beside_its_field_as_it_is_typed(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await corpus_read(app)
        settings = screen.query_one(SettingsList)
        settings.focus()
        settings.go_to("training.steps")
        await pilot.press("enter", "x")
        await until(lambda: "training.steps" in screen.plan.checked.errors)
        row = "".join(segment.text for segment in settings.render_line(settings.cursor_row))
        assert "whole number" in row
        await pilot.press("enter", "ctrl+r")
        assert app.workbench.training.training is None
        assert settings.has_focus
        await pilot.press("enter", "backspace", "enter")
        await until(lambda: screen.plan.checked.valid)
        assert screen.draft.edits == {}


async def test_typing_a_digit_edits_and_escape_takes_it_back(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await corpus_read(app)
        settings = screen.query_one(SettingsList)
        settings.focus()
        settings.go_to("training.batch_size")
        await pilot.press("3", "2", "down")
        await until(lambda: screen.draft.text("training.batch_size") == "32")
        assert settings.has_focus
        keys = list(form_fields())
        assert settings.field.key == keys[keys.index("training.batch_size") + 1]
        settings.go_to("training.optimizer")
        await pilot.press("right")
        await until(lambda: screen.draft.text("training.optimizer") == "adamw")
        settings.go_to("training.batch_size")
        await pilot.press("9", "escape")
        await until(lambda: screen.draft.text("training.batch_size") == "32")
        assert settings.has_focus


async def test_preflight_follows_the_fields(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await corpus_read(app)
        before = screen.plan.cost
        settings = screen.query_one(SettingsList)
        settings.focus()
        settings.go_to("model.layers")
        await pilot.press("8", "enter")
        await until(lambda: screen.plan.cost.parameters > before.parameters)
        assert settings.has_focus
        settings.go_to("model.ff_dim")
        await pilot.press(*"1048576", "enter")
        await until(lambda: bool(screen.plan.cost.problems))
        await pilot.press("ctrl+r")
        await until(lambda: isinstance(app.screen, Confirm))
        await pilot.press("n")
        assert app.workbench.training.training is None


async def test_an_existing_name_is_an_error_and_never_overwritten(
    runs_dir: Path, tale: str
) -> None:
    RunFolder.create(runs_dir, "mine", RunConfig())
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await corpus_read(app)
        screen.query_one("#name", Input).value = "mine"
        await until(lambda: "exists" in all_text(app))
        await pilot.press("ctrl+r")
        assert app.workbench.training.training is None
        assert screen.query_one("#name").has_focus
        screen.query_one("#name", Input).value = "../mine"
        await until(lambda: "cannot be a run name" in all_text(app))


async def test_a_typed_path_becomes_the_corpus_or_an_error(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        screen = await corpus_read(app)
        screen.query_one("#path").focus()
        await pilot.press(*"tile.txt", "enter")
        await until(lambda: "no file or folder" in all_text(app))
        screen.query_one("#path", Input).value = tale
        await pilot.press("enter")
        await until(lambda: screen.facts.spec == tale and screen.facts.complete)
        assert screen.query_one(CorpusPicker).chosen == tale
        assert screen.query_one("#name", Input).value == "tale-cpu"


async def test_an_accelerator_changes_the_default_preset(runs_dir: Path, tale: str) -> None:
    gpu = DeviceInfo("cuda", "A Card", "GPU 0", 80 << 30, 78 << 30, True, 3e14)
    app = make_app(make_workbench(runs_dir, device=gpu), corpus=tale)
    async with app.run_test(size=WIDE):
        screen = await corpus_read(app)
        await until(lambda: screen.draft.preset == "small")


async def test_markup_and_escapes_from_outside_are_text(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = "[@click=app.quit]x \x1b]0;pwn\x07 [/nope].txt"
    (tmp_path / evil).parent.mkdir()
    (tmp_path / evil).write_text("a [b] [/c] \x1b[2J text\n" * 100)
    folder = copy_recorded(runs_dir, "run[1] [x] [")
    app = make_app(make_workbench(runs_dir), run=folder, corpus=evil)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen))
        await pilot.press("f2")
        await corpus_read(app)
        await pilot.press("ctrl+o")
        await pilot.pause(0.2)
        await pilot.press("escape", "f5")
        await until(lambda: app.screen.query_one(RunsTable).row_count == 1)
        await pilot.press("D")
        await until(lambda: isinstance(app.screen, Confirm))
        assert "run[1] [x] [" in all_text(app)
        await pilot.press("n", "f4")
        await until(lambda: isinstance(app.screen, GenerationScreen))
        strips = app.screen._compositor.render_strips(app.size)
        assert "\x1b" not in "".join(s.text for line in strips for s in line)


async def test_writing_shows_text_and_names_unknown_characters(runs_dir: Path) -> None:
    copy_recorded(runs_dir)
    model = Letters()
    app = make_app(make_workbench(runs_dir, load_model=lambda path: model))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f4")
        await until(lambda: app.workbench.generation.status.phase == "ready")
        screen = app.screen
        assert "step 400, validation 1.744" in all_text(app)
        await pilot.press("R", "o", "é")
        await until(lambda: "é" in screen.query_one("#unknown", Label).plain)
        await pilot.press("enter")
        assert app.workbench.generation.status.phase == "ready"
        await pilot.press("ctrl+d", "enter")
        model.gate.release(5)
        await until(lambda: screen.query_one(StreamView).text == "Roaaaaa")
        await pilot.press("escape")
        model.gate.release(1)
        await until(lambda: app.workbench.generation.status.phase == "stopped")
        await pilot.press("escape", "r")
        model.gate.release(2)
        await until(lambda: screen.query_one(StreamView).text == "Roaa")
        app.workbench.generation.cancel()
        model.gate.release(1)


async def test_runs_are_listed_opened_and_deleted(runs_dir: Path) -> None:
    copy_recorded(runs_dir, "first")
    copy_recorded(runs_dir, "second")
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen) and len(app.screen.rows) == 2)
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        assert {row.standing for row in screen.rows} == {"stopped"}
        name = screen.rows[1].name
        await pilot.press("j", "D", "y")
        await until(lambda: screen.query_one(RunsTable).row_count == 1)
        assert not (runs_dir / name).exists()
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        assert app.workbench.training.shown is not None


async def test_the_runs_fit_a_terminal_that_is_made_smaller(runs_dir: Path) -> None:
    copy_recorded(runs_dir)
    copy_recorded(runs_dir, "second")
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(120, 40)) as pilot:
        await pilot.press("f5")
        await until(lambda: isinstance(app.screen, RunsScreen) and len(app.screen.rows) == 2)
        table = app.screen.query_one(RunsTable)
        await pilot.press("j")
        for width in (80, 120):
            await pilot.resize_terminal(width, 40)
            await until(lambda: table.row_count == 2 and app.screen.size.width == width)  # noqa: B023
            await pilot.pause()
            assert not table.show_horizontal_scrollbar
            assert table.cursor_row == 1


async def test_a_run_whose_trainer_died_is_interrupted(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(lines[:-1]))
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        await pilot.press("f5")
        screen = app.screen
        assert isinstance(screen, RunsScreen)
        await until(lambda: [row.standing for row in screen.rows] == ["interrupted"])


async def test_quitting_while_training_asks_saves_and_leaves(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    app = make_app(make_workbench(runs_dir, trainer))
    async with app.run_test(size=WIDE) as pilot:
        app._train(RunFolder.create(runs_dir, "a", RunConfig()))
        trainer.release(3)
        await pilot.press("ctrl+q")
        await until(lambda: isinstance(app.screen, Leave))
        await pilot.press("escape")
        await until(lambda: not isinstance(app.screen, Leave))
        assert app.is_running
        await pilot.press("ctrl+q", "s")
        await until(lambda: isinstance(app.screen, Saving))
        assert not app.workbench.training.idle.is_set()
        trainer.release(1)
        await until(lambda: app._exit)
    assert trainer.obeyed == ["stop"]
    assert app.workbench.training.idle.is_set()


async def test_quitting_can_leave_the_run_going(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    workbench = make_workbench(runs_dir, trainer)
    workbench.training = TrainingService(trainer, start_process=Successor)
    app = make_app(workbench)
    async with app.run_test(size=WIDE) as pilot:
        app._train(RunFolder.create(runs_dir, "a", RunConfig()))
        trainer.release(3)
        await pilot.press("ctrl+q", "enter")  # what enter does loses nothing
        await until(lambda: isinstance(app.screen, Saving))
        assert workbench.training.training is not None
        assert workbench.training.training.handing_over
        workbench.training.training.control.put("hand_over")  # as the real successor asks
        trainer.release(1)
        await until(lambda: app._exit)
    assert trainer.obeyed == ["hand_over"]


async def test_a_successor_that_does_not_start_leaves_everything_as_it_was(
    runs_dir: Path,
) -> None:
    trainer = GatedTrainer(recorded_events())
    workbench = make_workbench(runs_dir, trainer)

    def start(folder: RunFolder) -> Successor:
        (folder.path / "trainer.log").write_text("no torch \x1b[31m here\n")
        return Successor(folder, ended=True)

    workbench.training = TrainingService(trainer, start_process=start)
    app = make_app(workbench)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        app._train(RunFolder.create(runs_dir, "a", RunConfig()))
        trainer.release(3)
        await pilot.press("d")
        await until(lambda: any("goes on here" in n.message for n in app._notifications))
        assert any("no torch" in n.message for n in app._notifications)
        assert not any("\x1b" in n.message for n in app._notifications)
        run = workbench.training.training
        assert run is not None
        assert not run.handing_over
        await pilot.press("ctrl+q", "l")
        await until(lambda: sum("goes on here" in n.message for n in app._notifications) == 2)
        await until(lambda: not isinstance(app.screen, Saving))
        assert app.is_running
        workbench.training.stop()
        trainer.release(1)
        await until(workbench.training.idle.is_set)


async def test_a_refused_run_returns_to_setup(runs_dir: Path, tale: str) -> None:
    def refuse(folder: RunFolder, control: object) -> object:
        folder.delete()
        raise RequestError("tale.txt has changed [/x].")
        yield

    workbench = make_workbench(runs_dir, refuse, None)  # type: ignore[arg-type]
    app = make_app(workbench, corpus=tale)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        await corpus_read(app)
        await pilot.press("ctrl+r")
        await until(lambda: any("has changed" in n.message for n in app._notifications))
        await until(lambda: isinstance(app.screen, SetupScreen))


@pytest.mark.parametrize("mode", ["f2", "f3", "f4", "f5"])
async def test_help_lists_the_keys_of_every_screen(runs_dir: Path, mode: str) -> None:
    copy_recorded(runs_dir)
    app = make_app(make_workbench(runs_dir, load_model=lambda path: Letters()))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press(mode)
        await pilot.pause(0)
        await pilot.press("f1")
        await until(lambda: isinstance(app.screen, HelpScreen))
        assert all(key in all_text(app) for key in ("F2", "F3", "F4", "F5", "^p", "^q"))
        await pilot.press("escape")
        await until(lambda: not isinstance(app.screen, HelpScreen))


async def test_mode_keys_work_inside_a_text_field(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(80, 24)) as pilot:
        app.screen.query_one("#path").focus()
        await pilot.press("f3")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        assert "No run is open" in all_text(app)


async def test_a_small_terminal_says_so_and_recovers(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.resize_terminal(70, 20)
        await until(lambda: isinstance(app.screen, TooSmall))
        await until(lambda: "70 x 20" in all_text(app) and "80 x 24" in all_text(app))
        await pilot.resize_terminal(60, 20)
        await until(lambda: "60 x 20" in all_text(app))
        await pilot.resize_terminal(80, 24)
        await until(lambda: isinstance(app.screen, SetupScreen))


async def test_the_header_names_the_run_as_space_allows(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    app = make_app(make_workbench(runs_dir), run=folder)
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen))
        header = app.screen.query_one(WorkbenchHeader)
        await until(lambda: header.summary is not None)
        assert "shakespeare-cpu  ■ stopped step 437 of 1,000" in str(header.render())
        await pilot.resize_terminal(80, 24)
        await until(lambda: "shakespeare-cpu" not in str(header.render()))
        assert "437" in str(header.render())


def test_the_target_is_a_run_or_a_corpus(runs_dir: Path, tale: str) -> None:
    copy_recorded(runs_dir)
    assert make_real_app(runs_dir, "shakespeare-cpu")._first_run is not None
    assert make_real_app(runs_dir, tale)._first_run is None
    with pytest.raises(RequestError, match="no file or folder"):
        make_real_app(runs_dir, "nothing-of-this-name")
