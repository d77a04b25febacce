"""The verbs that list, show, mark, fork, rename and delete runs, and change one in training."""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.cli.parser import VERBS, parse, verb_of
from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import (
    MetricsReported,
    RunHandedOver,
    SettingChanged,
    StepCompleted,
    encode_event,
)
from megatron_model.run import lock
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import Control
from megatron_model.run.folder import LOCK_FILE, RunFolder
from megatron_model.run.runner import run_training
from tests.model.cli.test_cli import Run, assert_refused, contents, run

__all__ = ["run"]  # a fixture


@pytest.fixture
def three(run_copy: RunFolder) -> list[RunFolder]:
    """The finished run, a copy of it with other figures, and one that has not begun."""
    better = RunFolder(run_copy.path.with_name("better"))
    shutil.copytree(run_copy.path, better.path)
    lines = better.events_path.read_text().splitlines(keepends=True)
    for index, line in enumerate(lines):
        if '"evaluated"' in line:
            record = json.loads(line)
            lines[index] = json.dumps({**record, "val_loss": record["val_loss"] - 1}) + "\n"
    better.events_path.write_text("".join(lines))
    new = RunFolder.create(run_copy.path.parent, "a-new-one", run_copy.read_config())
    return [run_copy, better, new]


@pytest.fixture
def in_training(run_copy: RunFolder) -> Iterator[RunFolder]:
    with run_copy.lock():
        yield run_copy


def names(result: str) -> list[str]:
    return [line.split()[0] for line in result.splitlines()]


# runs


def test_runs_are_sorted_and_those_without_a_value_come_last(
    run: Run, three: list[RunFolder]
) -> None:
    old, better, new = (each.name for each in three)
    assert names(run("runs", "--sort", "val").out) == [better, old, new]
    assert names(run("runs", "--sort", "val", "--reverse").out) == [old, better, new]
    assert names(run("runs", "--sort", "name").out) == sorted([old, better, new])
    assert names(run("runs", "--reverse").out) == names(run("runs").out)[::-1]
    assert_refused(run("runs", "--sort", "vall"), 'no "vall"', 'Did you mean "val"?')


def test_runs_are_filtered(run: Run, three: list[RunFolder]) -> None:
    old, better, new = (each.name for each in three)
    best = three[0].state().best_val_loss
    assert names(run("runs", "--filter", f"val<{best}").out) == [better]
    assert names(run("runs", "--filter", "status=new or name~BETT", "--sort", "name").out) == [
        new,
        better,
    ]
    assert run("runs", "--filter", "model.layers=2 and corpus~tale", "--names").out.split() == [
        each.name for each in sorted(three, key=lambda e: names(run("runs").out).index(e.name))
    ]
    assert run("runs", "--filter", "model.layers>2") == (0, "", "")
    assert_refused(run("runs", "--filter", "val<"), "character 5")


def test_a_run_says_what_it_takes_and_what_was_said_of_it(run: Run, run_copy: RunFolder) -> None:
    assert run("tag", run_copy.name, "+good", "+paper") == (0, "", "")
    assert run("note", run_copy.name, "the first\nof all") == (0, "", "")
    row = json.loads(run("runs", "--json").out)
    files = (path for path in run_copy.path.rglob("*") if path.is_file())
    assert row["size"] == sum(path.stat().st_size for path in files)
    assert (row["tags"], row["note"]) == (["good", "paper"], "the first\nof all")
    assert row["corpus"] == run_copy.read_config().data.corpus
    assert run("runs").out.rstrip().endswith("good paper")
    assert run("runs", "--filter", "tag=good and note~ALL and size<1GB").out != ""


def test_what_cannot_be_read_can_still_be_filtered(run: Run, three: list[RunFolder]) -> None:
    path = three[0].events_path
    path.unlink()
    path.mkdir()
    assert names(run("runs", "--filter", "status=unreadable").out) == [three[0].name]
    (three[1].path / "run.toml").write_text("[")
    kept = run("runs", "--filter", "model.layers!=99", "--sort", "model.layers")
    assert kept.status == 0
    assert set(names(kept.out)) == {each.name for each in three}


# show


