"""Runs on several devices: set up, started in processes of their own, followed, commanded, left."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from textual.widgets import OptionList

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.device import DeviceInfo
from megatron_model.events.schema import (
    Event,
    MetricsReported,
    RunFinished,
    RunStarted,
    encode_event,
)
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.app import MegatronApp
from megatron_tui.runs.screen import RunsScreen
from megatron_tui.services import run_log
from megatron_tui.services.model_choice import model_choices, why_not_live
from megatron_tui.services.training import TrainingService
from megatron_tui.setup.preflight_card import PreflightCard
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.training.panels import RunProgress
from megatron_tui.training.ranks_panel import RanksPanel
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.ask_values import AskValues
from megatron_tui.ui.dialogs import Leave, Saving
from megatron_tui.ui.key_bar import KeyBar
from megatron_tui.ui.panel import Label
from megatron_tui.ui.pick import Pick
from tests.tui.conftest import NO_TENSORS, NOW, make_app, make_workbench, until
from tests.tui.several import copy_together, together

WIDE, NARROW = (120, 40), (80, 24)
GIB = 1 << 30
CARD = DeviceInfo("cuda", "NVIDIA H100", "GPU 0", 80 * GIB, 78 * GIB, True, 4e14)


class Processes:
    """Stand where the processes of a run do; the test says how they do."""

    def __init__(self) -> None:
        self.started: list[str] = []
        self._code: int | None = None
        self._held = contextlib.ExitStack()

    def __call__(self, folder: RunFolder) -> Processes:
        """Start."""
        self.folder, self._code = folder, None
        self.started.append(folder.name)
        return self

    def poll(self) -> int | None:
        """Return the exit status, once they ended."""
        return self._code

    def take(self) -> None:
        """Come up: one of them has the run."""
        self._held.enter_context(self.folder.lock())

    def write(self, *events: Event) -> None:
        """Write into the run's log."""
        with self.folder.events_path.open("ab") as log:
            log.write(b"".join(map(encode_event, events)))

    def say(self, text: str) -> None:
        """Write into trainer.log."""
        with (self.folder.path / "trainer.log").open("a") as log:
            log.write(f"{text}\n")

    def end(self, code: int = 0) -> None:
        """Let the run go."""
        self._held.close()
        self._code = code


@pytest.fixture(autouse=True)
def _logs_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "TAIL_SECONDS", 0.0)


@pytest.fixture
def processes() -> Iterator[Processes]:
    """Processes that do nothing by themselves, and are gone in the end."""
    found = Processes()
    yield found
    found.end()


def service_of(processes: Processes) -> TrainingService:
    return TrainingService(now=lambda: NOW, start_process=processes)


def make_run(runs_dir: Path, devices: int = 2) -> RunFolder:
    config = with_settings(RunConfig(), {"training.devices": devices})
    return RunFolder.create(runs_dir, "tale", config)


def begun() -> RunStarted:
    first = together(2, cards=False)[0]
    assert isinstance(first, RunStarted)
    return first


FINISHED = RunFinished(step=437, time=NOW, reason="stopped", elapsed_seconds=1.0)


# The service


def test_processes_come_up_train_and_end(runs_dir: Path, processes: Processes) -> None:
    service = service_of(processes)
    run = service.start(make_run(runs_dir))
    assert processes.started == ["tale"]
    assert (run.standing, run.detached, run.active) == ("starting", True, True)
    assert run.activity(NOW + 3) == "starting 2 processes, 3s"
    processes.take()
    service.poll()
    assert run.activity(NOW + 5) == "preparing in 2 processes, 5s"
    with pytest.raises(RequestError, match="is being trained by another process"):
        service.start(run.folder)
    processes.write(begun())
    service.poll()
    assert str(run.standing) == "running"
    # Another run is looked at meanwhile; the way back is to the same one.
    service.show(make_run(runs_dir / "others"))
    assert service.show(run.folder) is run
    service.command("pause")
    assert CommandFolder(run.folder.path).take()[0] == ["pause"]
    processes.write(FINISHED)
    processes.end()
    service.poll()
    assert run.standing == "stopped"
    assert service.launched is None
    assert not service.busy


