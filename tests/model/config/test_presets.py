"""A preset on a corpus: small texts are read less often and blanked more; what was chosen stays."""

from __future__ import annotations

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import MOST_BLANKED, MOST_EPOCHS, fitted, get_preset


def epochs(config: RunConfig, size: int) -> float:
    read = config.training.steps * config.training.batch_size * config.sequence_length
    return read / (size * (1 - config.data.validation_fraction))


def test_a_large_text_leaves_the_steps_alone() -> None:
    cpu = get_preset("cpu").config
    config = fitted(cpu, 10**9)
    assert config.training.steps == cpu.training.steps
    assert config.training.token_dropout == 0.0


def test_a_small_text_is_read_fewer_times_and_blanked_more() -> None:
    cpu = get_preset("cpu").config
    config = fitted(cpu, 50_000)
    assert config.training.steps < cpu.training.steps
    assert epochs(config, 50_000) <= MOST_EPOCHS * 1.1
    assert config.training.token_dropout == MOST_BLANKED
    assert config.training.evaluate_every < cpu.training.evaluate_every


def test_blanking_grows_with_repetition() -> None:
    cpu = get_preset("cpu").config
    shares = [fitted(cpu, size).training.token_dropout for size in (10**8, 10**6, 4 * 10**5)]
    assert shares == sorted(shares)
    assert shares[0] < shares[1] < shares[2]


def test_a_short_budget_is_spent_on_short_sequences() -> None:
    cpu = get_preset("cpu").config
    config = fitted(with_settings(cpu, {"training.max_seconds": 20.0}), 10**6)
    assert config.sequence_length < cpu.sequence_length
    per_step = cpu.training.batch_size * cpu.sequence_length
    assert config.training.batch_size * config.sequence_length == per_step


def test_what_was_chosen_stays() -> None:
    chosen = {
        "training.steps": 9000,
        "training.token_dropout": 0.5,
        "training.batch_size": 7,
        "training.max_seconds": 20.0,
    }
    config = fitted(with_settings(get_preset("cpu").config, chosen), 20_000, chosen)
    training = config.training
    assert (training.steps, training.token_dropout, training.batch_size) == (9000, 0.5, 7)


def test_the_seed_preset_is_never_changed() -> None:
    seed = get_preset("seed").config
    assert fitted(seed, 1000) == seed
