"""Curves out and in: a table, TensorBoard's files, and what of others' is understood."""

from __future__ import annotations

import csv
import math
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_model.events import schema as events
from megatron_model.events.schema import encode_event
from megatron_model.events.tensorboard import FOLDER, masked_crc
from megatron_model.interop.curves_in import import_curves, read_csv, read_tensorboard
from megatron_model.interop.curves_out import COLUMNS, write_csv, write_tensorboard
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder, find_model, list_runs
from megatron_model.run.runner import run_training
from megatron_model.util.errors import RequestError
from tests.model.helpers import recorded, tiny_config, train, train_and


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_table_has_a_row_a_step_and_nothing_where_nothing_was_measured(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    out = tmp_path / "curves.csv"
    count = write_csv(finished_run, out)
    rows, state = rows_of(out), finished_run.state()
    assert len(rows) == count
    assert list(rows[0]) == list(COLUMNS.values())
    train, val = (COLUMNS[name] for name in ("train_loss", "val_loss"))
    assert {int(r["step"]): float(r[train]) for r in rows if r[train]} == dict(
        zip(state.train_loss.steps, state.train_loss.values, strict=True)
    )
    assert {int(r["step"]): float(r[val]) for r in rows if r[val]} == dict(
        zip(state.val_loss.steps, state.val_loss.values, strict=True)
    )
    assert any(not row[val] for row in rows)


def test_steps_that_a_resume_took_back_are_left_out(runs_dir: Path, run_copy: RunFolder) -> None:
    first = run_copy.read_events()[0]
    start = next(event for event in first if isinstance(event, events.RunStarted))
    with run_copy.events_path.open("ab") as log:
        for event in (
            events.RunStarted(
                **{f: getattr(start, f) for f in start.__struct_fields__} | {"step": 10}
            ),
            *[e for e in first if isinstance(e, events.Evaluated) and e.step == 18],
        ):
            log.write(encode_event(event))
    write_csv(run_copy, runs_dir / "back.csv")
    steps = [int(row["step"]) for row in rows_of(runs_dir / "back.csv")]
    assert steps == sorted(set(steps))
    assert [step for step in steps if step > 10] == [18]


def test_a_run_without_a_loss_has_no_curves(runs_dir: Path, config: object, tmp_path: Path) -> None:
    folder = RunFolder.create(runs_dir, "new", config)  # type: ignore[arg-type]
    for write in (write_csv, write_tensorboard):
        with pytest.raises(RequestError, match="has no curves yet"):
            write(folder, tmp_path / "out")


def test_two_runs_are_not_written_into_one_folder(finished_run: RunFolder, tmp_path: Path) -> None:
    write_tensorboard(finished_run, tmp_path / "out")
    with pytest.raises(RequestError, match="has event files already"):
        write_tensorboard(finished_run, tmp_path / "out")


@pytest.mark.parametrize("kind", ["csv", "tensorboard"])
def test_what_goes_out_comes_in_again(
    finished_run: RunFolder, runs_dir: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    if kind == "csv":
        write_csv(finished_run, out)
        curves = read_csv(out)
    else:
        write_tensorboard(finished_run, out)
        curves = read_tensorboard(out)
    folder = import_curves(runs_dir, "theirs", out, curves)
    ours, theirs = finished_run.state(), folder.state()
    for name in ("train_loss", "val_loss", "learning_rate", "gradient_norm", "speed"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert b.steps == a.steps
        assert b.values == pytest.approx(a.values, rel=1e-6)
    assert theirs.status == "finished"
    assert theirs.best_step == ours.best_step
    if kind == "csv":
        assert theirs.elapsed_seconds == ours.val_loss.seconds[-1]


def test_an_imported_run_is_listed_and_has_no_weights(runs_dir: Path, tmp_path: Path) -> None:
    table = tmp_path / "loss.csv"
    table.write_text("iter,loss\n0,4.5\n10,3.5\n")
    folder = import_curves(runs_dir, "theirs", table, read_csv(table))
    assert [run.name for run in list_runs(runs_dir)] == ["theirs"]
    assert folder.read_imported() == str(table)
    with pytest.raises(RequestError, match='"theirs" was imported: it has curves, but neither'):
        find_model("theirs", runs_dir)
    with pytest.raises(RequestError, match="neither weights nor settings"):
        list(run_training(folder, Control()))
    assert [type(event).__name__ for event in folder.read_events()[0]] == [
        "RunStarted",
        "Notice",
        "MetricsReported",
        "MetricsReported",
        "RunFinished",
    ]
    assert recorded(folder.read_events()[0]) == folder.read_events()[0]
    again = tmp_path / "again.csv"
    write_csv(folder, again)
    assert {row[COLUMNS["learning_rate"]] for row in rows_of(again)} == {""}


TABLES = {
    "a tracker's": (
        '"Step","sun-3 - train/loss","sun-3 - train/loss__MIN","sun-3 - val/loss"\n'
        "0,4.2,4.2,\n100,2.5,2.4,2.6\n",
        {0: 4.2, 100: 2.5},
        {100: 2.6},
    ),
    "semicolons": (
        "Iteration;Training Loss;Eval Loss\n1;2,5;\n2;2,25;3,5\n",
        {1: 2.5, 2: 2.25},
        {2: 3.5},
    ),
    "lightning": (
        "epoch,lr-AdamW,step,train_loss_step,valLoss\n0,1e-3,49,1.5,\n0,,99,,1.25\n",
        {49: 1.5},
        {99: 1.25},
    ),
    "tensorboard's": (
        "Wall time,Step,Value\n1700000000.5,1,3.0\n1700000002.5,2,2.0\n",
        {1: 3.0, 2: 2.0},
        {},
    ),
    "not measured": ("\ufeffstep\tloss [nats]\tmfu\n1\tNaN\t0.1\n2\t1.5\t0.2\n\n", {2: 1.5}, {}),
    "backwards": ("step,loss\n5,1.0\n3,2.0\n5,0.5\n", {3: 2.0, 5: 0.5}, {}),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_others_are_understood(name: str, runs_dir: Path, tmp_path: Path) -> None:
    text, train, val = TABLES[name]
    table = tmp_path / "their.csv"
    table.write_text(text, encoding="utf-8")
    state = import_curves(runs_dir, "theirs", table, read_csv(table)).state()
    assert dict(zip(state.train_loss.steps, state.train_loss.values, strict=True)) == train
    assert dict(zip(state.val_loss.steps, state.val_loss.values, strict=True)) == val


def test_it_says_which_columns_it_found(tmp_path: Path) -> None:
    table = tmp_path / "their.csv"
    table.write_text("step,loss,lr,\x1b[2Jmfu\n1,2,3,4\n")
    sentence = read_csv(table).sentence()
    assert sentence == (
        'train loss from "loss" (1 point), learning rate from "lr" (1 point); '
        'not used: "\ufffd[2Jmfu"'
    )


BAD_TABLES = {
    "no steps": ("time,loss\n1,2\n", "no column of steps"),
    "no loss": ("step,accuracy\n1,2\n", "no column with a loss"),
    "words": ("step,loss\n1,2.5\n2,much\n", 'line 3: "much" is not a number'),
    "half a step": ("step,loss\n1.5,2\n", "1.5 cannot be a step"),
    "before the start": ("step,loss\n-1,2\n", "-1 cannot be a step"),
    "empty": ("", "no column of steps"),
    "no rows": ("step,loss\n", "no step with a loss"),
    "a long cell": ("step,loss\n1," + "9" * 200_000 + "\n", "is not a table"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_get_a_sentence_and_leave_no_run(
    name: str, runs_dir: Path, tmp_path: Path
) -> None:
    text, words = BAD_TABLES[name]
    table = tmp_path / "their.csv"
    table.write_text(text)
    with pytest.raises(RequestError, match=words):
        import_curves(runs_dir, "theirs", table, read_csv(table))
    assert list_runs(runs_dir) == []


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    for name, words in (("binary.csv", "UTF-8"), ("gone.csv", "No such file"), (".", "a folder")):
        with pytest.raises(RequestError, match=words):
            read_csv(tmp_path / name)


def test_event_files_that_are_damaged_give_their_whole_part(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    write_tensorboard(finished_run, tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    whole = read_tensorboard(tmp_path).rows

    def harm(change: Callable[[bytearray], object]) -> None:
        harmed = bytearray(data)
        change(harmed)
        path.write_bytes(bytes(harmed))

    for place in range(60, len(data), 997):
        harm(lambda harmed, place=place: harmed.__setitem__(place, harmed[place] ^ 0x55))  # type: ignore[misc]
        try:
            rows = read_tensorboard(tmp_path).rows
        except RequestError:
            continue
        assert rows.keys() <= whole.keys()
    path.write_bytes(data[: len(data) // 2])
    assert read_tensorboard(tmp_path).rows.keys() < whole.keys()


def test_messages_of_any_kind_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1.them"
    with path.open("wb") as file:
        for message in (b"\x2a", b"\x2a\xff\xff\xff\xff\x0f", b"\x0b\x0c", b"\xff" * 40, b""):
            head = struct.pack("<Q", len(message))
            file.write(head + struct.pack("<I", masked_crc(head)))
            file.write(message + struct.pack("<I", masked_crc(message)))
    with pytest.raises(RequestError, match="no scalar with a loss"):
        read_tensorboard(tmp_path)


def test_pictures_between_the_scalars_are_passed_over(
    finished_run: RunFolder, tmp_path: Path
) -> None:
    write_tensorboard(finished_run, tmp_path)
    (path,) = tmp_path.iterdir()
    before, data = read_tensorboard(tmp_path).rows, path.read_bytes()
    head = struct.pack("<Q", 1 << 20)
    picture = head + struct.pack("<I", masked_crc(head)) + bytes((1 << 20) + 4)
    path.write_bytes(picture + data + picture)
    assert read_tensorboard(tmp_path).rows == before


def test_folders_without_one_run_are_refused(finished_run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no event files"):
        read_tensorboard(tmp_path)
    write_tensorboard(finished_run, tmp_path / "a")
    assert read_tensorboard(tmp_path).rows
    write_tensorboard(finished_run, tmp_path / "b")
    with pytest.raises(RequestError, match="several runs: a, b"):
        read_tensorboard(tmp_path)


def test_the_verbs_do_it(finished_run: RunFolder, runs_dir: Path, tmp_path: Path) -> None:
    def verb(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "megatron_model", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    out, board = str(tmp_path / "out.csv"), str(tmp_path / "board")
    done = verb("export", str(finished_run.path), "--csv", out, "--tensorboard", board)
    assert (done.returncode, done.stdout) == (0, "")
    assert verb("import", "--tensorboard", board).returncode == 0
    done = verb("import", "--csv", out, "--name", "theirs")
    assert (done.returncode, done.stdout) == (0, "")
    assert 'train loss from "train_loss [nats/character]" (9 points)' in done.stderr
    assert {run.name for run in list_runs(runs_dir)} == {"theirs", "board"}
    done = verb("sample", "theirs")
    assert done.returncode == 2
    assert done.stderr.strip().endswith(
        '"theirs" was imported: it has curves, but neither weights nor settings.'
    )
    for words in (["import"], ["export", str(finished_run.path)]):
        done = verb(*words)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_tensorboard_itself_reads_the_same(run_copy: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_tensorboard(run_copy, tmp_path)
    read = EventAccumulator(str(tmp_path))
    read.Reload()
    state = run_copy.state()
    for tag, series in (
        ("loss/train", state.train_loss),
        ("loss/validation", state.val_loss),
        ("learning_rate", state.learning_rate),
        ("gradient_norm", state.gradient_norm),
        ("characters_per_second", state.speed),
    ):
        points = read.Scalars(tag)
        assert [point.step for point in points] == series.steps
        assert [point.value for point in points] == pytest.approx(series.values, rel=1e-6)
    bits = [point.value for point in read.Scalars("bits_per_character")]
    assert bits == pytest.approx([value / math.log(2) for value in state.val_loss.values])
    texts = [
        (tensor.step, tensor.tensor_proto.string_val[0].decode())
        for tensor in read.Tensors("sample/text_summary")
    ]
    assert texts == [
        (s.step, "    " + (s.prompt + s.text).replace("\n", "\n    ")) for s in state.samples
    ]


@pytest.mark.slow
def test_tensorboard_itself_sees_no_step_of_a_resumed_run_twice(
    runs_dir: Path, corpus: Path
) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = tiny_config({"data.corpus": str(corpus), "training.tensorboard": "on"})
    folder = RunFolder.create(runs_dir, "along", config)
    train_and(folder, lambda event: event.step == 13, "abort")
    train(folder)
    read = EventAccumulator(str(folder.path / FOLDER))
    read.Reload()
    state = folder.state()
    assert [point.step for point in read.Scalars("loss/train")] == state.train_loss.steps
    assert [point.step for point in read.Scalars("loss/validation")] == state.val_loss.steps


@pytest.mark.slow
def test_what_torch_writes_comes_in(runs_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path / "theirs")) as writer:
        for step in range(5):
            writer.add_scalar("train/loss", 4.0 - step, step, new_style=step % 2 == 0)
        writer.add_scalar("val/loss", 2.5, 4, double_precision=True)
        writer.add_text("note", "x" * 100_000)
    curves = read_tensorboard(tmp_path / "theirs")
    state = import_curves(runs_dir, "theirs", tmp_path / "theirs", curves).state()
    assert state.train_loss.values == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert state.val_loss.values == [2.5]
