"""A run and its folder: what is recorded, kept, obeyed, resumed and refused."""

from __future__ import annotations

import contextlib
import itertools
import json
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import (
    Alert,
    CheckpointSaved,
    Evaluated,
    Event,
    MetricsReported,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleGenerated,
    StepCompleted,
    WorkProgress,
)
from megatron_model.run.checkpoint import load_weights
from megatron_model.run.control import Control
from megatron_model.run.folder import (
    EVENTS_FILE,
    FINAL_WEIGHTS_FILE,
    MODEL_FILE,
    RunFolder,
)
from megatron_model.run.runner import run_training
from megatron_model.util.errors import RequestError
from tests.model.helpers import TEXT, history, kinds, recorded, tiny_config, train, train_and

Make = Callable[..., RunFolder]


@pytest.fixture
def make_run(runs_dir: Path, config: RunConfig) -> Make:
    """Make the folder of a tiny run with some settings changed."""
    numbers = itertools.count(1)

    def make(**changes: object) -> RunFolder:
        dotted = {key.replace("__", "."): value for key, value in changes.items()}
        return RunFolder.create(runs_dir, f"run-{next(numbers)}", with_settings(config, dotted))

    return make


def at_step(step: int) -> Callable[[Event], bool]:
    return lambda event: isinstance(event, StepCompleted) and event.step == step


def steps_of(folder: RunFolder) -> list[int]:
    return [checkpoint.step for checkpoint in folder.checkpoints()]


def last(events: list[Event]) -> Event:
    return events[-1]


@pytest.fixture(scope="module")
def unbroken(finished_run: RunFolder) -> dict[tuple[str, int], float]:
    return history(finished_run.read_events()[0])


# From beginning to end


def test_a_run_is_recorded_as_it_is_yielded(make_run: Make) -> None:
    folder = make_run()
    seen = train(folder)
    begun = kinds(seen).index("RunStarted")  # before it nothing is known to be a run
    assert folder.read_events()[0] == recorded(seen[begun:])
    assert kinds(seen)[-1] == "RunFinished"
    assert {"StepCompleted", "WorkProgress"} <= set(kinds(seen)) - set(kinds(recorded(seen)))


def test_a_run_says_what_it_is(finished_run: RunFolder, config: RunConfig) -> None:
    events = finished_run.read_events()[0]
    started = next(event for event in events if isinstance(event, RunStarted))
    text = Path(config.data.corpus).read_text(encoding="utf-8")
    assert (started.step, started.steps, started.name) == (0, 18, finished_run.name)
    assert (started.characters, started.vocabulary_size) == (len(text), len(set(text)))
    assert (started.device, started.precision) == ("cpu", "float32")
    assert (started.batch_size, started.block_size) == (4, 16)
    best = finished_run.best_checkpoint()
    assert best is not None
    assert started.parameters == sum(w.numel() for w in load_weights(best.path).values())
    finished = last(events)
    assert isinstance(finished, RunFinished)
    assert (finished.step, finished.reason) == (18, "completed")
    assert finished.elapsed_seconds > 0


def test_the_best_and_the_newest_checkpoints_are_kept(finished_run: RunFolder) -> None:
    events = finished_run.read_events()[0]
    saved = [event for event in events if isinstance(event, CheckpointSaved)]
    assert {5, 10, 15, 18} <= {event.step for event in saved}
    evaluated = {event.step: event.val_loss for event in events if isinstance(event, Evaluated)}
    best_step = min(evaluated, key=evaluated.__getitem__)
    newest = sorted({event.step for event in saved})[-2:]
    assert steps_of(finished_run) == sorted({best_step, *newest})
    best = finished_run.best_checkpoint()
    assert best is not None
    assert (best.step, best.val_loss) == (best_step, evaluated[best_step])


