"""Several processes train one run: losses, checkpoints and commands are those of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import (
    Event,
    MetricsReported,
    RanksMeasured,
    RunFinished,
    RunPaused,
    RunStarted,
    SampleGenerated,
    SettingChanged,
)
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import Change
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from tests.model.distributed.ranks import start_ranks, train, train_together
from tests.model.helpers import history
from tests.model.helpers import train as train_alone
from tests.survival.processes import make_run, wait_for, wait_for_reports

pytestmark = pytest.mark.slow


TOLERANCE = 1e-5
"""Of losses in float32, against one process: only the order of sums differs."""


def run_of(runs_dir: Path, name: str, config: RunConfig, **changes: object) -> RunFolder:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return RunFolder.create(runs_dir, name, with_settings(config, dotted))


def events_of(folder: RunFolder) -> list[Event]:
    return folder.read_events()[0]


@pytest.mark.parametrize(
    ("size", "sharding", "changes"),
    [
        (2, "none", {"training__batch_size": 5, "training__token_dropout": 0.2}),
        (2, "full", {"training__gradient_clip": 0.5}),
        (4, "full", {"model__architecture": "classic"}),
    ],
    ids=["two", "two-divided", "four-classic-divided"],
)
def test_the_losses_are_those_of_one_process(
    runs_dir: Path, config: RunConfig, size: int, sharding: str, changes: dict[str, object]
) -> None:
    alone = run_of(runs_dir, "alone", config, **changes)
    together = run_of(runs_dir, "together", config, training__sharding=sharding, **changes)
    expected = history(train_alone(alone))
    assert train_together(together, size) == [0] * size
    found = history(events_of(together))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=TOLERANCE), key
    started = next(e for e in events_of(together) if isinstance(e, RunStarted))
    assert started.devices == size
    assert started.parameters == alone.state().started.parameters  # type: ignore[union-attr]
    samples = [
        [e.text for e in events_of(folder) if isinstance(e, SampleGenerated)]
        for folder in (alone, together)
    ]
    assert samples[0] == samples[1]


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_muon_learns_the_same_whoever_orthogonalises(
    runs_dir: Path, config: RunConfig, sharding: str
) -> None:
    # Three layers, so that the matrices cannot be divided evenly.
    changes = {
        "training__optimizer": "muon",
        # In bfloat16 the smallest difference can become one of rounding.
        "training__muon_precision": "float32",
        "model__layers": 3,
    }
    alone = run_of(runs_dir, "alone", config, **changes)
    together = run_of(runs_dir, "together", config, training__sharding=sharding, **changes)
    expected = history(train_alone(alone))
    assert train_together(together, 2) == [0, 0]
    found = history(events_of(together))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=TOLERANCE), key


def test_a_checkpoint_goes_on_with_any_number_of_processes(
    runs_dir: Path, config: RunConfig
) -> None:
    # The rates must not depend on how far the end is.
    even = {"training.schedule": "constant", "training.warmup_steps": 0}
    config = with_settings(config, even)
    unbroken = run_of(runs_dir, "unbroken", config)
    expected = history(train_alone(unbroken))
    folder = run_of(runs_dir, "changing", config, training__steps=5, training__sharding="full")
    assert train_together(folder, 2) == [0, 0]
    more = ["--set", "training.sharding=none", "--set", "training.steps=11"]
    assert train_together(folder, 3, *more) == [0] * 3
    assert folder.read_config().training.devices == 3
    with_one = with_settings(folder.read_config(), {"training.steps": 18, "training.devices": 1})
    folder.write_config(with_one, fingerprint=folder.read_corpus_fingerprint())
    train_alone(folder)
    found = history(events_of(folder))
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=TOLERANCE), key


def test_commands_are_obeyed_by_all_at_the_same_step(runs_dir: Path, corpus: Path) -> None:
    folder = make_run(runs_dir, corpus)
    orders = CommandFolder(folder.path)
    with start_ranks(2, train, ["--resume", str(folder.path)]) as ranks:
        wait_for_reports(folder)
        orders.send("pause")
        wait_for(lambda: any(isinstance(e, RunPaused) for e in events_of(folder)), "a pause")
        orders.send(Change("training.muon_learning_rate", 0.0))
        orders.send("save")
        orders.send("evaluate")
        orders.send("resume")
        wait_for_reports(folder)
        orders.send("stop")
        assert ranks.wait() == [0, 0]
    happened = events_of(folder)
    changed = next(e for e in happened if isinstance(e, SettingChanged))
    last = next(e for e in reversed(happened) if isinstance(e, MetricsReported))
    assert last.step > changed.step
    assert last.learning_rate == 0.0
    finished = happened[-1]
    assert isinstance(finished, RunFinished)
    assert finished.reason == "stopped"
    latest = folder.latest_checkpoint()
    assert latest is not None
    assert latest.step == finished.step
    measured = next(e for e in happened if isinstance(e, RanksMeasured))
    assert [rank.rank for rank in measured.ranks] == [0, 1]
    assert all(0 < rank.used < rank.total for rank in measured.ranks)
    assert measured.slowest in measured.ranks
    assert folder.state().ranks is not None


def test_one_process_does_not_stand_in_for_several(runs_dir: Path, config: RunConfig) -> None:
    folder = run_of(runs_dir, "alone", config, training__devices=2)
    with pytest.raises(RequestError, match="trains in 2 processes"):
        train_alone(folder)
    assert not folder.events_path.exists()


def test_what_cannot_be_divided_is_refused_in_one_line(runs_dir: Path, config: RunConfig) -> None:
    folder = run_of(runs_dir, "small", config, training__batch_size=1)
    # The others are let go in order: there is nothing wrong with them.
    assert train_together(folder, 2) == [2, 0]
    assert not folder.path.exists()
