"""What is suggested when a run does not fit: it does fit then, and nothing else is changed."""

from __future__ import annotations

import pytest

from megatron_model.config.fields import differences, with_settings
from megatron_model.config.presets import PRESETS
from megatron_model.device import DeviceInfo
from megatron_model.planning.fit import suggest_fix
from megatron_model.planning.preflight import MUCH_REPETITION, preflight


def device(free: int) -> DeviceInfo:
    return DeviceInfo("cuda", "a card", "GPU 0", free, free, True)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("mebibytes", [40, 150, 600, 3000, 100_000])
def test_what_is_suggested_fits(name: str, mebibytes: int) -> None:
    config, there = PRESETS[name].config, device(mebibytes << 20)
    fix = suggest_fix(config, vocabulary_size=80, device=there)
    fitting = with_settings(config, fix)
    assert preflight(fitting, vocabulary_size=80, device=there).fits
    assert set(differences(fitting, config)) <= {
        "model.layers", "model.embed_dim", "model.ff_dim", "model.heads", "model.block_size",
        "training.sequence_length",
    }  # fmt: skip


def test_what_fits_is_left_alone() -> None:
    assert suggest_fix(PRESETS["cpu"].config, device=device(1 << 40), characters=10**7) == {}


def test_the_nearest_model_is_taken_first() -> None:
    config = PRESETS["seed"].config
    needs = preflight(config, vocabulary_size=80, device=device(1 << 40))
    fixed = needs.total_bytes - needs.activations_bytes + needs.activations_bytes // 128
    fix = suggest_fix(config, vocabulary_size=80, device=device(int(fixed * 0.95)))
    assert list(fix) == ["model.layers"]
    assert 10 <= fix["model.layers"] < 16  # type: ignore[operator]


def test_nothing_is_suggested_where_nothing_helps() -> None:
    assert suggest_fix(PRESETS["seed"].config, device=device(1000)) == {}


@pytest.mark.parametrize("characters", [400, 700, 2000])
def test_a_short_text_gets_a_smaller_block(characters: int) -> None:
    config = with_settings(PRESETS["cpu"].config, {"training.sequence_length": 128})
    fix = suggest_fix(config, characters=characters)
    cost = preflight(with_settings(config, fix), characters=characters)
    assert cost.problems == []


def test_a_full_disk_gets_fewer_checkpoints() -> None:
    config = with_settings(PRESETS["cpu"].config, {"training.keep_checkpoints": 20})
    one = preflight(config).checkpoint_bytes // 21
    assert suggest_fix(config, disk_free=5 * one + 10) == {"training.keep_checkpoints": 4}
    assert suggest_fix(config, disk_free=one) == {}


def test_a_text_read_too_often_gets_fewer_steps() -> None:
    config = PRESETS["cpu"].config
    fix = suggest_fix(config, characters=20_000)
    cost = preflight(with_settings(config, fix), characters=20_000)
    assert cost.epochs is not None
    assert 0.8 * MUCH_REPETITION < cost.epochs <= MUCH_REPETITION