def test_a_best_checkpoint_survives_many_newer_ones(run_copy: RunFolder) -> None:
    best = run_copy.checkpoints()[0]
    state = best.path / "training.json"
    state.write_text(json.dumps({**json.loads(state.read_text()), "val_loss": 0.001}))
    (best.path / "SHA256SUMS").unlink()
    more = with_settings(run_copy.read_config(), {"training.steps": 40})
    list(run_training(run_copy, Control(), config=more))
    kept = steps_of(run_copy)
    assert (kept[0], kept[-1], len(kept)) == (best.step, 40, 3)
    weights = torch.load(run_copy.path / FINAL_WEIGHTS_FILE, weights_only=True)
    wanted = load_weights(best.path)
    assert all(torch.equal(weights[name], wanted[name]) for name in wanted)
    newest = load_weights(run_copy.checkpoint_path(40))
    assert not all(torch.equal(weights[name], newest[name]) for name in wanted)


# Commands


@pytest.mark.parametrize(
    ("command", "kind"),
    [("save", CheckpointSaved), ("evaluate", Evaluated), ("sample", SampleGenerated)],
)
def test_a_command_is_obeyed_before_the_next_step(
    make_run: Make, command: str, kind: type[Event]
) -> None:
    seen = train_and(make_run(training__steps=4), at_step(2), command)
    between = itertools.takewhile(
        lambda event: not isinstance(event, StepCompleted),
        itertools.islice(seen, next(i for i, e in enumerate(seen) if at_step(2)(e)) + 1, None),
    )
    assert [event.step for event in between if isinstance(event, kind)] == [2]
    assert isinstance(last(seen), RunFinished)


def test_commands_change_no_loss(make_run: Make, unbroken: dict[tuple[str, int], float]) -> None:
    commands = ("save", "evaluate", "sample", "pause", "save", "resume", "evaluate")
    seen = train_and(make_run(), at_step(3), *commands)
    assert {**history(seen), **unbroken} == history(seen)
    assert ("validation", 3) in history(seen)


def test_a_validation_that_was_asked_for_can_be_the_best(make_run: Make) -> None:
    folder = make_run(training__steps=4, training__evaluate_every=100)
    seen = train_and(folder, at_step(1), "evaluate", "evaluate")
    told = [event for event in seen if isinstance(event, Evaluated | CheckpointSaved)]
    # The first is better than none; the second is no better than the first.
    assert kinds(told)[:4] == ["Evaluated", "CheckpointSaved", "Evaluated", "Evaluated"]
    assert [event.step for event in told[:4]] == [1, 1, 1, 4]


def test_a_paused_run_works_on_command_but_takes_no_step(make_run: Make) -> None:
    folder = make_run(training__steps=4)
    commands = ("pause", "save", "sample", "pause", "evaluate", "resume")
    seen = train_and(folder, at_step(2), *commands)
    start = next(i for i, event in enumerate(seen) if isinstance(event, RunPaused))
    end = next(i for i, event in enumerate(seen) if isinstance(event, RunResumed))
    during = kinds(seen[start:end])
    assert during.count("RunPaused") == 1
    assert {"CheckpointSaved", "SampleGenerated", "Evaluated"} < set(during)
    assert "StepCompleted" not in during
    assert isinstance(last(seen), RunFinished)


def test_a_paused_run_can_be_stopped(make_run: Make) -> None:
    folder = make_run()
    seen = train_and(folder, at_step(2), "pause", "stop")
    finished = last(seen)
    assert isinstance(finished, RunFinished)
    assert (finished.step, finished.reason) == (2, "stopped")
    assert 2 in steps_of(folder)


def test_a_command_during_a_validation_is_obeyed_after_it(make_run: Make) -> None:
    seen = train_and(
        make_run(training__steps=8), lambda event: isinstance(event, WorkProgress), "save", "sample"
    )
    assert [event.step for event in seen if isinstance(event, CheckpointSaved)][1] == 6
    drawn = [event.step for event in seen if isinstance(event, SampleGenerated)]
    assert drawn == [6, 6, 8]


def test_a_stop_during_a_validation_does_not_wait_for_its_end(make_run: Make) -> None:
    folder = make_run(model__block_size=4, training__batch_size=2)
    seen = train_and(folder, lambda event: isinstance(event, WorkProgress), "stop")
    assert "Evaluated" not in kinds(seen)
    finished = last(seen)
    assert isinstance(finished, RunFinished)
    assert finished.step == steps_of(folder)[-1] == 6


