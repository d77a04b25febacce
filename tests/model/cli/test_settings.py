"""`settings`: every declaration in words, as a file that works, and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_model.config.fields import RunConfig, all_fields, config_from_toml, get_setting
from megatron_model.config.presets import PRESETS, get_preset
from tests.model.cli.test_cli import Run, assert_refused, run

__all__ = ["run"]  # a fixture


def test_every_setting_is_explained(run: Run) -> None:
    said = run("settings")
    assert (said.status, said.err) == (0, "")
    for field in all_fields().values():
        assert f"{field.key} = " in said.out
        assert f"[{field.allowed}]" in said.out
    joined = " ".join(said.out.split())
    assert all(" ".join(f.description.split()) in joined for f in all_fields().values())


def test_one_setting_or_a_group_is_asked_for(run: Run) -> None:
    one = run("settings", "training.learning_rate").out
    assert one == (
        "training.learning_rate = 0.0003  [number, 0 to 10]\n"
        "    AdamW's peak learning rate. Can change while the run trains.\n"
    )
    group = [json.loads(line) for line in run("settings", "model", "--json").out.splitlines()]
    assert [each["key"] for each in group] == [k for k in all_fields() if k.startswith("model.")]
    small = get_preset("small").config
    with_preset = run("settings", "model.layers", "--preset", "small").out
    assert with_preset.startswith(f"model.layers = {small.model.layers} (default 16)  [whole")
    assert_refused(run("settings", "model.layer"), 'Did you mean "model.layers"?')
    assert_refused(run("settings", "model.layers", "--preset", "smal"), 'Did you mean "small"?')
    assert_refused(run("settings", ""), 'Unknown setting ""')


@pytest.mark.parametrize("preset", [None, *PRESETS])
def test_the_file_says_the_same_again(run: Run, tmp_path: Path, preset: str | None) -> None:
    path = tmp_path / "settings.toml"
    asked = ["--preset", preset] if preset else []
    path.write_text(run("settings", "--toml", *asked).out)
    other = get_preset("smoke" if preset != "smoke" else "seed").config
    wanted = get_preset(preset).config if preset else RunConfig()
    assert config_from_toml(path, base=other) == wanted


def test_a_file_of_some_settings_leaves_the_others(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(run("settings", "training.seed", "--toml").out)
    assert path.read_text().startswith("[training]\nseed = 1337 # Decides")
    base = get_preset("cpu").config
    found = config_from_toml(path, base=base)
    assert get_setting(found, "training.seed") == 1337
    assert found.model == base.model


def test_a_run_can_begin_from_the_file(
    run: Run, tmp_path: Path, corpus: Path, runs_dir: Path
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(run("settings", "--toml", "--preset", "smoke").out)
    changes = ["--set", "training.steps=1", "--set", "training.compile=off"]
    assert run("train", corpus, "--config", path, *changes).status == 0