def test_what_was_said_before_is_not_for_new_processes(
    runs_dir: Path, processes: Processes
) -> None:
    folder = copy_together(runs_dir, 2)
    CommandFolder(folder.path).send("stop")
    (folder.path / "trainer.log").write_text("megatron-model: an old complaint.\n")
    service = service_of(processes)
    run = service.start(folder)
    assert run.standing == "starting", "though its log ends with an earlier stop"
    # What is asked before they are up is theirs; there is nothing to lose yet.
    service.command("abort")
    assert str(run.standing) == "stopping"
    assert CommandFolder(folder.path).take()[0] == ["stop"]
    processes.end(1)
    service.poll()
    assert run.problem == "The 2 processes ended at once, without a word."
    assert run.standing == "failed"
    assert run.resumable


def test_only_one_team_comes_up_at_a_time(runs_dir: Path, processes: Processes) -> None:
    service = service_of(processes)
    service.start(make_run(runs_dir))
    with pytest.raises(RequestError, match="tale is starting"):
        service.start(copy_together(runs_dir, 2))
    assert processes.started == ["tale"]


def test_a_start_that_fails_out_of_sight_is_told(runs_dir: Path, processes: Processes) -> None:
    service = service_of(processes)
    service.start(make_run(runs_dir))
    service.show(copy_together(runs_dir, 2))
    processes.say("megatron-model: the corpus \x1b[31mis gone.")
    processes.say("E1122 torchrun says much")
    processes.end(2)
    service.poll()
    assert service.take_notice() == "tale did not start: the corpus \ufffd[31mis gone."
    assert service.launched is None


def test_weights_in_training_are_not_lent_by_other_processes(
    runs_dir: Path, processes: Processes
) -> None:
    folder = copy_together(runs_dir, 2)
    service = service_of(processes)
    assert why_not_live(folder, service) == ""
    with folder.lock():
        service.show(folder)
        assert "live" not in [choice.name for choice in model_choices(folder, service)]
        assert "s on the Training screen saves them" in why_not_live(folder, service)


# By keys


def app_of(runs_dir: Path, processes: Processes, **options: object) -> MegatronApp:
    workbench = make_workbench(runs_dir)
    workbench.training = service_of(processes)
    return make_app(workbench, **options)


def said(app: MegatronApp) -> str:
    return "\n".join(notice.message for notice in app._notifications)


async def test_a_refused_run_leads_back_to_setup(
    runs_dir: Path, processes: Processes, tale: str
) -> None:
    app = app_of(runs_dir, processes, corpus=tale)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete and screen.plan.device is not None)
        screen.plan.change(screen.draft.with_values({"training.devices": 2}))
        await pilot.press("ctrl+r")
        await until(lambda: isinstance(app.screen, TrainingScreen))
        progress = app.screen.query_one(RunProgress)
        await until(lambda: progress.plain.startswith("starting 2 processes"))
        processes.say("megatron-model: Rank 1: there is [no] such card.")
        processes.folder.delete()
        processes.end(2)
        await until(lambda: "there is [no] such card." in said(app))
        await until(lambda: isinstance(app.screen, SetupScreen))
        assert app.workbench.training.shown is None


async def test_commands_go_to_the_processes_and_take_back_is_not_offered(
    runs_dir: Path, processes: Processes
) -> None:
    app = app_of(runs_dir, processes)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        app._train(make_run(runs_dir))
        processes.take()
        processes.write(*together(2, cards=False))
        training = app.workbench.training
        await until(lambda: training.shown is not None and training.shown.state.ranks is not None)
        await until(lambda: isinstance(app.screen, TrainingScreen))
        await pilot.press("space", "w", "e", "g")
        orders = CommandFolder(processes.folder.path)
        assert orders.take()[0] == ["pause", "save", "evaluate", "sample"]
        assert "Take back" not in str(app.screen.query_one(KeyBar).keys)
        with pytest.raises(RequestError, match="trains on 2 devices, in processes of its own"):
            training.start(processes.folder, take_over=True)
        await pilot.press("S", "y")
        await until(lambda: orders.take()[0] == ["stop"])
        processes.write(FINISHED)
        processes.end()
        await until(lambda: training.launched is None)
        assert app.is_running


