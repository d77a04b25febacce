"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from megatron_model.events.schema import Evaluated
from megatron_model.events.state import RunState
from megatron_tui.training import readouts as figures
from megatron_tui.ui import formatting
from tests.tui.training.helpers import report


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1.00k"),
        (12_345, "12.3k"),
        (999_499, "999k"),
        (999_600, "1.00M"),
        (803_200, "803k"),
        (4_100_000, "4.10M"),
        (2.5e9, "2.50G"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_count(number: float | None, text: str) -> None:
    assert formatting.count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.00 KiB"),
        (488_583_168, "466 MiB"),
        (36_614_000_000, "34.1 GiB"),
        (1023 * 2**20, "1.00 GiB"),
        (None, "–"),
    ],
)
def test_size(number: float | None, text: str) -> None:
    assert formatting.size(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.047, "47 ms"),
        (0.9999, "1.0s"),
        (8.24, "8.2s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m 00s"),
        (108, "1m 48s"),
        (3 * 3600 + 300, "3h 05m"),
        (2 * 86_400 + 4 * 3600, "2d 4h"),
        (math.inf, "–"),
        (None, "–"),
    ],
)
def test_duration(seconds: float | None, text: str) -> None:
    assert formatting.duration(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "just now"), (42, "42s ago"), (300, "5m ago"), (7200, "2h ago"), (260_000, "3d ago")],
)
def test_age(seconds: float, text: str) -> None:
    assert formatting.age(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(3e-4, "3e-4"), (1.24e-3, "1.2e-3"), (0.41, "0.41"), (0, "0"), (None, "–"), (math.nan, "–")],
)
def test_rate(value: float | None, text: str) -> None:
    assert formatting.rate(value) == text


def test_times() -> None:
    assert [formatting.times(n) for n in (0.8021, 9.79, 2044.4, None)] == [
        "0.802",
        "9.79",
        "2,044",
        "–",
    ]


def test_a_loss_that_is_no_number_says_so() -> None:
    assert formatting.loss(math.nan) == "not a number"
    assert formatting.loss(1.4821) == "1.482"


def test_bits_are_those_of_the_train_loss_beside_them() -> None:
    state = RunState()
    state.apply(report(10, math.log(2)))
    before = dict(figures.now_figures(state))
    state.apply(Evaluated(step=10, val_loss=4.0, bits_per_character=5.77, elapsed_seconds=1.0))
    after = dict(figures.now_figures(state))
    assert (before["loss"], before["bits/char"]) == (after["loss"], after["bits/char"])
    assert after["bits/char"] == "1.00"
    assert after["validation"] == "4.000"
