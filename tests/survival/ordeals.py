"""What a run must live through, each ordeal with a number of times: few in the suite, many in
`make torture`.

Each returns figures, and fails by an assertion when something was lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from megatron_model.config.fields import with_settings
from megatron_model.events.log import EventLog
from megatron_model.events.schema import (
    RECORDED,
    Alert,
    CheckpointSaved,
    Evaluated,
    Event,
    MetricsReported,
    RunFinished,
    RunStarted,
    StepCompleted,
)
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from tests.model.helpers import history, tiny_config, train
from tests.survival.processes import (
    gaps,
    hand_overs,
    make_run,
    start_trainer,
    stop,
    training_workbench,
    wait_for,
    wait_for_reports,
)

WARM_UP = 30_000
"""Events after which nothing in the workbench may grow any more."""

EVERY_FEW = {
    "training.schedule": "constant",  # which does not depend on the length of the run
    "training.log_every": 2,
    "training.evaluate_every": 20,
    "training.checkpoint_every": 7,
    "training.keep_checkpoints": 3,
    "model.dropout": 0.1,
    "training.optimizer": "muon",
}


def kills(runs_dir: Path, corpus: Path, times: int, seed: int = 1) -> dict[str, Any]:
    """SIGKILL trainers at random moments, in training, saving and hand-over."""
    draw = random.Random(seed)
    config = with_settings(
        tiny_config({"data.corpus": str(corpus)}), {**EVERY_FEW, "training.steps": 10_000_000}
    )
    folder = RunFolder.create(runs_dir, "killed", config)
    in_hand_over = 0
    for _ in range(times):
        with contextlib.ExitStack() as alive:
            trainers = [alive.enter_context(start_trainer(folder))]
            wait_for_reports(folder)
            if draw.random() < 0.25:
                in_hand_over += 1
                trainers.append(alive.enter_context(start_trainer(folder, "--take-over")))
                # From before the other one asks until after it took over.
                time.sleep(draw.uniform(0.0, 4.0))
            elif draw.random() < 0.3:
                CommandFolder(folder.path).send("save")
                time.sleep(draw.uniform(0.0, 0.02))
            else:
                time.sleep(draw.uniform(0.0, 0.5))
            draw.shuffle(trainers)
            for trainer in trainers:
                trainer.send_signal(signal.SIGKILL)
        assert not folder.is_active()
    lost = _check_losses_of_time(folder.read_events()[0])
    end = folder.state().step + 10
    finished = list(_to_the_end(folder, end))
    assert isinstance(finished[-1], RunFinished)
    whole = RunFolder.create(runs_dir, "unbroken", with_settings(config, {"training.steps": end}))
    train(whole)
    assert history(folder.read_events()[0]) == history(whole.read_events()[0])
    return {"kills": times, "in hand-overs": in_hand_over, "most steps lost": lost, "steps": end}


def _to_the_end(folder: RunFolder, steps: int) -> Iterator[Event]:
    from megatron_model.run.runner import run_training

    config = with_settings(folder.read_config(), {"training.steps": steps})
    return run_training(folder, Control(), config=config)


def _check_losses_of_time(events: list[Event]) -> int:
    """Assert that every session began at the last checkpoint, and return the most steps lost."""
    saved, step, most = 0, 0, 0
    for event in events:
        if isinstance(event, CheckpointSaved):
            saved = event.step
        elif isinstance(event, RunStarted):
            # One that was whole on disk before its event was in the log is even better.
            assert event.step >= saved, f"began at {event.step} after a checkpoint at {saved}"
            most, saved = max(most, step - event.step), event.step
        step = event.step
    return most


def closed_terminals(runs_dir: Path, corpus: Path, times: int, seed: int = 1) -> dict[str, Any]:
    """Close the terminal of a workbench that trains, at random moments."""
    draw = random.Random(seed)
    folder = make_run(runs_dir, corpus, "closed", training__log_every=5)
    went_on = 0
    for number in range(times):
        with training_workbench(runs_dir, folder) as terminal:
            time.sleep(draw.uniform(0.0, 2.0))
            terminal.close()
            status = terminal.wait()
        assert status == 128 + signal.SIGHUP, f"exit status {status}"
        wait_for_reports(folder)
        assert hand_overs(folder) == number + 1
        assert folder.is_active()
        went_on += 1
        stop(folder)
    found = gaps(folder.read_events()[0])
    assert len(found) == times
    return {"closed": times, "went on": went_on, "longest gap": max(found), "gaps": found}


def full_disk(runs_dir: Path, corpus: Path) -> dict[str, Any]:
    """Fill the disk below a run, and make room again; `runs_dir` is on a disk of a few MB."""
    folder = make_run(
        runs_dir, corpus, "full", training__checkpoint_every=50, training__log_every=10
    )
    ballast = runs_dir / "ballast"
    with start_trainer(folder) as trainer:
        wait_for(lambda: folder.latest_checkpoint(), "a checkpoint")
        with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 4096)
        # The alert itself waits for the disk: what is seen is that nothing moves any more.
        kept = {checkpoint.step for checkpoint in folder.checkpoints()}
        wait_for(lambda: waits_for_room(trainer.pid, folder), "the run to wait")
        assert trainer.poll() is None
        assert kept & {checkpoint.step for checkpoint in folder.checkpoints()}
        ballast.unlink()
        CommandFolder(folder.path).send("resume")
        wait_for_reports(folder, 5)
        stop(folder)
    events = folder.read_events()[0]
    lines = folder.events_path.read_bytes().count(b"\n")
    assert lines == len(events), "a torn line"
    alerts = sum(isinstance(event, Alert) for event in events)
    assert alerts
    reported = [event.step for event in events if isinstance(event, MetricsReported)]
    assert reported == list(range(10, reported[-1] + 1, 10)), "reports were lost"
    return {"alerts": alerts, "lost": 0}


def waits_for_room(pid: int, folder: RunFolder) -> bool:
    """Whether a trainer rests and its log stands still.

    One that is starved of its processor writes nothing either, but it wants to run.
    """
    trainer, size = psutil.Process(pid), folder.events_path.stat().st_size
    for _ in range(25):
        busy = sum(trainer.cpu_times()[:2])
        time.sleep(0.02)
        used = sum(trainer.cpu_times()[:2]) - busy
        if trainer.status() != psutil.STATUS_SLEEPING or used > 0.01:
            return False
    return folder.events_path.stat().st_size == size


@contextlib.contextmanager
def small_disk(path: Path, size: str = "4m") -> Iterator[Path | None]:
    """A file system of its own at `path`, or None where this user may not make one."""
    path.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], capture_output=True)


def week(runs_dir: Path, corpus: Path, count: int) -> dict[str, Any]:
    """Send so many events through log, fold and screen, and watch the memory."""
    return asyncio.run(_week(runs_dir, corpus, count))


async def _week(runs_dir: Path, corpus: Path, count: int) -> dict[str, Any]:
    from megatron_tui.app import MegatronApp
    from megatron_tui.services.training import TrainingService
    from megatron_tui.services.workbench import Workbench

    sizes: list[int] = []
    process = psutil.Process()

    def waiting() -> int:
        run = service.training
        return 0 if run is None else len(run._hub._events)

    def stub(folder: RunFolder, control: Control) -> Iterator[Event]:
        with folder.lock():
            log = EventLog(folder.events_path)
            for number, event in enumerate(_endless_events()):
                if isinstance(event, RECORDED):
                    log.record(event)
                yield event
                if number % 2000 == 0:
                    wait_for(lambda: waiting() < 2000, "the screen")
                if number >= count and isinstance(event, MetricsReported):
                    break  # a step that was only taken is not in the log
                if number % max(1, count // 100) == 0:
                    sizes.append(process.memory_info().rss)
            log.close()

    service = TrainingService(stub)
    app = MegatronApp(Workbench(runs_dir, training=service))
    folder = make_run(runs_dir, corpus, "week")
    began = time.monotonic()
    async with app.run_test(size=(120, 40)):
        app._train(folder)
        while not service.idle.is_set():
            await asyncio.sleep(0.1)
        service.poll()
        shown = service.shown
        assert shown is not None
        live = shown.state
    seconds = time.monotonic() - began
    # The first events fill the curves and caches up to their limits.
    filled = max(len(sizes) // 4, min(len(sizes) - 1, len(sizes) * WARM_UP // count))
    early, late = max(sizes[:filled]), max(sizes[filled:])
    recorded = folder.state()
    assert recorded.step == live.step, f"{recorded.step} in the log, {live.step} on the screen"
    assert recorded.val_loss.values == live.val_loss.values
    return {"events": count, "growth in MB": max(0, late - early) / 1e6, "seconds": seconds}


def _endless_events() -> Iterator[Event]:
    draw = random.Random(3)
    yield RunStarted(
        step=0, name="week", corpus="x", characters=10, vocabulary_size=5, parameters=9,
        steps=10_000_000, device="cpu",
    )  # fmt: skip
    step = 0
    while True:
        step += 10
        loss = 1.0 + draw.random()
        yield StepCompleted(step=step, elapsed_seconds=step / 10)
        yield MetricsReported(
            step=step,
            train_loss=loss,
            learning_rate=1e-3,
            gradient_norm=draw.random(),
            tokens_per_second=1e5,
            elapsed_seconds=step / 10,
        )
        if step % 1000 == 0:
            yield Evaluated(
                step=step, val_loss=loss, bits_per_character=1.0, elapsed_seconds=step / 10
            )
        if step % 5000 == 0:
            yield CheckpointSaved(step=step, path=f"checkpoints/step-{step:08d}")


def processes_of(folder: RunFolder) -> list[int]:
    """Return the trainers of a run that are alive, for a last look that none was left behind."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if str(folder.path) in (process.info["cmdline"] or []) and process.pid != os.getpid():
            found.append(process.pid)
    return found
