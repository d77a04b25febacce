"""Any number of runs are ranked by their smoothed loss, along four axes, and told apart."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events import schema as events
from megatron_model.events.state import RunState
from megatron_model.run.comparison import (
    Along,
    Compared,
    as_csv,
    as_markdown,
    differing,
    places,
    ranked,
    smoothed,
    write_table,
)
from megatron_model.util.errors import RequestError


def run_of(
    name: str, losses: list[float], *, batch: int = 4, flops: float | None = 1e3, **settings: object
) -> Compared:
    """Return a run that was evaluated each ten steps, a second each."""
    state = RunState()
    state.apply(
        events.RunStarted(
            name=name, step=0, steps=100, max_seconds=0.0, batch_size=batch, block_size=8,
            parameters=100, vocabulary_size=20, characters=1000, corpus="tale", device="cpu",
            flops_per_character=flops,
        )
    )  # fmt: skip
    for place, loss in enumerate(losses, 1):
        state.apply(
            events.Evaluated(
                step=10 * place, val_loss=loss, bits_per_character=1.0, elapsed_seconds=float(place)
            )
        )
    config = with_settings(RunConfig(), {"training.batch_size": batch, **settings})
    return Compared(name, state, config)


@pytest.mark.parametrize(
    ("by", "expected"),
    [("step", 30), ("time", 3.0), ("characters", 30 * 4 * 8), ("flops", 30 * 4 * 8 * 1e3)],
)
def test_a_curve_is_placed_along_each_axis(by: Along, expected: float) -> None:
    run = run_of("one", [3.0, 2.0, 1.0])
    assert places(run.state, run.state.val_loss, by)[-1] == expected


def test_a_run_that_does_not_say_what_it_computes_has_no_place_by_flops() -> None:
    old, new = run_of("old", [3.0, 2.0], flops=None), run_of("new", [4.0, 3.0])
    assert smoothed(old.state, "flops") == ([], [])
    assert [(each.rank, each.run.name) for each in ranked([old, new], "flops")] == [
        (1, "new"),
        (0, "old"),
    ]


def test_runs_are_ranked_by_what_is_smoothed_and_read_off_where_all_were() -> None:
    short = run_of("short", [2.0, 1.9])
    # Its last value is luck: smoothed it is behind.
    lucky = run_of("lucky", [3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 1.8])
    many = [run_of(f"run-{n}", [4.0, 4.0 + n]) for n in range(1, 20)]
    found = ranked([lucky, *many, short])
    assert [each.run.name for each in found[:2]] == ["short", "lucky"]
    assert [each.rank for each in found] == list(range(1, 22))
    assert found[1].level == 3.0, "at step 20, as far as the shortest came"
    by_name = {each.run.name: each for each in found}
    assert by_name["short"].value == by_name["short"].level


def test_damage_is_ranked_last_and_breaks_nothing() -> None:
    broken = run_of("broken", [math.nan, math.inf, 1e300])
    empty = Compared("empty", RunState(), None)
    found = ranked([broken, empty, run_of("good", [2.0, 1.0])])
    assert found[0].run.name == "good"
    assert {each.rank for each in found[1:]} == {0}
    assert "broken" in as_csv([broken, empty]) and "empty" in as_markdown([broken, empty])


def test_only_what_differs_is_in_the_table(tmp_path: Path) -> None:
    runs = [
        run_of("a|b", [2.0, 1.0]),
        run_of("plain", [3.0, 2.0], batch=8),
        Compared("curves alone", RunState(), None),
    ]
    assert differing(runs) == ["training.batch_size"]
    rows = list(csv.DictReader(as_csv(runs, "time").splitlines()))
    assert [(row["run"], row["rank"], row["training.batch_size"]) for row in rows] == [
        ("a|b", "1", "4"),
        ("plain", "2", "8"),
        ("curves alone", "", ""),
    ]
    lines = as_markdown(runs).splitlines()
    assert lines[2].startswith("| 1 | a\\|b |")
    assert {line.replace("\\|", "").count("|") for line in lines} == {10}
    for name in ("table.csv", "table.md"):
        write_table(tmp_path / name, runs)
        assert "plain" in (tmp_path / name).read_text()
    with pytest.raises(RequestError, match=r"must end in \.csv or \.md"):
        write_table(tmp_path / "table.txt", runs)
    with pytest.raises(RequestError, match="Cannot write"):
        write_table(tmp_path / "nowhere" / "table.csv", runs)