# Resuming


@pytest.mark.parametrize("step", [1, 5, 6, 11, 17])
def test_stop_and_resume_change_no_loss(
    make_run: Make, unbroken: dict[tuple[str, int], float], step: int
) -> None:
    folder = make_run()
    before = train_and(folder, at_step(step), "stop")
    after = train(folder)
    started = next(event for event in after if isinstance(event, RunStarted))
    assert started.step == step
    assert history([*before, *after]) == unbroken
    state = folder.state()
    assert (state.status, state.step) == ("finished", 18)
    assert dict(zip(state.val_loss.steps, state.val_loss.values, strict=True)) == {
        step: loss for (kind, step), loss in unbroken.items() if kind == "validation"
    }


def test_a_run_stopped_in_every_validation_equals_an_unbroken_one(
    make_run: Make, unbroken: dict[tuple[str, int], float], finished_run: RunFolder
) -> None:
    folder = make_run()
    seen: list[Event] = []
    stopped: set[int] = set()

    def in_a_new_validation(event: Event) -> bool:
        if isinstance(event, WorkProgress) and event.step not in stopped:
            stopped.add(event.step)
            return True
        return False

    for _ in range(4):
        seen += train_and(folder, in_a_new_validation, "stop")
    assert stopped == {6, 12, 18}
    assert history(seen) == unbroken
    best, wanted = folder.best_checkpoint(), finished_run.best_checkpoint()
    assert best is not None
    assert wanted is not None
    assert (best.step, best.val_loss) == (wanted.step, wanted.val_loss)


def test_elapsed_time_goes_on_where_it_was(make_run: Make) -> None:
    folder = make_run(training__steps=6)
    first = last(train_and(folder, at_step(3), "stop"))
    after = train(folder)
    started = next(event for event in after if isinstance(event, RunStarted))
    assert isinstance(first, RunFinished)
    assert started.elapsed_seconds >= first.elapsed_seconds - 0.5
    times = [e.elapsed_seconds for e in after if isinstance(e, StepCompleted)]
    assert times == sorted(times)
    assert times[0] >= started.elapsed_seconds > 0


def test_a_run_that_is_done_stays_as_it_is(
    run_copy: RunFolder, unbroken: dict[tuple[str, int], float]
) -> None:
    kept = steps_of(run_copy)
    seen = train(run_copy)
    assert "StepCompleted" not in kinds(seen)
    assert history(seen) == {}
    assert steps_of(run_copy) == kept
    assert history(run_copy.read_events()[0]) == unbroken


def test_more_steps_can_be_asked_of_a_run_that_is_done(run_copy: RunFolder) -> None:
    config = with_settings(run_copy.read_config(), {"training.steps": 20})
    run_copy.write_config(config, fingerprint=run_copy.read_corpus_fingerprint())
    seen = train(run_copy)
    assert [event.step for event in seen if isinstance(event, StepCompleted)] == [19, 20]


def test_a_torn_last_line_is_cut_off(
    make_run: Make, unbroken: dict[tuple[str, int], float]
) -> None:
    folder = make_run()
    train_and(folder, at_step(7), "stop")
    with folder.events_path.open("ab") as file:
        file.write(b'{"event":"step_finished","step":9,"train_lo')
    train(folder)
    lines = folder.events_path.read_bytes().splitlines()
    assert not [line for line in lines if b"train_lo" in line and b"train_loss" not in line]
    assert len(folder.read_events()[0]) == len(lines)
    assert history(folder.read_events()[0]) == unbroken


def test_an_abandoned_run_can_be_taken_up(
    make_run: Make, unbroken: dict[tuple[str, int], float]
) -> None:
    folder = make_run()
    events = run_training(folder, Control())
    next(event for event in events if at_step(7)(event))
    assert folder.is_active()
    events.close()  # type: ignore[attr-defined]
    assert not folder.is_active()
    resumed = train(folder)
    assert next(event.step for event in resumed if isinstance(event, RunStarted)) in (5, 6)
    assert history(folder.read_events()[0]) == unbroken