@pytest.mark.parametrize("way", ["runs", "training", "fork"])
async def test_a_recorded_run_goes_on_as_it_began(
    runs_dir: Path, processes: Processes, way: str
) -> None:
    folder = copy_together(runs_dir, 4)
    app = app_of(runs_dir, processes, run=None if way == "runs" else folder)
    async with app.run_test(size=WIDE) as pilot:
        if way == "runs":
            await pilot.press("f5")
            await until(lambda: isinstance(app.screen, RunsScreen) and bool(app.screen.rows))
            await pilot.press("r")
        elif way == "training":
            await until(lambda: isinstance(app.screen, TrainingScreen))
            await pilot.press("r")
        else:
            for checkpoint in folder.checkpoints():
                (checkpoint.path / "training.safetensors").write_bytes(NO_TENSORS)
            await until(lambda: isinstance(app.screen, TrainingScreen))
            await pilot.press("F")
            await until(lambda: isinstance(app.screen, AskValues))
            await pilot.press("enter")
        await until(lambda: bool(processes.started))
        run = app.workbench.training.shown
        assert run is not None
        assert run.activity(NOW) == "starting 4 processes, 0s"
        expected = f"{folder.name}-at-437" if way == "fork" else folder.name
        assert processes.started == [expected]


async def test_quitting_leaves_it_running(runs_dir: Path, processes: Processes) -> None:
    app = app_of(runs_dir, processes)
    async with app.run_test(size=NARROW) as pilot:
        app._train(make_run(runs_dir))
        await pilot.press("ctrl+q")
        await until(lambda: isinstance(app.screen, Leave))
        words = " ".join(text.plain for text in app.screen.query(Label))
        assert "processes of its own, which need no terminal" in words
        await pilot.press("enter")  # what enter does loses nothing
        await until(lambda: app._exit)
    assert CommandFolder(processes.folder.path).take()[0] == []


async def test_quitting_can_stop_it(runs_dir: Path, processes: Processes) -> None:
    app = app_of(runs_dir, processes)
    async with app.run_test(size=NARROW) as pilot:
        app._train(make_run(runs_dir))
        processes.take()
        processes.write(begun())
        await pilot.press("ctrl+q", "s")
        await until(lambda: isinstance(app.screen, Saving))
        assert CommandFolder(processes.folder.path).take()[0] == ["stop"]
        assert not app._exit
        processes.write(FINISHED)
        processes.end()
        await until(lambda: app._exit)


# Setting it up


async def setup_of(app: MegatronApp) -> SetupScreen:
    screen = app.screen
    assert isinstance(screen, SetupScreen)
    await until(lambda: screen.facts.complete and screen.plan.device is not None)
    return screen


def card_of(screen: SetupScreen) -> str:
    return "\n".join(text.plain for text in screen.query_one(PreflightCard).query(Label))


async def test_devices_are_offered_alone_and_together(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=NARROW) as pilot:
        screen = await setup_of(app)
        screen.plan.cores = 6
        await pilot.press("at")
        await until(lambda: isinstance(app.screen, Pick))
        pick = app.screen
        assert isinstance(pick, Pick)
        names = ["auto", "cpu", "2 x cpu", "4 x cpu", "6 x cpu"]
        await until(lambda: [entry.value for entry in pick._entries] == names)
        assert pick._entries[2].detail == "2 processes, 3 cores and 10.0 GiB each"
        await until(lambda: pick.query_one(OptionList).highlighted == 0)
        await pilot.press("j", "j", "enter")
        await until(lambda: screen.plan.config.training.devices == 2)
        assert screen.plan.config.training.device == "cpu"
        card = card_of(screen)
        assert "devices 2, each 10.0 GiB free" in card
        assert "DDP     ▸ " in card
        assert "FSDP2     " in card
        assert "MiB/step" in card
        assert "scaling none: they share the cores" in card
        assert "--set training.devices=2" in " ".join(screen.plan.command("x"))
        # The same list takes it back, as one step.
        await pilot.press("u")
        await until(lambda: screen.plan.config.training.devices == 1)
        assert "weights" in card_of(screen)