def test_every_metric_is_shown_at_a_step(run: Run, run_copy: RunFolder) -> None:
    events = run_copy.read_events()[0]
    reports = {event.step: event for event in events if isinstance(event, MetricsReported)}
    shown = json.loads(run("show", run_copy.name, "--at", "11", "--json").out)
    metrics = shown["metrics"]
    assert metrics["train_loss"]["step"] == 10
    assert metrics["train_loss"]["value"] == reports[10].train_loss
    assert metrics["learning_rate"]["value"] == reports[10].learning_rate
    assert metrics["gradient_norm"]["value"] == reports[10].gradient_norm
    assert metrics["speed"]["value"] == reports[10].tokens_per_second
    assert metrics["val_loss"]["step"] == shown["sample"]["step"] == 6
    assert shown["settings"]["model.layers"] == 2
    assert [each["step"] for each in shown["checkpoints"]] == [
        each.step for each in run_copy.checkpoints()
    ]
    last = json.loads(run("show", run_copy.name, "--json").out)
    assert last["at"] == last["metrics"]["train_loss"]["step"] == 18
    first = json.loads(run("show", run_copy.name, "--json", "--at", "0").out)
    assert "train_loss" not in first["metrics"]


def test_a_run_is_shown_to_people(run: Run, run_copy: RunFolder) -> None:
    run("note", run_copy.name, "\x1b[31mred\nand more")
    said = run("show", run_copy.name).out
    assert f"{run_copy.state().best_val_loss:.4f} at step" in said
    assert "train loss" in said and "(step 18)" in said
    assert "red and more" in said and "\x1b" not in said


def test_what_cannot_be_shown_is_one_sentence(run: Run, run_copy: RunFolder) -> None:
    assert_refused(run("show", "nothing"), 'no run "nothing"')
    assert_refused(run("show", run_copy.name, "--at", "-1"), "--at")
    (run_copy.path / "run.toml").write_text("[")
    assert_refused(run("show", run_copy.name), "run.toml")


def test_a_run_that_has_not_begun_is_shown(run: Run, three: list[RunFolder]) -> None:
    assert run("show", three[2].name).status == 0
    assert json.loads(run("show", three[2].name, "--json").out)["metrics"] == {}


# note, tag


def test_notes_and_tags_are_read_and_taken_off(run: Run, run_copy: RunFolder) -> None:
    assert run("tag", run_copy.name) == (0, "", "")
    run("tag", run_copy.name, "+b", "+a", "+help")
    run("tag", "--runs-dir", run_copy.path.parent, run_copy.name, "-help", "-never", "+b")
    assert run("tag", run_copy.name).out == "b\na\n"
    run("note", run_copy.name, "what it is about")
    assert run("note", run_copy.name).out == "what it is about\n"
    run("note", run_copy.name, "")
    assert run("note", run_copy.name) == (0, "", "")
    assert run("tag", run_copy.name).out == "b\na\n"
    assert_refused(run("tag", run_copy.name, "+a b"), "cannot be a tag")
    assert_refused(run("tag", run_copy.name, "c"), "+TAG or -TAG")
    assert_refused(run("tag", run_copy.name, "+c", "--json"), "options stand before RUN")
    assert run("tag", run_copy.name).out == "b\na\n"


# rename


def test_a_renamed_run_is_the_same_run(run: Run, run_copy: RunFolder) -> None:
    identity = run_copy.read_identity()
    run("tag", run_copy.name, "+good")
    assert run("rename", run_copy.name, "other name") == (0, "", "")
    assert not run_copy.path.exists()
    renamed = RunFolder(run_copy.path.with_name("other name"))
    assert renamed.read_identity() == identity
    assert 'name = "other name"' in (renamed.path / "run.toml").read_text()
    assert not renamed.is_active()
    assert run("train", "--resume", "other name", "--set", "training.steps=20").status == 0
    assert renamed.state().step == 20
    assert run("tag", "other name").out == "good\n"


def test_a_text_that_a_run_keeps_is_found_under_its_new_name(run: Run, runs_dir: Path) -> None:
    text = runs_dir / "old" / "corpus.txt"
    folder = RunFolder.create(
        runs_dir, "old", with_settings(RunConfig(), {"data.corpus": str(text)})
    )
    text.write_text("a text")
    assert run("rename", folder.name, "new").status == 0
    assert RunFolder(runs_dir / "new").read_config().data.corpus == str(
        runs_dir / "new" / "corpus.txt"
    )


