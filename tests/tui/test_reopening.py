"""A workbench opened while a run trains on opens on that run."""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import pytest

from megatron_model.events.schema import RunHandedOver, encode_event
from megatron_model.run.folder import RunFolder
from megatron_tui.app import MegatronApp
from megatron_tui.services.training import running_run
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.shell.header import WorkbenchHeader
from megatron_tui.training.screen import TrainingScreen
from tests.tui.conftest import copy_recorded, make_app, make_workbench, tale, until

__all__ = ["tale"]


def named(app: MegatronApp) -> str:
    """Return which run the header of the screen in front speaks of."""
    headers = app.screen.query(WorkbenchHeader)
    summary = headers.first().summary if headers else None
    return f"{summary.name} {summary.standing}" if summary is not None else ""


@pytest.mark.parametrize("frames_first", [False, True])
async def test_it_opens_on_the_run_that_trains_on(runs_dir: Path, frames_first: bool) -> None:
    copy_recorded(runs_dir, "older")
    running = copy_recorded(runs_dir, "running")
    copy_recorded(runs_dir, "newer")
    app = make_app(make_workbench(runs_dir), frames_first=frames_first)
    with running.lock():
        async with app.run_test(size=(120, 40)):
            await until(lambda: isinstance(app.screen, TrainingScreen))
            await until(lambda: named(app).startswith("running "))
            shown = app.workbench.training.shown
            assert shown is not None
            assert shown.active
            assert shown.folder.path == running.path
            assert app._poll_timer._active.is_set(), "its log is followed"


async def test_who_names_a_corpus_stays_with_it_and_sees_the_run(runs_dir: Path, tale: str) -> None:
    running = copy_recorded(runs_dir, "running")
    app = make_app(make_workbench(runs_dir), corpus=tale)
    with running.lock():
        async with app.run_test(size=(120, 40)) as pilot:
            await until(lambda: named(app).startswith("running "))
            assert isinstance(app.screen, SetupScreen)
            await pilot.press("f3")
            await until(lambda: isinstance(app.screen, TrainingScreen))
            assert named(app).startswith("running ")


async def test_who_names_a_run_gets_that_one(runs_dir: Path) -> None:
    asked = copy_recorded(runs_dir, "asked")
    running = copy_recorded(runs_dir, "running")
    app = make_app(make_workbench(runs_dir), run=asked)
    with running.lock():
        async with app.run_test(size=(120, 40)):
            await until(lambda: app.workbench.torch_loader.state == "ready")
            assert app.workbench.training.shown is not None
            assert app.workbench.training.shown.folder.path == asked.path


def test_a_run_between_two_trainers_is_found(runs_dir: Path) -> None:
    assert running_run(runs_dir) is None
    folder: RunFolder = copy_recorded(runs_dir, "handed-over")
    assert running_run(runs_dir) is None
    handed = RunHandedOver(step=437, time=time.time(), elapsed_seconds=1.0)
    with folder.events_path.open("ab") as log:
        log.write(encode_event(handed))
    found = running_run(runs_dir)
    assert found is not None
    assert found.path == folder.path
    old = msgspec.structs.replace(handed, time=time.time() - 3600)
    with folder.events_path.open("ab") as log:
        log.write(encode_event(old))
    assert running_run(runs_dir) is None
    assert running_run(folder.events_path) is None