async def test_cards_are_counted_and_their_scaling_is_told(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir, device=CARD), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup_of(app)
        screen.plan.devices.update({f"cuda:{number}": CARD for number in range(8)})
        await pilot.press("at")
        await until(lambda: isinstance(app.screen, Pick))
        pick = app.screen
        assert isinstance(pick, Pick)
        values = [entry.value for entry in pick._entries]
        assert values[-3:] == ["2 x cuda", "4 x cuda", "8 x cuda"]
        assert pick._entries[-1].detail == "NVIDIA H100, 78.0 GiB free on each"
        await pilot.press("end")
        await until(lambda: pick.entry is not None and pick.entry.value == "8 x cuda")
        await pilot.press("enter")
        await until(lambda: screen.plan.config.training.devices == 8)
        assert screen.plan.config.training.device == "cuda"
        screen.plan.devices["cuda"], screen.plan.cards = CARD, 4
        screen.show_plan()
        assert "x or more at 25 GB/s" in card_of(screen)
        assert "training.devices is 8, but this machine has 4 CUDA devices." in card_of(screen)
        await pilot.press("exclamation_mark")
        await until(lambda: screen.plan.config.training.devices == 4)
        assert "but this machine has" not in card_of(screen)
        screen.plan.change(screen.draft.with_values({"training.batch_size": 2}))
        screen.show_plan()
        assert "is less than the 4 processes that train together" in card_of(screen)
        await pilot.press("m")
        await pilot.press("exclamation_mark")
        await until(lambda: screen.plan.config.training.batch_size == 4)


# The dashboard


@pytest.mark.parametrize("size", [NARROW, (100, 30), WIDE])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
async def test_every_device_has_its_line(runs_dir: Path, count: int, size: tuple[int, int]) -> None:
    app = make_app(make_workbench(runs_dir), run=copy_together(runs_dir, count))
    async with app.run_test(size=size) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen))
        await pilot.pause()
        panel = app.screen.query_one(RanksPanel)
        if count == 1:
            assert not panel.display
            return
        text = panel.query_one(Label)
        await until(lambda: "%" in text.plain)
        await pilot.pause()
        lines = text.plain.splitlines()
        assert len(lines) == text.size.height
        assert max(map(len, lines)) <= text.size.width
        for rank in range(count):
            assert f"{97 - 3 * rank}%" in text.plain
        assert text.plain.count("◂") == 1
        assert panel.title == f"{count} x NVIDIA H100 80GB HBM3"
        assert "slowest: rank 1, +7%" in str(panel.border_subtitle)
        column = app.screen.query_one("#right").region
        shown = [child.region for child in app.screen.query_one("#right").children if child.display]
        assert all(column.contains_region(region) and region.height > 2 for region in shown)
        assert sum(region.height for region in shown) == column.height
        await pilot.press("6")
        await until(lambda: not panel.display)


async def test_the_panel_waits_for_its_first_measurement(
    runs_dir: Path, processes: Processes
) -> None:
    app = app_of(runs_dir, processes)
    async with app.run_test(size=WIDE) as pilot:
        app._train(make_run(runs_dir))
        processes.take()
        processes.write(begun())
        await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
        panel = app.screen.query_one(RanksPanel)
        await until(lambda: panel.query_one(Label).plain.startswith("No measurement yet."))
        await until(lambda: panel.region.height > 3)
        height = panel.region.height
        assert panel.title == "2 devices"
        events = together(2, cards=False)
        processes.write(*events[1:])
        await until(lambda: "417 MiB" in panel.query_one(Label).plain)
        assert panel.title == "2 processes, RAM of each"
        await pilot.pause()
        assert panel.region.height == height
        reports = [event for event in events if isinstance(event, MetricsReported)]
        assert app.workbench.training.shown is not None
        assert app.workbench.training.shown.state.step >= reports[-1].step


async def test_the_large_panel_tells_everything(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir), run=copy_together(runs_dir, 8))
    async with app.run_test(size=WIDE) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen))
        panel = app.screen.query_one(RanksPanel)
        await until(lambda: panel.display and bool(panel.size))
        panel.focus()
        await pilot.press("enter")
        await until(lambda: "36.0 GiB of 80.0 GiB, peak 40.0 GiB" in panel.query_one(Label).plain)
        await pilot.press("enter")
        await until(lambda: "peak" not in panel.query_one(Label).plain)