def test_what_cannot_be_renamed_stays(run: Run, three: list[RunFolder]) -> None:
    old, better, _ = three
    before = contents(old.path.parent)
    assert_refused(run("rename", old.name, better.name), "exists", "another name")
    assert_refused(run("rename", old.name, "a/b"), "run name")
    assert_refused(run("rename", old.name, ""), "name")
    assert_refused(run("rename", "nothing", "a"), 'no run "nothing"')
    link = old.path.with_name("link")
    link.symlink_to(old.path)
    assert_refused(run("rename", "link", "a"), "is a link")
    dangling = old.path.with_name("dangling")
    dangling.symlink_to("/nowhere")
    assert_refused(run("rename", old.name, "dangling"), "exists")
    link.unlink()
    assert contents(old.path.parent) == before


def test_a_run_in_training_is_neither_renamed_nor_deleted(run: Run, in_training: RunFolder) -> None:
    assert_refused(run("rename", in_training.name, "a"), "in training")
    assert_refused(run("delete", in_training.name, "--yes"), "in training")
    assert in_training.checkpoints()


def test_a_run_between_two_trainers_is_neither_renamed_nor_deleted(
    run: Run, run_copy: RunFolder
) -> None:
    with run_copy.events_path.open("ab") as file:
        file.write(encode_event(RunHandedOver(step=18, elapsed_seconds=1.0)))
    assert_refused(run("rename", run_copy.name, "a"), "in training")
    assert_refused(run("delete", run_copy.name, "--yes"), "in training")
    with run_copy.events_path.open("ab") as file:
        long_ago = time.time() - 3600
        file.write(encode_event(RunHandedOver(step=18, elapsed_seconds=1.0, time=long_ago)))
    assert run("rename", run_copy.name, "a").status == 0


# delete


def test_runs_are_deleted_all_or_none(run: Run, three: list[RunFolder]) -> None:
    old, better, new = three
    assert_refused(run("delete", old.name, "nothing", "--yes"), 'no run "nothing"')
    assert_refused(run("delete", old.name), "--yes")
    assert old.path.exists()
    assert run("delete", old.name, better.path, old.path, "--yes") == (0, "", "")
    assert [path.name for path in new.path.parent.iterdir()] == [new.name]


@pytest.mark.parametrize(("answer", "gone"), [("y\n", True), ("\n", False), ("", False)])
def test_a_person_at_a_terminal_is_asked(
    run: Run, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch, answer: str, gone: bool
) -> None:
    master, slave = os.openpty()
    with os.fdopen(slave) as terminal:
        os.write(master, (answer or "\x04").encode())
        monkeypatch.setattr("sys.stdin", terminal)
        monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
        result = run("delete", run_copy.name)
    os.close(master)
    assert "Delete 1 run (" in result.err and run_copy.name in result.err
    assert run_copy.path.exists() is not gone
    assert result.status == (0 if gone else 1)


def test_only_a_run_is_deleted_and_no_link_is_followed(
    run: Run, run_copy: RunFolder, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "run.toml").write_text("")
    (precious / "letter.txt").write_text("kept")
    assert_refused(run("delete", precious, "--yes"), "no folder checkpoints")
    link = run_copy.path.with_name("link")
    link.symlink_to(run_copy.path)
    assert_refused(run("delete", "link", "--yes"), "is a link")
    assert run_copy.checkpoints()
    (run_copy.path / "elsewhere").symlink_to(precious)
    link.unlink()
    assert run("delete", run_copy.name, "--yes").status == 0
    assert (precious / "letter.txt").read_text() == "kept"


def test_the_run_in_the_current_folder_is_deleted(
    run: Run, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run_copy.path)
    assert run("delete", ".", "--yes") == (0, "", "")
    assert not run_copy.path.exists()


# fork


def test_a_fork_goes_on_under_its_name(run: Run, run_copy: RunFolder) -> None:
    made = run("fork", run_copy.name, "--at", "14", "--set", "training.steps=20")
    assert made.status == 0
    name = made.out.strip()
    assert name == f"{run_copy.name}-at-15"
    child = RunFolder(run_copy.path.with_name(name))
    assert child.read_parent() == (run_copy.name, 15)
    assert f"--resume {name}" in made.err
    assert run("train", "--resume", name).status == 0
    assert child.state().step == 20
    named = run("fork", run_copy.name, "--set", "training.steps=30", "--name", "mine")
    assert named.out == "mine\n"
    assert json.loads(run("show", "mine", "--json").out)["parent"]["step"] == 18


def test_what_cannot_be_forked_leaves_nothing(run: Run, three: list[RunFolder]) -> None:
    old, _, new = three
    before = contents(old.path.parent)
    assert_refused(run("fork", old.name, "--set", "model.layers=3"), "model.layers")
    assert_refused(run("fork", old.name), "training.steps")
    assert_refused(run("fork", old.name, "--set", "training.steps"), "KEY=VALUE")
    assert_refused(run("fork", new.name), "no checkpoint")
    more = ["--set", "training.steps=30"]
    assert_refused(run("fork", old.name, *more, "--name", new.name), "exists")
    assert contents(old.path.parent) == before


