"""Event files that grow with a run: whole records, no step twice, no harm to the run."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.config.fields import with_settings
from megatron_model.events import schema as events
from megatron_model.events.tensorboard import (
    FOLDER,
    CurveLog,
    EventFile,
    cut_back,
    masked_crc,
    read_records,
)
from megatron_model.interop.event_files import read_scalars
from megatron_model.run.folder import RunFolder
from tests.model.helpers import tiny_config, train, train_and


def report(step: int, loss: float = 1.5) -> events.MetricsReported:
    return events.MetricsReported(
        step=step,
        time=1.7e9 + step,
        train_loss=loss,
        learning_rate=1e-3,
        gradient_norm=0.5,
        tokens_per_second=1000.0,
        elapsed_seconds=float(step),
    )


def started(step: int) -> events.RunStarted:
    return events.RunStarted(
        step=step,
        time=1.7e9 + step,
        name="a",
        corpus="a.txt",
        characters=1,
        vocabulary_size=1,
        parameters=1,
        steps=10,
        device="cpu",
    )


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def messages_in(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from (message for message, _ in read_records(file))


def losses(folder: Path) -> dict[int, float]:
    return {step: value for step, (_, value) in read_scalars(folder)["loss/train"].items()}


def test_the_checksum_is_that_of_the_format() -> None:
    # CRC-32C of "123456789" is 0xE3069283 (RFC 3720); masked as TFRecord does.
    crc = 0xE3069283
    assert masked_crc(b"123456789") == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def test_a_resume_goes_on_in_a_new_file_and_no_step_is_there_twice(tmp_path: Path) -> None:
    log = CurveLog(tmp_path / FOLDER)
    for event in [started(0), report(1), report(2), report(3, 9.0), report(4, 9.0)]:
        log.record(event)
    log.close()
    again = CurveLog(tmp_path / FOLDER)
    for event in [started(2), report(3, 1.0), report(4, 1.1)]:
        again.record(event)
    again.close()
    first, second = files_in(tmp_path / FOLDER)
    assert len(list(messages_in(first))) == 1 + 2 * 4
    assert len(list(messages_in(second))) == 2 + 2 * 4
    assert losses(tmp_path / FOLDER) == pytest.approx({1: 1.5, 2: 1.5, 3: 1.0, 4: 1.1})


@pytest.mark.parametrize("cut", [1, 5, 11, 13, 30])
def test_a_torn_file_is_cut_to_whole_records(tmp_path: Path, cut: int) -> None:
    file = EventFile(tmp_path, step=0, moment=1.7e9)
    file.write(report(1))
    whole = file.path.stat().st_size
    file.write(report(2))
    file.close()
    os.truncate(file.path, whole + cut)
    cut_back(tmp_path, 10)
    assert file.path.stat().st_size == whole
    assert losses(tmp_path) == {1: 1.5}


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    for name in ("events.out.tfevents.17.host.5", "notes.txt"):
        (tmp_path / name).write_bytes(b"not ours")
    (tmp_path / "events.out.tfevents.1700000000.megatron.000").symlink_to(tmp_path / "notes.txt")
    cut_back(tmp_path, 0)
    assert (tmp_path / "notes.txt").read_bytes() == b"not ours"
    assert (tmp_path / "events.out.tfevents.17.host.5").read_bytes() == b"not ours"


def test_numbers_that_only_a_damaged_log_has_are_written(tmp_path: Path) -> None:
    file = EventFile(tmp_path, step=0, moment=1.7e9)
    file.write(report(-3, 1e300))
    file.write(events.SampleGenerated(step=1, prompt="", text="\ud800\x00"))
    file.close()
    cut_back(tmp_path, 5)
    messages = list(messages_in(file.path))
    assert len(messages) == 6
    assert struct.pack("<f", float("inf")) in messages[1]


def test_a_run_writes_along_and_a_resumed_one_goes_on(runs_dir: Path, corpus: Path) -> None:
    config = tiny_config({"data.corpus": str(corpus), "training.tensorboard": "on"})
    folder = RunFolder.create(runs_dir, "along", config)
    train_and(folder, lambda event: event.step == 11, "abort")  # the last checkpoint is of step 10
    assert max(losses(folder.path / FOLDER)) == 10
    train(folder)
    state = folder.state()
    assert losses(folder.path / FOLDER) == pytest.approx(
        dict(zip(state.train_loss.steps, state.train_loss.values, strict=True))
    )
    assert len(files_in(folder.path / FOLDER)) == 2


def test_a_run_writes_none_unless_it_is_told_to(finished_run: RunFolder) -> None:
    assert not (finished_run.path / FOLDER).exists()


def test_a_lost_folder_costs_the_curves_and_is_said_once(runs_dir: Path, corpus: Path) -> None:
    config = tiny_config({"data.corpus": str(corpus), "training.tensorboard": "on"})
    folder = RunFolder.create(runs_dir, "lost", config)
    (folder.path / FOLDER).write_text("in the way")
    happened = train(folder)
    assert isinstance(happened[-1], events.RunFinished)
    said = [e.text for e in happened if isinstance(e, events.Notice) and "TensorBoard" in e.text]
    assert len(said) == 1
    assert "the run trains on" in said[0]


def test_a_deleted_file_costs_the_curves(runs_dir: Path, corpus: Path) -> None:
    from megatron_model.run.control import Control
    from megatron_model.run.runner import run_training

    config = tiny_config({"data.corpus": str(corpus), "training.tensorboard": "on"})
    folder = RunFolder.create(runs_dir, "deleted", config)
    happened = []
    for event in run_training(folder, Control()):
        happened.append(event)
        if isinstance(event, events.MetricsReported) and event.step == 4:
            for path in files_in(folder.path / FOLDER):
                path.unlink()
    assert isinstance(happened[-1], events.RunFinished)
    said = [e.text for e in happened if isinstance(e, events.Notice) and "TensorBoard" in e.text]
    assert len(said) == 1
    assert "it was deleted" in said[0]


def test_a_full_disk_leaves_whole_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = CurveLog(tmp_path)
    log.record(started(0))
    log.record(report(1))
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        return real(descriptor, data[: len(data) // 2])

    def none(descriptor: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for full in (half, none):
        monkeypatch.setattr(os, "write", full)
        log.record(report(2))
    monkeypatch.setattr(os, "write", real)
    log.record(report(3))
    log.close()
    assert losses(tmp_path) == {1: 1.5, 3: 1.5}


def test_a_resume_may_turn_it_on(run_copy: RunFolder) -> None:
    config = with_settings(
        run_copy.read_config(), {"training.tensorboard": "on", "training.steps": 22}
    )
    from megatron_model.run.control import Control
    from megatron_model.run.runner import run_training

    list(run_training(run_copy, Control(), config=config))
    assert min(losses(run_copy.path / FOLDER)) > 18
