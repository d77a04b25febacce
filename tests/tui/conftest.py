"""What the tests of the screen share: a recorded run, a gated trainer, and an app around them."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from megatron_model.device import DeviceInfo
from megatron_model.events.schema import (
    Event,
    RunFinished,
    RunHandedOver,
    RunPaused,
    RunResumed,
    StepCompleted,
    decode_event,
)
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_tui.app import MegatronApp
from megatron_tui.services.generation import GenerationService, LoadModel
from megatron_tui.services.torch_loader import TorchLoader
from megatron_tui.services.training import TrainingService
from megatron_tui.services.workbench import Workbench

DATA = Path(__file__).parent / "data"
NOW = 1_700_000_400.0
"""The clock of these tests: 35 seconds after the recorded run's last event."""

CPU = DeviceInfo("cpu", "2 CPU cores", "RAM", 24 << 30, 20 << 30, False, 1.5e11)


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin without what an earlier test chose and the workbench remembers."""
    for kind in ("CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / f".{kind.lower()}"))


def recorded_events() -> list[Event]:
    """Return the events of the recorded run."""
    lines = (DATA / "recorded" / "events.jsonl").read_bytes().splitlines()
    return [event for line in lines if (event := decode_event(line)) is not None]


async def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    """Wait until `condition` holds; fail after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "timed out"
        await asyncio.sleep(0.01)


class GatedTrainer:
    """Stands where `run_training` does: yields recorded events when the test lets it.

    It obeys commands between events, as the real one does between steps.
    """

    def __init__(self, events: list[Event]) -> None:
        self.events = events
        self.obeyed: list[str] = []
        self._gate = threading.Semaphore(0)

    def release(self, count: int = 1) -> None:
        """Let so many events happen."""
        self._gate.release(count)

    def __call__(self, folder: RunFolder, control: Control) -> Iterator[Event]:
        with folder.lock():
            for event in self.events:
                self._gate.acquire()
                while (command := control.take()) is not None:
                    self.obeyed.append(command)
                    if command == "pause":
                        yield RunPaused(step=event.step, time=NOW)
                    if command == "resume":
                        yield RunResumed(step=event.step, time=NOW)
                    if command == "hand_over":
                        yield RunHandedOver(step=event.step, time=NOW, elapsed_seconds=1.0)
                        return
                    if command == "stop":
                        yield RunFinished(
                            step=event.step, time=NOW, reason="stopped", elapsed_seconds=1.0
                        )
                        return
                yield event
                yield StepCompleted(step=event.step, time=event.time, elapsed_seconds=1.0)


class Successor:
    """Stands where the process does that takes a run over: it does nothing by itself."""

    def __init__(self, folder: RunFolder, *, ended: bool = False) -> None:
        self.folder = folder
        self.ended = ended

    def poll(self) -> int | None:
        """Return its exit status, once it ended."""
        return 2 if self.ended else None


NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""A whole safetensors file with nothing in it."""


def copy_recorded(runs_dir: Path, name: str = "shakespeare-cpu") -> RunFolder:
    """Put the recorded run into `runs_dir`, with a checkpoint to choose."""
    path = runs_dir / name
    shutil.copytree(DATA / "recorded", path)
    for step, loss in ((400, 1.7444), (437, None)):
        checkpoint = path / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(NO_TENSORS)
        (checkpoint / "training.json").write_text(json.dumps({"val_loss": loss}))
    return RunFolder.open(path)


def make_workbench(
    runs_dir: Path,
    trainer: GatedTrainer | None = None,
    load_model: LoadModel | None = None,
    device: DeviceInfo = CPU,
) -> Workbench:
    """Return a workbench on `runs_dir` with a clock that stands still."""
    return Workbench(
        runs_dir,
        training=TrainingService(trainer, now=lambda: NOW),
        generation=GenerationService(load_model),
        torch_loader=TorchLoader(lambda: device),
    )


def make_app(workbench: Workbench, **options: object) -> MegatronApp:
    """Return the app on a workbench."""
    return MegatronApp(workbench, **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()


@pytest.fixture
def tale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path) -> str:
    """A corpus known by a relative name, in the working directory of the test."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(corpus, tmp_path / "tale.txt")
    return "tale.txt"
