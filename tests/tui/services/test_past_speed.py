"""What earlier runs tell of the time of the next one, and what budgets and long logs do."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import PRESETS
from megatron_model.device import DeviceInfo
from megatron_model.events.schema import (
    Event,
    MetricsReported,
    PhaseChanged,
    RunFinished,
    RunStarted,
    encode_event,
)
from megatron_model.events.state import RunState
from megatron_model.planning.preflight import Preflight, preflight
from megatron_model.run.folder import RunFolder
from megatron_tui.runs.listing import read_row
from megatron_tui.runs.table import cells, column_widths
from megatron_tui.services import run_log
from megatron_tui.services.past_speed import Pace, read_paces, shape_of
from megatron_tui.services.run_log import RunLog, log_size
from megatron_tui.services.training import TrainingService
from megatron_tui.setup.preflight_card import PreflightCard, preflight_rows
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.shell.header import RunSummary, WorkbenchHeader
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.panel import Label
from tests.tui.conftest import (
    CPU,
    NOW,
    GatedTrainer,
    copy_recorded,
    make_app,
    make_workbench,
    recorded_events,
    tale,
    until,
)

__all__ = ["tale"]


def run_of(runs_dir: Path, name: str, config: RunConfig, *, speed: float = 6144.0) -> RunFolder:
    """Record a run that compiled for 41 seconds and then took so many characters a second."""
    folder = RunFolder.create(runs_dir, name, config)
    rate = CPU.matrix_rate
    log: list[Event] = [
        PhaseChanged(step=0, time=NOW, phase="compiling"),
        PhaseChanged(step=0, time=NOW + 41, phase="training"),
        RunStarted(
            step=0, time=NOW + 41, name=name, corpus="tale.txt", characters=2672,
            vocabulary_size=35, parameters=1, steps=config.training.steps, device="cpu",
            matrix_rate=rate, max_seconds=config.training.max_seconds,
        ),
    ]  # fmt: skip
    for step in range(10, 60, 10):
        log.append(
            MetricsReported(
                step=step, time=NOW + 41 + step, train_loss=2.0, learning_rate=1e-3,
                gradient_norm=1.0, tokens_per_second=speed if step > 10 else speed / 9,
                elapsed_seconds=float(step),
            )
        )  # fmt: skip
    folder.events_path.write_bytes(b"".join(encode_event(event) for event in log))
    return folder


def said(result: Preflight, **options: Any) -> str:
    """Return the time on the card, and the line below it."""
    rows = preflight_rows(result, **options)
    lines = ["".join(text for text, _ in parts) for _, parts in rows]
    index = [label for label, _ in rows].index("time")
    return "\n".join(lines[index : index + 2])


@pytest.fixture
def config(corpus: Path) -> RunConfig:
    return with_settings(PRESETS["cpu"].config, {"data.corpus": str(corpus), "training.steps": 100})


def test_the_pace_of_a_run_is_that_of_its_later_reports(runs_dir: Path, config: RunConfig) -> None:
    folder = run_of(runs_dir, "before", config)
    per_step = config.training.batch_size * config.sequence_length
    (pace,) = read_paces([folder]).values()
    assert pace == Pace(per_step / 6144.0, 41.0, CPU.matrix_rate)
    assert pace.of_machine(CPU.matrix_rate)
    assert not pace.of_machine(9 * (CPU.matrix_rate or 0))
    assert not pace.of_machine(None)


def test_another_shape_has_another_pace(runs_dir: Path, config: RunConfig) -> None:
    paces = read_paces([run_of(runs_dir, "before", config), run_of(runs_dir, "older", config)])
    wide = with_settings(config, {"model.embed_dim": 256})
    longer = with_settings(config, {"training.steps": 7000, "training.seed": 3})
    assert shape_of(longer) in paces
    assert shape_of(wide) not in paces


def test_a_run_without_reports_or_without_settings_has_none(
    runs_dir: Path, config: RunConfig
) -> None:
    folder = RunFolder.create(runs_dir, "new", config)
    broken = run_of(runs_dir, "broken", config)
    (broken.path / "run.toml").write_text("[")
    assert read_paces([folder, broken]) == {}


def test_the_card_says_what_its_time_rests_on(config: RunConfig) -> None:
    slow = msgspec.structs.replace(CPU, matrix_rate=1e9)
    result = preflight(config, characters=10**6, vocabulary_size=35, device=slow)
    assert said(result, compiles=True).split("\n")[0].endswith("uncompiled")
    assert "uncompiled" not in said(result)
    paced = said(result, pace=Pace(0.5, 41.0, 1e9), compiles=True)
    assert paced == "about 50s, as before\ncompiling took 41s the first time"
    never = said(result, pace=Pace(0.5, None, 1e9), compiles=True)
    assert never.startswith("about 50s, as before\n")
    assert "compiling" not in never
    budget = with_settings(config, {"training.max_seconds": 60})
    given = preflight(budget, characters=10**6, vocabulary_size=35, device=slow)
    assert said(given, pace=Pace(0.5, None, 1e9), compiles=True).startswith("about 1m 00s\n")


async def test_setup_knows_how_fast_the_last_run_was(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete and app.workbench.torch_loader.state == "ready")
        card = screen.query_one(PreflightCard).query_one(Label)
        assert "as before" not in card.plain
        run_of(runs_dir, "before", screen.plan.config)
        await pilot.press("f5", "f2")  # looked at whenever the screen comes to the front
        await until(lambda: "as before" in card.plain)
        assert "compiling took 41s the first time" in card.plain


async def test_a_run_on_another_machine_says_nothing_of_this_one(
    runs_dir: Path, tale: str, config: RunConfig
) -> None:
    fast = DeviceInfo("cpu", "64 CPU cores", "RAM", 24 << 30, 20 << 30, False, 9e12)
    app = make_app(make_workbench(runs_dir, device=fast), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete and app.workbench.torch_loader.state == "ready")
        run_of(runs_dir, "before", screen.plan.config)
        await pilot.press("f5", "f2")
        await until(lambda: bool(screen.plan.paces))
        assert screen.plan.pace is None


def ended_by_budget(runs_dir: Path, config: RunConfig) -> RunFolder:
    budget = with_settings(config, {"training.max_seconds": 60, "training.steps": 1450})
    folder = run_of(runs_dir, "quick", budget)
    end = RunFinished(step=553, time=NOW + 90, reason="budget", elapsed_seconds=60.2)
    with folder.events_path.open("ab") as log:
        log.write(encode_event(end))
    return folder


def test_a_run_that_used_up_its_time_is_not_said_to_lack_steps(
    runs_dir: Path, config: RunConfig
) -> None:
    folder = ended_by_budget(runs_dir, config)
    run = TrainingService().show(folder)
    assert RunSummary.of(run).places() == [
        "finished: 553 steps (1m 00s budget)",
        "finished: 553 steps",
        "finished 553",
    ]
    said = [cell.plain for cell in cells(read_row(folder), NOW, column_widths(200))]
    assert {"✓ finished", "553 in 1m 00s"} <= set(said)


def test_a_run_with_a_budget_does_not_count_towards_its_steps(
    runs_dir: Path, config: RunConfig
) -> None:
    folder = run_of(runs_dir, "quick", with_settings(config, {"training.max_seconds": 60}))
    run = TrainingService().show(folder)
    assert RunSummary.of(run).places()[0] == "interrupted step 50"
    counted = TrainingService().show(run_of(runs_dir, "counted", config))
    assert RunSummary.of(counted).places() == [
        "interrupted step 50 of 100", "interrupted 50/100", "interrupted 50",
    ]  # fmt: skip


async def test_the_header_of_a_run_that_used_up_its_time(runs_dir: Path, config: RunConfig) -> None:
    app = make_app(make_workbench(runs_dir), run=ended_by_budget(runs_dir, config))
    async with app.run_test(size=(120, 40)) as pilot:
        await until(lambda: isinstance(app.screen, TrainingScreen) and app.screen.is_mounted)
        header = app.screen.query_one(WorkbenchHeader)
        await until(lambda: "quick" in header.plain)
        assert header.plain.rstrip().endswith("✓ finished: 553 steps (1m 00s budget)")
        await pilot.resize_terminal(80, 24)
        await until(lambda: header.size.width == 80)
        assert header.plain.rstrip().endswith("✓ finished: 553 steps")


class GatedFolder(RunFolder):
    """A run whose log is folded when the test lets it; remembers which thread did it."""

    gate = threading.Semaphore(0)
    folded_by: list[str]

    def fold(self) -> tuple[RunState, int]:
        self.folded_by.append(threading.current_thread().name)
        self.gate.acquire()
        return super().fold()


async def test_resuming_a_run_with_a_long_log_folds_it_beside_the_screen(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = copy_recorded(runs_dir).path
    monkeypatch.setattr(run_log, "LONG_LOG", 4000)
    monkeypatch.setattr(run_log, "STRETCHES", 2)
    folder = GatedFolder(path)
    folder.folded_by = []
    whole = RunFolder(path).state()
    newer = [msgspec.structs.replace(event, step=event.step + 437) for event in recorded_events()]
    trainer = GatedTrainer([event for event in newer if isinstance(event, MetricsReported)])
    service = TrainingService(trainer)
    run = service.start(folder)  # returns, although nothing was folded yet
    assert run.reading
    assert run.state.step == 437, "where it stood, from the end of the log"
    assert len(run.state.train_loss) < len(whole.train_loss)
    trainer.release(3)
    service.poll()
    assert run.reading
    folder.gate.release()
    await until(lambda: service.poll() and run.state.step > 437)
    assert folder.folded_by == ["trainer"]
    assert not run.reading
    # The past is whole, and what came after it is there once.
    assert run.state.train_loss.steps[: len(whole.train_loss)] == whole.train_loss.steps
    await until(lambda: service.poll() or len(run.state.train_loss) >= len(whole.train_loss) + 3)
    service.stop()
    trainer.release(1)
    await until(lambda: service.poll() is not None and service.training is None)
    after = run.state.train_loss.steps[len(whole.train_loss) :]
    assert after == sorted(set(after))
    assert folder.folded_by == ["trainer"]


async def test_a_trainer_that_fails_at_once_leaves_its_whole_past(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_recorded(runs_dir)
    monkeypatch.setattr(run_log, "LONG_LOG", 4000)
    whole = folder.state()

    def fail(*_: object) -> Any:
        raise RuntimeError("no memory")
        yield

    service = TrainingService(fail)
    run = service.start(folder)
    await until(service.idle.is_set)
    service.poll()
    assert run.problem == "RuntimeError: no memory"
    assert run.state.train_loss.steps == whole.train_loss.steps


def test_a_long_log_is_shown_in_outline_at_once(
    runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_recorded(runs_dir)
    report = next(event for event in recorded_events() if isinstance(event, MetricsReported))
    with folder.events_path.open("wb") as log:
        for step in range(4000):
            log.write(encode_event(msgspec.structs.replace(report, step=step)))
    monkeypatch.setattr(run_log, "LONG_LOG", log_size(folder) // 4)
    monkeypatch.setattr(run_log, "STRETCHES", 20)
    log = RunLog.opened(folder)
    shown = log.state.train_loss.steps
    assert log.reading
    assert len(shown) < 1200
    assert all(any(first <= step < first + 250 for step in shown) for first in range(0, 4000, 250))
    assert shown[-1] == 3999
