"""The preflight of a run on several devices: each one's part, and what the ranks would refuse."""

from __future__ import annotations

import msgspec
import pytest

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import get_preset
from megatron_model.device import DeviceInfo
from megatron_model.planning.device_cost import one_of
from megatron_model.planning.multi_device import (
    chosen_cost,
    costs_of_each,
    preflight_together,
    suggest_fix_together,
)

GIB = 1 << 30
MACHINE = DeviceInfo("cpu", "8 CPU cores", "RAM", 32 * GIB, 16 * GIB, matrix_rate=8e11)


def card(memory: float) -> DeviceInfo:
    size = int(memory * GIB)
    return DeviceInfo("cuda", "a card", "GPU", size, size, bfloat16=True, matrix_rate=3e14)


def several(devices: int, preset: str = "large", **changes: object) -> RunConfig:
    dotted = {key.replace("__", "."): value for key, value in changes.items()}
    return with_settings(get_preset(preset).config, {"training.devices": devices, **dotted})


def test_processes_share_a_machine_and_cards_do_not() -> None:
    part = one_of(MACHINE, 4)
    assert (part.memory_free, part.matrix_rate) == (4 * GIB, 2e11)
    assert part.memory_total == MACHINE.memory_total
    assert one_of(card(80), 4) == card(80)


def test_the_cost_is_that_of_one_of_them() -> None:
    config = several(4)
    cost = preflight_together(config, characters=10**9, vocabulary_size=100, device=card(80))
    whole, divided = costs_of_each(config, 100, card(80))
    assert cost.total_bytes == whole.total_bytes > divided.total_bytes
    assert cost.fits
    assert cost.memory_free == 80 * GIB
    assert cost.problems == []
    alone = preflight_together(several(2), vocabulary_size=100, device=card(80))
    assert cost.seconds is not None
    assert alone.seconds is not None
    assert 0.5 <= cost.seconds / alone.seconds < 1
    # What does not depend on the number of devices is that of the whole run.
    assert cost.characters_per_step == alone.characters_per_step
    assert cost.checkpoint_bytes == alone.checkpoint_bytes


def test_a_model_that_does_not_fit_is_divided_where_that_is_left_open() -> None:
    huge = {"model__layers": 48, "model__embed_dim": 2304}
    for sharding, divides, fits in (("auto", True, True), ("none", False, False)):
        config = several(8, training__sharding=sharding, **huge)
        costs = costs_of_each(config, 100, card(24))
        assert (chosen_cost(config, costs) is costs[1]) is divides
        cost = preflight_together(config, vocabulary_size=100, device=card(24))
        assert cost.fits is fits
        assert any("training.sharding full" in text for text in cost.problems) is not fits
        options = {"characters": None, "vocabulary_size": 100, "disk_free": None, "cards": 8}
        fix = suggest_fix_together(config, cost, device=card(24), **options)  # type: ignore[arg-type]
        assert fix == ({} if fits else {"training.sharding": "full"})


@pytest.mark.parametrize(
    ("changes", "cards", "words", "fix"),
    [
        ({"training__batch_size": 2}, 8, "less than the 4 processes", {"training.batch_size": 4}),
        ({}, 3, "this machine has 3 CUDA devices", {"training.devices": 3}),
        ({"training__device": "cuda:1"}, 8, "needs auto, cpu or cuda", None),
        ({"training__device": "mps"}, 8, "needs auto, cpu or cuda", None),
        (
            {"training__sharding": "full", "model__ff_dim": 3074},
            8,
            "model.ff_dim (3074) cannot be divided among 4 devices",
            None,
        ),
    ],
)
def test_what_the_ranks_would_refuse_is_said_before(
    changes: dict[str, object], cards: int, words: str, fix: dict[str, object] | None
) -> None:
    config = several(4, **changes)
    options = {"vocabulary_size": 100, "device": card(80), "cards": cards}
    cost = preflight_together(config, **options)  # type: ignore[arg-type]
    assert words in cost.problems[0]
    if fix is not None:
        found = suggest_fix_together(config, cost, characters=None, disk_free=None, **options)  # type: ignore[arg-type]
        assert found == fix


def test_processes_on_a_cpu_promise_no_speed() -> None:
    config = several(2, "cpu")
    assert [cost.speedup for cost in costs_of_each(config, 100, MACHINE)] == [None, None]
    one = msgspec.structs.replace(MACHINE, memory_free=1 << 20)
    cost = preflight_together(config, vocabulary_size=100, device=one)
    assert cost.fits is False
    assert "Each of 2 devices needs" in cost.problems[0]
