"""The preset that is chosen for the text, the machine and the time."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.config.presets import MOST_EPOCHS, fitted
from megatron_model.device import DeviceInfo
from megatron_model.model.size import count_parameters
from megatron_model.planning.preflight import preflight
from megatron_model.planning.sizing import PARAMETERS_PER_CHARACTER, sized
from tests.model.helpers import TEXT

GIB = 1 << 30
CPU = DeviceInfo("cpu", "2 CPU cores", "RAM", 16 * GIB, 16 * GIB, True, 4e11)
CARD = DeviceInfo("cuda", "a card", "GPU 0", 80 * GIB, 80 * GIB, True, 7.5e14)
SMALL_CARD = DeviceInfo("cuda", "a card", "GPU 0", 2 * GIB, 2 * GIB, True, 7.5e14)
CHARACTERS = [2_000, 50_000, 1_100_000, 20_000_000, 1_000_000_000]
SECONDS = [5.0, 60.0, 600.0, 7200.0]


def width(characters: int, device: DeviceInfo, seconds: float = 0.0) -> int:
    return sized(characters, device, seconds=seconds).config.model.embed_dim


@pytest.mark.parametrize("device", [CPU, CARD, SMALL_CARD])
def test_more_text_and_more_time_never_make_a_model_smaller(device: DeviceInfo) -> None:
    for seconds in SECONDS:
        widths = [width(characters, device, seconds) for characters in CHARACTERS]
        assert widths == sorted(widths)
    for characters in CHARACTERS:
        widths = [width(characters, device, seconds) for seconds in SECONDS]
        assert widths == sorted(widths)


@pytest.mark.parametrize(
    ("characters", "device", "seconds"), itertools.product(CHARACTERS, [CPU, CARD], [0.0, *SECONDS])
)
def test_what_is_chosen_fits(characters: int, device: DeviceInfo, seconds: float) -> None:
    config = sized(characters, device, seconds=seconds).config
    cost = preflight(config, characters=characters, device=device)
    assert not cost.problems
    assert config.training.max_seconds == seconds
    assert cost.epochs is None or cost.epochs <= MOST_EPOCHS * 1.01
    assert fitted(config, characters).training.steps <= config.training.steps
    parameters = count_parameters(config.model, 100)
    assert parameters <= max(PARAMETERS_PER_CHARACTER * characters, 150_000)


def test_each_bound_is_told_when_it_decides() -> None:
    assert "text is too short" in sized(1_100_000, CARD, seconds=600.0).reasons[0]
    assert "time is too short" in sized(10**9, CPU, seconds=60.0).reasons[0]
    assert "memory is too small" in sized(10**9, SMALL_CARD, seconds=10**6).reasons[0]
    assert "the largest there is" in sized(10**9, CARD, seconds=10**6).reasons[0]
    assert sized(10**6, None).reasons == ["The machine is not measured yet: a small model."]


def test_a_few_minutes_on_two_cores_are_for_the_model_of_the_cpu_preset() -> None:
    assert width(1_100_000, CPU, 110.0) == 128


@pytest.mark.parametrize("device", [CPU, CARD])
def test_the_time_that_is_told_is_the_time_there_is(device: DeviceInfo) -> None:
    assert sized(10**9, device, seconds=60.0).reasons[1].endswith("in 60 s.")


def test_a_model_that_would_memorise_its_text_drops_some() -> None:
    assert sized(1_100_000, CARD).config.model.dropout == 0.2
    assert sized(1_100_000, CPU, seconds=110.0).config.model.dropout == 0.0
    assert sized(10**9, CARD).config.model.dropout == 0.0


def test_a_run_without_a_budget_is_counted_in_steps_of_about_ten_minutes() -> None:
    config = sized(10**9, CPU).config
    cost = preflight(config, characters=10**9, device=CPU)
    assert config.training.max_seconds == 0.0
    assert cost.seconds == pytest.approx(600.0, rel=0.05)


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "megatron_model", *words], capture_output=True, text=True
    )


@pytest.mark.slow
def test_the_command_line_chooses_and_says_why(tmp_path: Path) -> None:
    corpus = tmp_path / "tale.txt"
    corpus.write_text(TEXT * 30)
    done = command("preflight", str(corpus), "--preset", "auto", "--set", "training.device=cpu")
    assert done.returncode == 0, done.stderr
    assert "million parameters" in done.stderr
    done = command(
        "train",
        str(corpus),
        "--preset",
        "auto",
        "--max-seconds",
        "4",
        "--set",
        "training.device=cpu",
        "--name",
        "chosen",
    )
    assert done.returncode == 0, done.stderr
    both = command("preflight", str(corpus), "--preset", "auto", "--config", "run.toml")
    assert both.returncode == 2
    assert "leave one of them out" in both.stderr