# Damage


def test_a_damaged_newest_checkpoint_falls_back_to_the_one_before(
    run_copy: RunFolder, unbroken: dict[tuple[str, int], float]
) -> None:
    newest, before = steps_of(run_copy)[-1], steps_of(run_copy)[-2]
    model = run_copy.checkpoint_path(newest) / MODEL_FILE
    model.write_bytes(model.read_bytes()[:-100])
    seen = train(run_copy)
    assert next(event.step for event in seen if isinstance(event, RunStarted)) == before
    assert history(seen) == {key: loss for key, loss in unbroken.items() if key[1] > before}
    assert isinstance(last(seen), RunFinished)
    assert steps_of(run_copy)[-1] == newest
    assert load_weights(run_copy.checkpoint_path(newest))  # whole again


def test_a_damaged_checkpoint_is_set_aside_not_destroyed(run_copy: RunFolder) -> None:
    newest = run_copy.checkpoint_path(steps_of(run_copy)[-1])
    (newest / "training.json").write_text("{")
    weights = (newest / MODEL_FILE).read_bytes()
    train(run_copy)
    aside = newest.with_name(f"damaged-{newest.name}")
    assert (aside / MODEL_FILE).read_bytes() == weights


def test_a_save_cut_in_the_middle_is_mended_by_the_next_resume(run_copy: RunFolder) -> None:
    *others, newest = run_copy.checkpoints()
    for checkpoint in others:
        shutil.rmtree(checkpoint.path)
    newest.path.rename(newest.path.with_name(f".{newest.path.name}.77.old"))
    newest.path.with_name(f".{newest.path.name}.77.tmp").mkdir()
    seen = train(run_copy)
    assert next(event.step for event in seen if isinstance(event, RunStarted)) == newest.step
    assert [path.name for path in newest.path.parent.iterdir()] == [newest.path.name]


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_left(run_copy: RunFolder) -> None:
    for checkpoint in run_copy.checkpoints():
        (checkpoint.path / MODEL_FILE).write_bytes(b"")
    kept = steps_of(run_copy)
    with pytest.raises(RequestError, match=r"No checkpoint of this run can be read \(step-"):
        train(run_copy)
    assert steps_of(run_copy) == kept
    assert not run_copy.is_active()


def test_weights_that_are_no_numbers_are_never_saved(make_run: Make) -> None:
    folder = make_run(
        training__log_every=100, training__checkpoint_every=3, training__when_diverged="stop"
    )
    control, seen = Control(), []
    from megatron_model.run import runner

    trainers = []

    class Watched(runner.Trainer):
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)  # type: ignore[arg-type]
            trainers.append(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "Trainer", Watched)
        for event in run_training(folder, control):
            seen.append(event)
            if at_step(4)(event):
                with torch.no_grad():
                    next(iter(trainers[0].model.parameters())).fill_(float("nan"))
    failed = last(seen)
    assert isinstance(failed, RunFailed)
    assert "NaN or infinity" in failed.error
    assert steps_of(folder) == [3]
    assert folder.state().status == "failed"


# Refusals


