"""Measuring real steps in a process of its own."""

from __future__ import annotations

import threading

import pytest

from megatron_model.config.fields import with_settings
from megatron_model.planning.measurement import Measurement, cost_key
from megatron_model.planning.preflight import preflight
from megatron_model.training.probe import Probe, Progress, Request, measure
from tests.model.helpers import tiny_config


def test_steps_are_measured_in_another_process() -> None:
    config = tiny_config()
    said = list(Probe(Request(config, 40)).run())
    found = [progress.measured for progress in said if progress.measured]
    assert len(found) == 1
    assert found[0].seconds_per_step > 0
    assert found[0].steps >= 2
    assert found[0].characters_per_step == 64
    assert not any(progress.error for progress in said)
    assert said[0].doing


def test_it_can_be_stopped() -> None:
    probe = Probe(Request(tiny_config({"training.batch_size": 64}), 40, batches=True))
    timer = threading.Timer(0.3, probe.cancel)
    timer.start()
    said = list(probe.run())
    assert probe.cancelled
    assert not any(progress.error for progress in said)


def test_a_wrong_request_is_an_error_in_words() -> None:
    config = tiny_config({"training.device": "cuda:99"})
    said = list(Probe(Request(config, 40)).run())
    assert "cuda:99" in said[-1].error
    assert "\n" not in said[-1].error


def test_batch_sizes_double_until_it_no_longer_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    def steps(config: object, vocabulary: int, memory: object) -> Measurement:
        batch = config.training.batch_size  # type: ignore[attr-defined]
        seconds = 1.0 + batch / 8  # from some size on, the work grows with the batch
        return Measurement(
            seconds_per_step=seconds, memory_bytes=batch * 1000, batch_size=batch,
            characters_per_step=batch * 16, steps=3, compiled=False,
        )  # fmt: skip

    monkeypatch.setattr("megatron_model.training.probe._take_steps", steps)
    monkeypatch.setattr("megatron_model.training.probe._prepare", lambda config: None)

    def sizes(limit: int | None) -> list[int]:
        said: list[Progress] = []
        measure(Request(tiny_config(), 40, batches=True, memory_limit=limit), said.append)
        return [progress.measured.batch_size for progress in said if progress.measured]

    assert sizes(None) == [1, 2, 4, 8, 16, 32, 64, 128]
    assert sizes(5000) == [1, 2, 4]


def test_a_measurement_holds_for_settings_that_cost_the_same() -> None:
    config = tiny_config()
    longer = with_settings(config, {"training.steps": 999, "training.learning_rate": 0.5})
    wider = with_settings(config, {"model.ff_dim": 128})
    assert cost_key(config, 40) == cost_key(longer, 40)
    assert cost_key(config, 40) != cost_key(wider, 40)
    assert cost_key(config, 40) != cost_key(config, 41)


def test_a_measurement_takes_the_place_of_the_estimate() -> None:
    found = Measurement(
        seconds_per_step=0.25, memory_bytes=10**6, batch_size=4, characters_per_step=64,
        steps=3, compiled=False,
    )  # fmt: skip
    cost = preflight(tiny_config(), measurement=found)
    assert (cost.measured, cost.total_bytes, cost.seconds) == (True, 10**6, 0.25 * 18)
    budget = preflight(tiny_config({"training.max_seconds": 9.0}), measurement=found)
    assert budget.seconds == 9.0


def test_a_disk_without_room_is_a_problem() -> None:
    cost = preflight(tiny_config(), disk_free=10)
    assert "keep_checkpoints" in cost.problems[0]
