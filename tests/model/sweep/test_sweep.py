"""What a sweep takes, the runs it makes, and what came of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_model.config.fields import RunConfig, all_fields, with_settings
from megatron_model.queue import Queue
from megatron_model.run.about import About, write_about
from megatron_model.run.folder import RunFolder
from megatron_model.sweep.grid import MOST_RUNS, add_sweep, check_room, grid, tag_of
from megatron_model.sweep.results import free_sweep_name, sweep_names, sweep_results, table
from megatron_model.sweep.values import values_of
from megatron_model.util.errors import RequestError
from tests.model.cli.test_cli import Run, assert_refused
from tests.model.cli.test_cli import run as run  # the fixture counts here too
from tests.model.helpers import tiny_config, train

RATE, LAYERS, SEED = "training.learning_rate", "model.layers", "training.seed"


@pytest.mark.parametrize(
    ("key", "text", "values"),
    [
        (RATE, "0.01..0.08 x4 log", [0.01, 0.02, 0.04, 0.08]),
        (RATE, "0.1..0.3 x3", [0.1, 0.2, 0.3]),
        (LAYERS, "1..4 x4", [1, 2, 3, 4]),
        (LAYERS, "2, 4, 8", [2, 4, 8]),
        (LAYERS, "2,4,8", [2, 4, 8]),
        (LAYERS, "1..2 x5", [1, 2]),
        ("training.steps", "1,000", [1000]),
        ("training.steps", "1,000, 2,000", [1000, 2000]),
        (SEED, "seeds 3", [1, 2, 3]),
        (RATE, " 0.01 ", [0.01]),
        ("model.architecture", "modern, classic", ["modern", "classic"]),
        ("data.encoding", "a, b", ["a, b"]),
    ],
)
def test_what_a_setting_takes(key: str, text: str, values: list[object]) -> None:
    assert values_of(all_fields()[key], text) == values


@pytest.mark.parametrize(
    ("key", "text", "said"),
    [
        (RATE, "0.08..0.01 x4", "is empty"),
        (RATE, "0.1..0.1 x4", "is empty"),
        (RATE, "0..1 x4 log", "above 0"),
        (RATE, "0.1..0.2 x1", "at least 2"),
        (RATE, "0.1..0.2 x101", "1 to 100"),
        (RATE, "0.1..0.2", "write it as"),
        (RATE, "a..b x3", "are numbers"),
        (RATE, "0.1, nan", "finite"),
        (RATE, "seeds 3", "takes no seeds"),
        (SEED, "seeds 0", "1 to 100"),
        (LAYERS, "0..4 x5", "at least 1"),
        (LAYERS, ",", "no value"),
        ("model.architecture", "modern..classic x2", "write it as"),
    ],
)
def test_what_is_no_range_is_said(key: str, text: str, said: str) -> None:
    with pytest.raises(RequestError, match=said) as refusal:
        values_of(all_fields()[key], text)
    assert key in str(refusal.value)


def test_every_combination_is_a_run_of_its_own() -> None:
    points = grid(RunConfig(), {LAYERS: [1, 2], SEED: [1, 2, 3]})
    assert [tuple(point.values.values()) for point in points] == [
        (layers, seed) for layers in (1, 2) for seed in (1, 2, 3)
    ]
    assert all(point.config.model.layers == point.values[LAYERS] for point in points)
    with pytest.raises(RequestError, match=r"model.embed_dim=7.*heads"):
        grid(RunConfig(), {"model.embed_dim": [512, 7]})
    with pytest.raises(RequestError, match=f"at most {MOST_RUNS}"):
        grid(RunConfig(), {LAYERS: list(range(1, 31)), SEED: list(range(1, 31))})


def test_a_sweep_without_room_is_refused() -> None:
    points = grid(RunConfig(), {SEED: [1, 2]})
    needed = check_room(points, 100, None)
    assert check_room(points, 100, needed) == needed
    with pytest.raises(RequestError, match="2 runs need"):
        check_room(points, 100, needed - 1)


def test_asking_again_adds_only_what_is_missing(runs_dir: Path, corpus: Path) -> None:
    queue = Queue(runs_dir)
    config = tiny_config({"data.corpus": str(corpus)})
    add_sweep(queue, "rates", grid(config, {RATE: [0.01, 0.02]}))
    add_sweep(queue, "rates", grid(config, {RATE: [0.01, 0.02, 0.04]}))
    entries = queue.entries()
    assert [entry.config.training.learning_rate for entry in entries] == [0.01, 0.02, 0.04]
    assert [entry.id for entry in queue.entries()] == [1, 2, 3]
    assert {entry.tags for entry in entries} == {("sweep-rates",)}
    assert entries[0].name == "rates-learning_rate-0.01"


def test_a_run_that_is_there_is_not_trained_again(runs_dir: Path, corpus: Path) -> None:
    """Also where its entry was taken out of the queue."""
    queue = Queue(runs_dir)
    points = grid(tiny_config({"data.corpus": str(corpus)}), {SEED: [1, 2]})
    folder = RunFolder.create(runs_dir, "begun", points[0].config)
    write_about(folder, About("", (tag_of("seeds"),)))
    add_sweep(queue, "seeds", points)
    assert [entry.config.training.seed for entry in queue.entries()] == [2]


def test_a_sweep_may_be_called_as_a_run_may(runs_dir: Path, corpus: Path) -> None:
    queue = Queue(runs_dir)
    points = grid(tiny_config({"data.corpus": str(corpus)}), {SEED: [1, 2]})
    add_sweep(queue, "été, two words", points)
    assert len(sweep_results(queue, "été, two words").runs) == 2
    assert free_sweep_name(queue, "été, two words") == "été, two words-2"
    assert free_sweep_name(queue, "other") == "other"
    with pytest.raises(RequestError, match="at most 44 characters"):
        add_sweep(queue, "x" * 45, points)


def test_the_best_run_stands_first(runs_dir: Path, corpus: Path) -> None:
    queue = Queue(runs_dir)
    config = tiny_config({"data.corpus": str(corpus), "training.steps": 4})
    points = grid(config, {RATE: [1e-5, 0.05, 0.1]})
    add_sweep(queue, "rates", points[2:])
    for name, point in zip(("slow", "fast"), points, strict=False):
        folder = RunFolder.create(runs_dir, name, point.config)
        write_about(folder, About("", (tag_of("rates"),)))
        train(folder)
    found = sweep_results(queue, "rates")
    assert found.varied == [RATE]
    losses = {one.name: one.loss for one in found.runs}
    assert found.runs[0].name == min(("slow", "fast"), key=lambda name: losses[name] or 9)
    assert [one.status for one in found.runs][-1] == "waiting"
    assert found.runs[-1].loss is None
    rows = table(found)
    assert rows[0][5] == "learning_rate"
    assert [row[0] for row in rows[1:]] == ["1", "2", "-"]
    assert sweep_names(queue) == ["rates"]
    with pytest.raises(RequestError, match="there are: rates"):
        sweep_results(queue, "other")


def test_the_verb_tells_what_it_would_be(run: Run, corpus: Path, runs_dir: Path) -> None:
    asked = ("--preset", "smoke", "--set", f"{RATE}=0.01..0.08 x4 log", "--set", f"{SEED}=seeds 2")
    told = run("sweep", corpus, *asked, "--max-seconds", "2", "--dry-run")
    assert told.status == 0
    assert len(told.out.splitlines()) == 8
    assert f"{RATE}=0.02, {SEED}=1" in told.out
    assert "a sweep of 8 runs, about 16 s in all" in told.err
    assert not (runs_dir / ".queue").exists()
    assert_refused(run("sweep", corpus, "--preset", "smoke"), "No setting has several values")
    assert_refused(run("sweep", corpus, "--set", f"{RATE}=2..1 x4"), "is empty")
    assert_refused(run("sweep"), "needs a CORPUS")
    assert_refused(run("sweep", "--show", "nothing"), 'no sweep "nothing"')


def test_the_results_are_for_programs_too(run: Run, corpus: Path, runs_dir: Path) -> None:
    config = with_settings(tiny_config({"data.corpus": str(corpus)}), {})
    add_sweep(Queue(runs_dir), "seeds", grid(config, {SEED: [1, 2]}))
    lines = run("sweep", "--show", "seeds", "--json").out.splitlines()
    assert [json.loads(line)["config"] for line in lines] == [{SEED: 1}, {SEED: 2}]
    assert "waiting" in run("sweep", "--show", "seeds").out
