"""The queue: its order, what can be done with an entry, and files that are no entries."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
from msgspec import structs

from megatron_model.cli.verbs.queue import EXAMPLES
from megatron_model.config.fields import RunConfig, all_fields, with_settings
from megatron_model.queue import Queue, QueueEntry
from megatron_model.queue.devices import DeviceLocks, devices_of, let_go
from megatron_model.queue.entry import LARGEST
from megatron_model.queue.keeper import Keeper
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from tests.model.cli.test_cli import Run, assert_refused, run

__all__ = ["run"]  # a fixture


@pytest.fixture
def queue(runs_dir: Path) -> Queue:
    return Queue(runs_dir)


def line(queue: Queue) -> list[int]:
    return [entry.id for entry in queue.entries() if entry.waits]


def fill(queue: Queue, config: RunConfig, count: int) -> None:
    for number in range(count):
        queue.add(config, name=f"run-{number}")


def test_an_entry_holds_the_whole_request(queue: Queue, config: RunConfig) -> None:
    asked = with_settings(config, {"training.learning_rate": 0.0123})
    entry = queue.add(asked, name="one", tags=("sweep", "sweep"), on_interruption="mark")
    (read,) = queue.entries()
    assert read == entry
    assert read.config == asked
    assert (read.id, read.name, read.state, read.tags) == (1, "one", "waiting", ("sweep",))
    assert read.on_interruption == "mark"
    assert queue.file(1).stat().st_mode & 0o077 == 0


def test_what_cannot_be_asked_is_refused_and_nothing_is_written(
    queue: Queue, config: RunConfig
) -> None:
    gone = with_settings(config, {"data.corpus": "/nowhere/tale.txt"})
    with pytest.raises(RequestError, match=r"tale\.txt"):
        queue.add(gone)
    with pytest.raises(RequestError, match="cannot be a run name"):
        queue.add(config, name="../out")
    with pytest.raises(RequestError, match="cannot be a tag"):
        queue.add(config, tags=("no tag",))
    assert queue.entries() == []


def test_entries_move_and_keep_their_order(queue: Queue, config: RunConfig) -> None:
    fill(queue, config, 4)
    queue.move(4, 1)
    assert line(queue) == [4, 1, 2, 3]
    queue.move(4, 3)
    assert line(queue) == [1, 2, 4, 3]
    queue.move(1, 999)
    assert line(queue) == [2, 4, 3, 1]
    queue.move(3, 0)
    assert line(queue) == [3, 2, 4, 1]


def test_moving_between_the_same_two_never_runs_out_of_room(
    queue: Queue, config: RunConfig
) -> None:
    fill(queue, config, 3)
    expected = [1, 2, 3]
    for _ in range(130):  # more than a number has binary places
        moved = expected.pop()
        expected.insert(1, moved)
        queue.move(moved, 2)
        assert line(queue) == expected


def test_held_released_tried_again_and_removed(queue: Queue, config: RunConfig) -> None:
    fill(queue, config, 2)
    assert queue.hold(1).state == "held"
    assert line(queue) == [1, 2], "it keeps its place"
    assert queue.release(1).state == "waiting"
    with pytest.raises(RequestError, match="has not ended"):
        queue.retry(1)
    queue.change(1, lambda each: structs.replace(each, state="failed", problem="no", stalls=2))
    for refused in (queue.hold, queue.release):
        with pytest.raises(RequestError, match=r"Entry 1 \(failed\) cannot be"):
            refused(1)
    again = queue.retry(1)
    assert (again.state, again.problem, again.stalls) == ("waiting", "", 0)
    assert line(queue) == [2, 1]
    queue.change(2, lambda each: structs.replace(each, state="running"))
    for refuse in (queue.remove, queue.hold, queue.retry):
        with pytest.raises(RequestError, match="Entry 2"):
            refuse(2)
    queue.remove(1)
    with pytest.raises(RequestError, match="no entry 1"):
        queue.remove(1)
    assert [each.id for each in queue.entries()] == [2]


def damage(path: Path, kind: str) -> None:
    good = json.loads(path.read_bytes())
    path.unlink()
    if kind == "torn":
        path.write_text(json.dumps(good)[:-40])
    elif kind == "deep":
        path.write_text("[" * 100_000)
    elif kind == "huge":
        path.write_text(json.dumps({**good, "name": "x" * LARGEST}))
    elif kind == "link":
        elsewhere = path.with_name("elsewhere")
        elsewhere.write_text(json.dumps(good))
        path.symlink_to(elsewhere)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "binary":
        path.write_bytes(b"\xff\x00\x1b[2J" * 10)
    else:
        change = json.loads(kind)
        path.write_text(json.dumps({**good, **change}))


@pytest.mark.parametrize(
    "kind",
    [
        "torn", "deep", "huge", "link", "device", "pipe", "binary",
        '{"run": "../../out"}', '{"name": "--resume"}', '{"state": "perhaps"}', '{"order": "x"}',
        '{"config": {"model": {"layers": 100000000}}}', '{"config": null}', '{"tags": ["\\u001b"]}',
        '{"config": {"data": {"corpus": ""}}}', '{"stalls": 1e99}',
    ],
)  # fmt: skip
def test_a_damaged_entry_is_the_only_one_that_is_lost(
    queue: Queue, config: RunConfig, kind: str
) -> None:
    fill(queue, config, 3)
    damage(queue.file(2), kind)
    bad = queue.entry(2)
    assert bad.state == "damaged"
    assert "2.json is no entry of a queue: " in bad.problem
    assert "\x1b" not in bad.problem
    assert line(queue) == [1, 3]
    assert queue.add(config).id == 4
    queue.move(4, 1)
    assert line(queue) == [4, 1, 3]
    for refused in (queue.hold, queue.retry):
        with pytest.raises(RequestError, match="damaged"):
            refused(2)
    queue.remove(2)
    assert line(queue) == [4, 1, 3]


def test_what_else_lies_in_the_folder_is_no_entry(queue: Queue, config: RunConfig) -> None:
    fill(queue, config, 1)
    for name in ("0.json", "01.json", "a.json", "9999999999.json", "1.json.tmp", ".2.json.9.tmp"):
        (queue.path / name).write_text("{")
    assert [each.id for each in queue.entries()] == [1]


def test_a_queue_that_is_a_link_is_not_followed(queue: Queue, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    queue.runs_dir.mkdir()
    queue.path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RequestError, match="is a link"):
        queue.entries()


def _add(runs_dir: Path, config: RunConfig) -> None:
    for _ in range(10):
        Queue(runs_dir).add(config)


def test_two_processes_that_add_at_once_lose_nothing(queue: Queue, config: RunConfig) -> None:
    start = multiprocessing.get_context("spawn").Process
    both = [start(target=_add, args=(queue.runs_dir, config)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [each.id for each in queue.entries()] == list(range(1, 21))


def test_the_devices_of_a_run(config: RunConfig) -> None:
    def of(device: str, count: int = 1) -> set[str]:
        changes = {"training.device": device, "training.devices": count}
        return set(devices_of(with_settings(config, changes)))

    assert of("cpu") == of("cpu", 2) == {"cpu"}
    assert of("cuda") == of("cuda:0") == {"cuda:0"}
    assert of("cuda:3") == {"cuda:3"}
    assert of("cuda", 2) == {"cuda:0", "cuda:1"}


def test_a_device_is_held_by_one(tmp_path: Path) -> None:
    locks, others = DeviceLocks(tmp_path), DeviceLocks(tmp_path)
    taken = locks.take(["cuda:0", "cuda:1"])
    assert taken is not None
    assert others.take(["cuda:1"]) is None
    assert others.take(["cpu", "cuda:0"]) is None
    assert others.are_free(["cpu", "cuda:2"]), "what was taken beside it was let go"
    let_go(taken)
    assert others.are_free(["cuda:0", "cuda:1"])


def test_nothing_is_begun_while_somebody_trains_on_the_device(
    queue: Queue, config: RunConfig
) -> None:
    fill(queue, config, 1)
    other = RunFolder.create(queue.runs_dir, "by-hand", config)
    said: list[str] = []
    with other.lock():
        keeper = Keeper(queue, said.append)
        keeper.look()
        keeper.look()
    assert said == ["waiting: by-hand trains on cpu"]
    assert queue.entry(1).state == "waiting"


def test_two_entries_never_begin_under_one_name(queue: Queue, config: RunConfig) -> None:
    """On two devices both can be about to make their folders."""
    for device in ("cpu", "cuda"):
        queue.add(with_settings(config, {"training.device": device}), name="same")
    queue.change(2, lambda each: structs.replace(each, state="running", run="same"))
    taken = DeviceLocks(queue.path).take(["cuda:0"])  # by the trainer of the second
    assert taken is not None
    Keeper(queue, print).look()
    let_go(taken)
    assert [entry.state for entry in queue.entries()] == ["running", "waiting"]


def conclude(queue: Queue, entry: QueueEntry, said: list[str]) -> QueueEntry:
    """Let a keeper find an entry that runs, and whose trainer is gone."""
    with queue.locked():
        queue.write(structs.replace(entry, state="running"))
    keeper = Keeper(queue, said.append)
    (blocker,) = [RunFolder.create(queue.runs_dir, f"blocker-{len(said)}", entry.config)]
    with blocker.lock():  # nothing is to be begun here
        keeper.look()
    return queue.entry(entry.id)


def test_what_became_of_a_run_is_read_from_its_folder(
    queue: Queue, run_copy: RunFolder, config: RunConfig
) -> None:
    entry = queue.add(config, name="tale", tags=("sweep",))
    identity = run_copy.read_identity()
    entry = structs.replace(entry, run=run_copy.name, identity=identity)
    assert conclude(queue, entry, []).state == "done"

    log = run_copy.events_path
    whole = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(whole[:-1]))  # killed
    found = conclude(queue, entry, ["-"])
    assert (found.state, found.run) == ("waiting", run_copy.name)
    marked = structs.replace(entry, on_interruption="mark")
    found = conclude(queue, marked, ["-", "-"])
    assert found.state == "failed"
    assert found.problem.startswith("It was interrupted at step 18")

    stalled = structs.replace(entry, reached=18, stalls=2)
    found = conclude(queue, stalled, ["-"] * 3)
    assert found.state == "failed"
    assert found.problem == "It ended without a word 3 times at step 18."

    queue.log(entry.id).write_text("a line\nmegatron-model: The corpus is \x1b[2Jgone.\n")
    found = conclude(queue, entry, ["-"] * 4)
    assert (found.state, found.problem) == ("failed", "The corpus is \ufffd[2Jgone.")


def test_a_run_of_the_same_name_is_not_taken_for_its_own(
    queue: Queue, run_copy: RunFolder, config: RunConfig
) -> None:
    entry = structs.replace(queue.add(config), run=run_copy.name, identity="0" * 16)
    found = conclude(queue, entry, [])
    assert found.state == "waiting"
    (folder,) = [RunFolder(queue.runs_dir / run_copy.name)]
    assert folder.read_identity() != found.identity


def test_the_verb_adds_lists_and_changes(run: Run, corpus: Path, runs_dir: Path) -> None:
    add = ("queue", "add", str(corpus), "--preset", "smoke", "--hold")
    assert run(*add, "--tag", "sweep", "--max-seconds", "9", "--name", "first").status == 0
    assert run(*add, "--set", "model.layers=1").status == 0
    rows = [json.loads(row) for row in run("queue", "list", "--json").out.splitlines()]
    assert [row["name"] for row in rows] == ["first", "tale-smoke"]
    assert [row["place"] for row in rows] == [1, 2]
    assert rows[0]["tags"] == ["sweep"]
    first, second = Queue(runs_dir).entries()
    assert first.config.training.max_seconds == 9
    assert second.config.model.layers == 1
    assert run("queue", "move", "2", "1").status == 0
    assert line(Queue(runs_dir)) == [2, 1]
    assert run("queue", "remove", "1", "2").status == 0
    assert run("queue", "list").out == ""
    assert run("queue", "keep").status == 0, "with nothing to do it ends"


@pytest.mark.parametrize(
    "words",
    [
        ("add",), ("add", "/nowhere.txt"), ("add", "a", "b"), ("list", "3"), ("move", "1"),
        ("hold",), ("hold", "one"), ("remove", "7"), ("move", "1", "-1"), ("retry", "9" * 40),
        ("add", "builtin:nothing"),
    ],
)  # fmt: skip
def test_the_verb_refuses_in_one_sentence(run: Run, runs_dir: Path, words: tuple[str, ...]) -> None:
    assert_refused(run("queue", *words))
    assert not list(runs_dir.glob(".queue/*.json"))


def test_the_words_for_the_trainer_mean_the_same_run(queue: Queue, config: RunConfig) -> None:
    odd = with_settings(config, {"training.learning_rate": 1.23e-5, "training.seed": 77})
    entry = queue.add(odd, name="tale")
    words = Keeper(queue, print).command(structs.replace(entry, run="tale"))
    changes = dict(word[6:].split("=", 1) for word in words if word.startswith("--set="))
    assert changes.keys() == all_fields().keys() - {"data.corpus"}
    assert with_settings(RunConfig(data=odd.data), changes) == odd
    assert words[-2:] == ["--", odd.data.corpus], "a corpus is never taken for an option"


def test_the_examples_name_doings_that_there_are() -> None:
    assert {row.split()[2] for row in EXAMPLES.splitlines()} <= {
        "add",
        "list",
        "move",
        "hold",
        "retry",
    }


def test_a_file_is_read_anew_when_it_was_written_anew(queue: Queue, config: RunConfig) -> None:
    entry = queue.add(config, name="first")
    queue.add(config, name="second")
    for number in (1, 2):  # written long ago
        os.utime(queue.file(number), (1_000_000_000, 1_000_000_000))
    first = queue.entries()
    again = queue.entries()
    assert all(one is other for one, other in zip(first, again, strict=True))
    Queue(queue.runs_dir).hold(entry.id)
    assert [each.state for each in queue.entries()] == ["held", "waiting"]
    Queue(queue.runs_dir).remove(2)
    assert [each.id for each in queue.entries()] == [1]
    queue.file(1).write_text("no entry")
    assert [each.state for each in queue.entries()] == ["damaged"]


def test_of_several_entries_all_are_added_or_none(queue: Queue, config: RunConfig) -> None:
    good = QueueEntry(name="good", config=config)
    with pytest.raises(RequestError, match="run name"):
        queue.add_all([good, QueueEntry(name="../bad", config=config)])
    assert queue.entries() == []
    added = queue.add_all([good, good])
    assert [entry.id for entry in added] == [1, 2]
    assert queue.entries() == added