def test_the_folder_of_a_run_that_cannot_begin_is_removed(make_run: Make, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short\n")
    folder = make_run(data__corpus=str(short))
    with pytest.raises(RequestError, match="block_size"):
        train(folder)
    assert not folder.path.exists()


def test_a_run_that_began_keeps_its_folder_when_its_corpus_is_gone(
    make_run: Make, tmp_path: Path, corpus: Path
) -> None:
    own = Path(shutil.copy(corpus, tmp_path / "own.txt"))
    folder = make_run(data__corpus=str(own))
    train_and(folder, at_step(7), "stop")
    own.unlink()
    with pytest.raises(RequestError, match=r"own\.txt"):
        train(folder)
    assert steps_of(folder)[-1] == 7


def test_a_changed_corpus_is_refused(make_run: Make, tmp_path: Path, corpus: Path) -> None:
    own = Path(shutil.copy(corpus, tmp_path / "own.txt"))
    folder = make_run(data__corpus=str(own))
    train_and(folder, at_step(7), "stop")
    own.write_text(own.read_text().replace("king", "duke", 1))
    with pytest.raises(RequestError, match="has changed since this run began"):
        train(folder)
    assert (folder.path / EVENTS_FILE).stat().st_size > 0
    own.write_bytes(corpus.read_bytes())
    assert isinstance(last(train(folder)), RunFinished)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model.layers", 1),
        ("model.architecture", "classic"),
        ("training.optimizer", "muon"),
        ("data.validation_fraction", 0.2),
    ],
)
def test_what_a_run_began_with_cannot_change(run_copy: RunFolder, key: str, value: object) -> None:
    asked = (run_copy.path / "run.toml").read_bytes()
    kept = steps_of(run_copy)
    changed = with_settings(run_copy.read_config(), {key: value, "training.steps": 30})
    with pytest.raises(RequestError, match=rf"{key} cannot change"):
        list(run_training(run_copy, Control(), config=changed))
    assert (run_copy.path / "run.toml").read_bytes() == asked
    assert steps_of(run_copy) == kept


def test_settings_to_go_on_with_are_kept(run_copy: RunFolder) -> None:
    changed = with_settings(run_copy.read_config(), {"training.steps": 19, "training.log_every": 1})
    events = list(run_training(run_copy, Control(), config=changed))
    assert [event.step for event in events if isinstance(event, MetricsReported)] == [19]
    assert run_copy.read_config() == changed
    assert run_copy.read_corpus_fingerprint()


_HOLD = """
import sys
from pathlib import Path
from megatron_model.run.folder import RunFolder
with RunFolder(Path(sys.argv[1])).lock():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_cannot_train_the_same_run(run_copy: RunFolder) -> None:
    other = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(run_copy.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        assert run_copy.is_active()
        with pytest.raises(RequestError, match="being trained by another process"):
            train(run_copy)
        with pytest.raises(RequestError, match="in training"):
            run_copy.delete()
        other.kill()
    assert not run_copy.is_active()
    assert isinstance(last(train(run_copy)), RunFinished)


def test_a_trained_run_refuses_a_second_process(make_run: Make) -> None:
    folder = make_run()
    events = run_training(folder, Control())
    next(event for event in events if at_step(1)(event))
    second = subprocess.run(
        [sys.executable, "-c", _HOLD, str(folder.path)], capture_output=True, text=True, input=""
    )
    assert second.returncode != 0
    assert "being trained by another process" in second.stderr
    events.close()  # type: ignore[attr-defined]


def test_a_model_too_large_for_the_memory_is_a_wrong_request(make_run: Make) -> None:
    folder = make_run(model__embed_dim=2**20, model__heads=1)
    with pytest.raises(RequestError, match="out of memory"):
        train(folder)
    assert not folder.path.exists()


@contextlib.contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """Let writes fail as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


FULL_DISKS = pytest.mark.parametrize(
    ("size", "what"), [(8000, "model.safetensors"), (900, "events.jsonl")], ids=["save", "log"]
)


@FULL_DISKS
def test_a_run_waits_while_the_disk_is_full_and_goes_on_after(
    make_run: Make, unbroken: dict[tuple[str, int], float], size: int, what: str
) -> None:
    folder, control = make_run(), Control()
    seen: list[Event] = []
    with contextlib.ExitStack() as full:
        for event in run_training(folder, control):
            seen.append(event)
            if isinstance(event, RunStarted):
                full.enter_context(no_file_longer_than(size))
            elif isinstance(event, RunPaused):
                full.close()
                control.put("save")
    alerts = [event for event in seen if isinstance(event, Alert)]
    assert len(alerts) == 1
    assert alerts[0].text.startswith("Cannot write ")
    assert what in alerts[0].text
    assert isinstance(last(seen), RunFinished)
    assert history(folder.read_events()[0]) == unbroken
    begun = kinds(seen).index("RunStarted")
    assert folder.read_events()[0] == recorded(seen[begun:])


