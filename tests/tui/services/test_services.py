"""The services without a screen: one trainer at a time, states folded, texts cancelled."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.config.fields import RunConfig, SamplingConfig
from megatron_model.events.schema import Event, RunHandedOver, encode_event
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.services.generation import GenerationService
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.services.training import TrainingService
from tests.tui.conftest import GatedTrainer, Successor, copy_recorded, recorded_events, until


async def finish(service: TrainingService) -> None:
    await until(service.idle.is_set)
    service.poll()


async def test_events_are_folded_when_polled(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    service = TrainingService(trainer)
    run = service.start(RunFolder.create(runs_dir, "a", RunConfig()))
    assert str(run.standing) == "starting"
    trainer.release(10)
    await until(lambda: service.poll() and run.state.step >= 20)
    assert str(run.standing) == "running"
    assert not run.pausing
    service.command("pause")
    assert run.pausing, "the same key asked twice is a pause and its end, however slow the trainer"
    trainer.release()
    await until(lambda: service.poll() and run.standing == "paused")
    assert run.pausing
    service.command("resume")
    assert not run.pausing
    service.stop()
    assert str(run.standing) == "stopping"
    trainer.release(2)
    await finish(service)
    assert run.standing == "stopped"
    assert run.resumable
    assert trainer.obeyed == ["pause", "resume", "stop"]
    assert service.training is None
    assert not service.busy


async def test_a_second_run_is_refused_while_one_is_in_training(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    service = TrainingService(trainer)
    service.start(RunFolder.create(runs_dir, "a", RunConfig()))
    with pytest.raises(RequestError, match="in training"):
        service.start(RunFolder.create(runs_dir, "b", RunConfig()))
    service.stop()
    trainer.release(2)
    await finish(service)
    service.start(RunFolder.open(runs_dir / "b"))
    service.stop()
    trainer.release(2)
    await finish(service)


@pytest.mark.parametrize("error", [RequestError("the corpus is gone"), ZeroDivisionError("oops")])
async def test_a_trainer_that_raises_leaves_a_problem(runs_dir: Path, error: Exception) -> None:
    def broken(folder: RunFolder, control: Control) -> Iterator[Event]:
        raise error
        yield

    service = TrainingService(broken)
    run = service.start(RunFolder.create(runs_dir, "a", RunConfig()))
    await finish(service)
    assert run.standing == "failed"
    assert str(error) in (run.problem or "")


async def test_a_run_in_another_process_is_followed(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(lines[:10]))
    service = TrainingService()
    with folder.lock():
        run = service.show(folder)
        assert str(run.standing) == "running"
        assert run.detached
        step = run.state.step
        # A torn line is read once it is whole.
        with folder.events_path.open("ab") as log:
            log.write(b"".join(lines[10:20]) + lines[20][:15])
        run.log.looked_at = 0.0
        assert service.poll()
        assert run.state.step > step
    run.log.looked_at = 0.0
    assert service.poll()
    assert run.standing == "interrupted"


async def test_a_run_in_another_process_is_commanded_through_its_folder(runs_dir: Path) -> None:
    folder = copy_recorded(runs_dir)
    lines = folder.events_path.read_bytes().splitlines(keepends=True)
    folder.events_path.write_bytes(b"".join(lines[:10]))
    service = TrainingService()
    with folder.lock():
        run = service.show(folder)
        service.command("save")
        service.command("stop")
        assert str(run.standing) == "stopping"
        assert CommandFolder(folder.path).take() == (["save", "stop"], [])
    service.command("save")  # nobody is there any more
    run.log.looked_at = 0.0
    service.poll()
    service.command("save")
    assert CommandFolder(folder.path).take()[1] == []


async def test_a_run_handed_over_is_followed_from_the_same_moment(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    service = TrainingService(trainer, start_process=Successor)
    folder = RunFolder.create(runs_dir, "a", RunConfig())
    run = service.start(folder)
    trainer.release(10)
    await until(lambda: service.poll() and run.state.step >= 20)
    service.hand_over()
    assert str(run.standing) == "detaching"
    run.control.put("hand_over")
    # The real trainer writes the log; its words are what is followed.
    handed = RunHandedOver(step=run.state.step, elapsed_seconds=1.0)
    log = b"".join(encode_event(event) for event in [*recorded_events()[:10], handed])
    folder.events_path.write_bytes(log)
    trainer.release(1)
    await finish(service)
    assert service.training is None
    assert not run.active
    assert service.shown is not None
    run = service.shown
    assert run.detached
    assert run.active
    assert str(run.standing) == "starting"
    with folder.lock():
        with folder.events_path.open("ab") as file:
            file.write(encode_event(recorded_events()[0]))
        run.log.looked_at = 0.0
        assert service.poll()
        assert str(run.standing) == "running"
    run.log.looked_at = 0.0
    service.poll()
    assert run.standing == "interrupted"


async def test_a_command_goes_to_the_run_on_show_and_to_no_other(runs_dir: Path) -> None:
    trainer = GatedTrainer(recorded_events())
    service = TrainingService(trainer)
    folder = RunFolder.create(runs_dir, "a", RunConfig())
    run = service.start(folder)
    recorded = service.show(copy_recorded(runs_dir))
    service.command("stop")  # nobody trains this one
    assert not (recorded.stopping or run.stopping)
    assert service.show(folder) is run
    service.command("stop")
    trainer.release(2)
    await finish(service)
    assert trainer.obeyed == ["stop"]


async def test_what_can_be_asked_depends_on_who_trains_the_run(runs_dir: Path) -> None:
    def abilities(run: RunHandle) -> dict[str, bool]:
        return {
            "command": run.can_command, "detach": run.can_detach,
            "take back": run.can_take_back, "resume": run.resumable,
        }  # fmt: skip

    nothing = dict.fromkeys(("command", "detach", "take back", "resume"), False)
    trainer = GatedTrainer(recorded_events())
    service = TrainingService(trainer)
    recorded = service.show(copy_recorded(runs_dir))
    assert abilities(recorded) == {**nothing, "resume": True}
    with recorded.folder.lock():
        elsewhere = service.show(recorded.folder)
        assert abilities(elsewhere) == {**nothing, "command": True, "take back": True}
    here = service.start(RunFolder.create(runs_dir, "a", RunConfig()))
    assert abilities(here) == {**nothing, "command": True, "detach": True}
    service.stop()
    assert abilities(here) == nothing
    trainer.release(2)
    await finish(service)
    assert abilities(here) == {**nothing, "resume": True}


def test_a_recorded_run_is_shown_as_it_ended(runs_dir: Path) -> None:
    run = TrainingService().show(copy_recorded(runs_dir))
    assert run.standing == "stopped"
    assert run.state.step == 437
    assert not TrainingService().busy


class Letters:
    """A model of one letter, which waits for the test before each."""

    step = 7
    block_size = 64
    vocabulary = "".join(map(chr, range(128)))

    def __init__(self) -> None:
        self.gate = threading.Semaphore(0)
        self.tokenizer = self

    def unknown(self, text: str) -> list[str]:
        return [c for c in dict.fromkeys(text) if not c.isascii()]

    def drop_unknown(self, text: str) -> str:
        return "".join(c for c in text if c.isascii())

    def stream(self, prompt: str, sampling: SamplingConfig) -> Iterator[str]:
        for _ in range(sampling.max_new_tokens):
            self.gate.acquire()
            yield "a"


async def test_text_streams_and_stops_within_a_character(tmp_path: Path) -> None:
    model = Letters()
    service = GenerationService(lambda path: model)
    service.generate(tmp_path, "x", SamplingConfig(max_new_tokens=100))
    model.gate.release(3)
    await until(lambda: service.status.characters == 3)
    assert service.drain() == "aaa"
    service.cancel()
    model.gate.release(1)
    await until(lambda: service.status.phase == "stopped")
    assert service.drain() == ""
    assert not service.busy


async def test_a_new_text_ends_the_one_before(tmp_path: Path) -> None:
    model = Letters()
    service = GenerationService(lambda path: model)
    service.generate(tmp_path, "x", SamplingConfig(max_new_tokens=100))
    model.gate.release(1)
    await until(lambda: service.status.characters == 1)
    service.generate(tmp_path, "y", SamplingConfig(max_new_tokens=2))
    model.gate.release(3)
    await until(lambda: service.status.phase == "done")
    assert service.drain() == "aa"


async def test_a_model_that_cannot_be_loaded_is_said(tmp_path: Path) -> None:
    def load(path: Path) -> Letters:
        raise RequestError("model.safetensors is damaged.")

    service = GenerationService(load)
    service.load(tmp_path)
    await until(lambda: service.status.phase == "failed")
    assert service.status.error == "model.safetensors is damaged."