# tell set


def test_a_trainer_takes_other_values_from_the_command_line(run: Run, run_copy: RunFolder) -> None:
    config = with_settings(run_copy.read_config(), {"training.steps": 10_000_000})
    told = False
    seen = []
    for event in itertools.islice(run_training(run_copy, Control(), config=config), 100_000):
        seen.append(event)
        if isinstance(event, StepCompleted) and event.step == 20:
            changes = ["training.learning_rate=1e-4", "training.steps=10,000"]
            told = run("tell", run_copy.name, "set", *changes) == (0, "", "")
        if isinstance(event, SettingChanged) and event.key == "training.steps":
            run("tell", run_copy.name, "stop")
    assert told
    changed = [(e.key, e.new) for e in seen if isinstance(e, SettingChanged)]
    assert changed == [("training.learning_rate", 1e-4), ("training.steps", 10_000)]
    assert run_copy.read_config().training.learning_rate == 1e-4
    assert "learning rate changed from" in run("show", run_copy.name).out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["set", "model.layers=3"], "model.layers cannot change while this run trains; training."),
        (["set", "training.steps=3"], "must be more than the 18 steps"),
        (["set", "training.steps=many"], "whole number"),
        (["set", "training.learning_rate=nan"], "finite"),
        (["set", "training.lerning_rate=1"], "Did you mean"),
        (["set", "training.steps"], "KEY=VALUE"),
        (["set"], "tell RUN set"),
        (["save", "training.steps=30"], "tell RUN set"),
    ],
)
def test_what_cannot_change_is_not_sent(
    run: Run, in_training: RunFolder, words: list[str], said: str
) -> None:
    with in_training.events_path.open("rb+") as file:
        lines = file.readlines()
        file.truncate(len(b"".join(lines[:-1])))  # it is not over
    assert_refused(run("tell", in_training.name, *words), said)
    assert CommandFolder(in_training.path).take() == ([], [])


def test_nobody_is_told_of_a_change_where_nobody_trains(run: Run, run_copy: RunFolder) -> None:
    assert not lock.is_held(run_copy.path / LOCK_FILE)
    result = run("tell", run_copy.name, "set", "training.steps=30")
    assert_refused(result, "No process trains")


# examples


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_a_verb_are_in_its_help_and_can_be_asked(run: Run, verb: str) -> None:
    helped = run(verb, "--help").out
    lines = verb_of(verb).EXAMPLES.splitlines()
    assert lines
    for line in lines:
        assert f"  {line}\n" in helped
        inner = re.findall(r"\$\((.+)\)", line)
        for command in (re.sub(r"\$\(.+\)", "x", line), *inner):
            words = shlex.split(command.partition(" > ")[0])
            assert words[0] == "megatron-model"
            assert parse(words[1:]).verb == words[1]


# archive, compare


def test_runs_are_put_aside_and_brought_back(run: Run, three: list[RunFolder]) -> None:
    old, better, new = (each.name for each in three)
    assert run("archive", old, better).status == 0
    assert names(run("runs").out) == [new]
    assert set(names(run("runs", "--archived").out)) == {old, better}
    assert_refused(run("archive", old), "There is no run")
    assert run("archive", "--undo", old).err == f"brought back: {old}\n"
    assert set(names(run("runs").out)) == {old, new}
    with three[2].lock():
        assert_refused(run("archive", old, new), "in training")
    assert set(names(run("runs").out)) == {old, new}, "all that were named, or none"


def test_runs_are_compared(run: Run, three: list[RunFolder], tmp_path: Path) -> None:
    old, better, new = (each.name for each in three)
    lines = run("compare", old, better, new).out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["1", better], ["2", old]]
    assert lines[3].split()[0] == new
    table, page = tmp_path / "table.csv", tmp_path / "table.md"
    files = ("--csv", str(table), "--markdown", str(page))
    assert run("compare", old, better, "--by", "flops", *files).out == ""
    assert table.read_text().splitlines()[1].startswith(f"1,{better},")
    assert page.read_text().splitlines()[2].startswith(f"| 1 | {better} |")
    assert_refused(run("compare", old), "two runs or more")
    assert_refused(run("compare", old, better, "--csv", str(tmp_path)), "Cannot write")