@FULL_DISKS
def test_a_run_stopped_while_the_disk_is_full_keeps_what_was_saved(
    make_run: Make, unbroken: dict[tuple[str, int], float], size: int, what: str
) -> None:
    folder, control = make_run(), Control()
    seen: list[Event] = []
    with contextlib.ExitStack() as full:
        for event in run_training(folder, control):
            seen.append(event)
            if at_step(6)(event):
                full.enter_context(no_file_longer_than(size))
            elif isinstance(event, RunPaused):
                control.put("save")  # again, and in vain
                control.put("stop")
    failed = last(seen)
    assert isinstance(failed, RunFailed)
    assert failed.error.startswith("Cannot write ")
    assert "resume" in failed.error
    lines = folder.events_path.read_bytes().splitlines()
    assert len(folder.read_events()[0]) == len(lines)
    assert steps_of(folder)
    train(folder)
    assert history(folder.read_events()[0]) == unbroken


# A run finds its text again, or says what to do


def _as_from_before(folder: RunFolder) -> None:
    """Take out of a run's files what a program without rules of reading did not write."""
    path = folder.path / "run.toml"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(x for x in lines if not x.startswith(("errors =", "reading ="))))


def _texts(folder: Path) -> Path:
    folder.mkdir()
    lines = TEXT.splitlines(keepends=True)
    for number, name in enumerate(("1.txt", "2.txt", "10.txt")):
        part = "".join(lines[number * 20 : number * 20 + 20]).removesuffix("\n")
        (folder / name).write_text(part, encoding="utf-8")
    (folder / "twice.txt").symlink_to(folder / "1.txt")
    return folder


def test_a_run_from_before_goes_on_with_the_text_it_began_with(
    tmp_path: Path, runs_dir: Path
) -> None:
    config = tiny_config({"data.corpus": str(_texts(tmp_path / "texts")), "data.reading": 1})
    old = RunFolder.create(runs_dir, "old", config)
    stopped = train_and(old, lambda event: isinstance(event, StepCompleted), "stop")
    assert isinstance(stopped[-1], RunFinished)
    _as_from_before(old)
    assert old.read_config().data.reading == 1
    expected = history(train(RunFolder.create(runs_dir, "whole", config)))
    train(old)
    # All but what the stopped stretch evaluated at its end is that of a run in one go.
    assert expected.items() <= history(old.read_events()[0]).items()
    new = RunFolder.create(runs_dir, "new", with_settings(config, {"data.reading": 2}))
    assert history(train(new)) != expected


def test_the_rules_of_reading_cannot_change_in_a_run_that_has_begun(
    run_copy: RunFolder,
) -> None:
    for key, value in (("data.reading", 1), ("data.errors", "drop")):
        with pytest.raises(RequestError, match=key):
            list(
                run_training(
                    run_copy, Control(), config=with_settings(run_copy.read_config(), {key: value})
                )
            )


def test_a_moved_corpus_is_found_again_by_advice_that_works(tmp_path: Path, runs_dir: Path) -> None:
    text = tmp_path / "the tale.txt"
    text.write_text(TEXT, encoding="utf-8")
    folder = RunFolder.create(runs_dir, "a", tiny_config({"data.corpus": str(text)}))
    train_and(folder, lambda event: isinstance(event, StepCompleted), "stop")
    text.rename(tmp_path / "the tales.txt")
    with pytest.raises(RequestError) as refused:
        train(folder)
    words = shlex.split(str(refused.value).rpartition("resume with ")[2].removesuffix("."))
    assert words == [
        "megatron-model", "train", "--resume", str(folder.path), "--set",
        f"data.corpus={tmp_path / 'the tales.txt'}",
    ]  # fmt: skip
    changed = with_settings(folder.read_config(), {"data.corpus": words[-1].partition("=")[2]})
    events = list(run_training(folder, Control(), config=changed))
    assert isinstance(events[-1], RunFinished)
    # What only has a similar name is not advised.
    (tmp_path / "the tales.txt").write_text("another text")
    (tmp_path / "the tales.txt").rename(tmp_path / "the tale2.txt")
    with pytest.raises(RequestError, match="data.corpus=PATH"):
        train(folder)
