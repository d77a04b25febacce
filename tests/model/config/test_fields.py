"""Settings: checked at birth, parsed as typed, and the same through a file and back."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from megatron_model.config.fields import (
    ModelConfig,
    RunConfig,
    SamplingConfig,
    TrainingConfig,
    all_fields,
    config_from_builtins,
    config_from_toml,
    config_to_toml,
    differences,
    get_setting,
    with_settings,
)
from megatron_model.config.presets import PRESETS, get_preset
from megatron_model.config.schema import Field
from megatron_model.events.schema import StepCompleted
from megatron_model.model.factory import build_model
from megatron_model.model.size import count_parameters
from megatron_model.util.errors import RequestError
from tests.model.helpers import make_trainer, tiny_config

FIELDS = list(all_fields().values())
RANGED = [field for field in FIELDS if field.low is not None or field.high is not None]


def refusal(key: str, value: object) -> str:
    with pytest.raises(RequestError) as refused:
        with_settings(RunConfig(), {key: value})
    assert "\n" not in str(refused.value)
    return str(refused.value)


# Declarations


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: field.key)
def test_every_field_is_declared_whole(field: Field) -> None:
    assert field.description.endswith(".")
    assert field.kind in (int, float, str)
    field.check(field.default)
    assert get_setting(RunConfig(), field.key) == field.default


def test_the_defaults_are_the_original_program() -> None:
    config = RunConfig()
    assert config == get_preset("seed").config
    wanted = {
        "model.architecture": "classic",
        "model.block_size": 256,
        "model.embed_dim": 512,
        "model.heads": 16,
        "model.layers": 16,
        "model.ff_dim": 4096,
        "model.dropout": 0.0,
        "training.batch_size": 128,
        "training.steps": 20_000,
        "training.optimizer": "adamw",
        "training.learning_rate": 3e-4,
        "training.schedule": "constant",
        "training.warmup_steps": 0,
        "training.gradient_clip": 0.0,
        "training.log_every": 100,
        "data.validation_fraction": 0.1,
    }
    assert {key: get_setting(config, key) for key in wanted} == wanted


# Ranges


@pytest.mark.parametrize("field", RANGED, ids=lambda field: field.key)
def test_a_value_outside_its_range_is_refused(field: Field) -> None:
    if field.low is not None:
        assert f"{field.key} is " in (said := refusal(field.key, field.low - 1))
        assert "must be at least" in said
    if field.high is not None:
        assert "must be at most" in refusal(field.key, field.high + max(1, field.high))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_must_be_one(value: float) -> None:
    assert "must be a finite number" in refusal("training.learning_rate", value)


def test_ranges_hold_however_a_configuration_is_made() -> None:
    with pytest.raises(RequestError, match=r"model\.layers is 0; it must be at least 1"):
        ModelConfig(layers=0)
    with pytest.raises(RequestError, match=r"training\.schedule"):
        TrainingConfig(schedule="triangle")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"temperature is -1"):
        msgspec.structs.replace(SamplingConfig(), temperature=-1.0)
    with pytest.raises(RequestError, match=r"model\.layers"):
        config_from_builtins({"model": {"layers": -4}})


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        RunConfig().model.layers = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("width", "heads", "advice"), [(10, 4, "8 would be"), (512, 7, "511"), (1, 4, "4 would be")]
)
def test_heads_must_divide_the_width(width: int, heads: int, advice: str) -> None:
    with pytest.raises(RequestError, match="must be a multiple of model.heads") as refused:
        ModelConfig(embed_dim=width, heads=heads)
    assert advice in str(refused.value)


# Keys


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("model.layer", "model.layers"),
        ("model.embeddim", "model.embed_dim"),
        ("training.batchsize", "training.batch_size"),
        ("training.learning-rate", "training.learning_rate"),
        ("layers", "model.layers"),
    ],
)
def test_an_unknown_key_gets_the_nearest_one(key: str, nearest: str) -> None:
    assert refusal(key, 1) == f'Unknown setting "{key}". Did you mean "{nearest}"?'


def test_a_key_like_no_other_gets_no_suggestion() -> None:
    assert refusal("zzz", 1) == 'Unknown setting "zzz".'


# Values as a person types them


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("training.steps", "2000", 2000),
        ("training.steps", " 2_000 ", 2000),
        ("training.steps", "20,000", 20_000),
        ("training.learning_rate", "3e-4", 3e-4),
        ("training.learning_rate", "1", 1.0),
        ("model.architecture", "modern", "modern"),
        ("training.sample_prompt", " The 1,000 ", " The 1,000 "),
        ("data.corpus", "", ""),
    ],
)
def test_typed_text_is_read(key: str, text: str, value: object) -> None:
    found = get_setting(with_settings(RunConfig(), {key: text}), key)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("training.steps", "many"),
        ("training.steps", ""),
        ("training.steps", "1.5"),
        ("training.steps", "1,5"),
        ("training.steps", "20,00"),
        ("training.learning_rate", "0,001"),
        ("training.learning_rate", "fast"),
    ],
)
def test_typed_text_that_is_no_such_value_is_refused(key: str, text: str) -> None:
    said = refusal(key, text)
    assert said.startswith(f"{key} must be ")
    assert f'"{text}"' in said


def test_text_that_is_not_utf8_is_refused() -> None:
    assert "not UTF-8" in refusal("data.corpus", "caf\udce9.txt")


def test_two_fields_that_depend_on_each_other_change_together() -> None:
    base = with_settings(RunConfig(), {"model.embed_dim": 16, "model.heads": 4})
    changed = with_settings(base, {"model.embed_dim": "15", "model.heads": "5"})
    assert (changed.model.embed_dim, changed.model.heads) == (15, 5)
    with pytest.raises(RequestError):
        with_settings(base, {"model.embed_dim": "15"})


def test_differences_are_what_was_changed() -> None:
    changed = with_settings(RunConfig(), {"model.layers": 3, "training.seed": 5})
    assert differences(changed, RunConfig()) == {
        "model.layers": (16, 3),
        "training.seed": (1337, 5),
    }
    assert differences(RunConfig(), RunConfig()) == {}


# Files


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
floats = st.floats(0, 10, allow_nan=False)


@given(prompt=texts, corpus=texts, rate=floats, steps=st.integers(1, 10**12))
def test_a_configuration_survives_its_file(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, corpus: str, rate: float, steps: int
) -> None:
    config = with_settings(
        tiny_config(),
        {
            "training.sample_prompt": prompt,
            "data.corpus": corpus,
            "training.learning_rate": rate,
            "training.steps": steps,
        },
    )
    path = tmp_path_factory.getbasetemp() / "round-trip.toml"
    path.write_bytes(config_to_toml(config).encode())
    assert config_from_toml(path) == config


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_its_file_and_its_record(name: str, tmp_path: Path) -> None:
    config = get_preset(name).config
    path = tmp_path / "preset.toml"
    path.write_text(config_to_toml(config), encoding="utf-8")
    assert config_from_toml(path) == config
    assert config_from_builtins(msgspec.to_builtins(config)) == config


def test_a_file_explains_every_setting() -> None:
    text = config_to_toml(RunConfig())
    assert all(field.description in text for field in FIELDS)


def test_what_a_file_leaves_out_keeps_the_value_of_its_base(tmp_path: Path) -> None:
    path = tmp_path / "some.toml"
    path.write_text("[training]\nlearning_rate = 1\n")
    base = tiny_config({"model.layers": 5})
    config = config_from_toml(path, base=base)
    assert config == with_settings(base, {"training.learning_rate": 1.0})
    assert type(config.training.learning_rate) is float


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[model]\nlayer = 1", ['"model.layer"', 'Did you mean "model.layers"?']),
        ("[modle]\nlayers = 1", ['"modle"', 'Did you mean "model"?']),
        ("model = 3", ['"model" must be a table']),
        ("[model]\nlayers = 1.5", ["model.layers must be a whole number"]),
        ("[model]\nlayers = true", ["model.layers must be a whole number"]),
        ("[model]\ndropout = true", ["model.dropout must be a number"]),
        ("[model]\narchitecture = 3", ["model.architecture must be text"]),
        ("[model]\narchitecture = 'new'", ["model.architecture", "classic, modern"]),
        ("[model]\nlayers = 0", ["model.layers is 0"]),
        ("[data]\nvalidation_fraction = nan", ["finite"]),
        ("[model]\nlayers = 1\nlayers = 2", ["not valid TOML"]),
        ("[model", ["not valid TOML"]),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text: str, words: list[str], tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(RequestError) as refused:
        config_from_toml(path)
    said = str(refused.value)
    assert str(path) in said
    assert all(word in said for word in words), said


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.toml", tmp_path):
        with pytest.raises(RequestError, match=f"Cannot read {path}"):
            config_from_toml(path)
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"[data]\ncorpus = 'caf\xe9'")
    with pytest.raises(RequestError, match=r"latin\.toml is not valid TOML"):
        config_from_toml(latin)


# Presets


def test_an_unknown_preset_gets_the_nearest_one() -> None:
    with pytest.raises(RequestError, match='Did you mean "medium"') as refused:
        get_preset("midium")
    assert all(name in str(refused.value) for name in PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_its_model(name: str) -> None:
    config = get_preset(name).config
    with torch.device("meta"):
        model = build_model(config.model, 100)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config.model, 100)


@pytest.mark.parametrize("name", ["smoke", "cpu"])
def test_the_presets_for_every_machine_take_a_step(name: str) -> None:
    changes = {
        "training.batch_size": 2,
        "training.device": "cpu",
        "training.precision": "float32",
        "training.compile": "off",
    }
    trainer = make_trainer(with_settings(get_preset(name).config, changes))
    first = next(event for event in trainer.run() if isinstance(event, StepCompleted))
    assert first.step == 1
    assert all(bool(weight.isfinite().all()) for weight in trainer.model.parameters())


@pytest.mark.parametrize("name", ["small", "medium", "large", "seed"])
def test_the_presets_for_large_machines_take_a_step_when_made_small(name: str) -> None:
    config = get_preset(name).config
    changes = {
        "model.layers": 1,
        "model.embed_dim": 2 * config.model.heads,
        "model.ff_dim": 16,
        "model.block_size": 16,
        "training.batch_size": 2,
        "training.device": "cpu",
        "training.precision": "float32",
        "training.compile": "off",
    }
    trainer = make_trainer(with_settings(config, changes))
    assert next(event.step for event in trainer.run() if isinstance(event, StepCompleted)) == 1


def test_a_file_nested_without_end_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.toml"
    path.write_text("a = " + "[" * 5000)
    with pytest.raises(RequestError, match=r"deep.toml is not valid TOML: .*nest"):
        config_from_toml(path)
