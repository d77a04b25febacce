"""The command that trains a run again, exactly: the preset nearest to it, and what differs."""

from __future__ import annotations

import shlex

from megatron_model.config.fields import RunConfig, differences, get_setting, with_settings
from megatron_model.config.presets import PRESETS, fitted


def command_of(config: RunConfig, characters: int) -> list[str]:
    """Return the words of the command.

    Args:
        config: the run's.
        characters: of its corpus: a preset is fitted to them.
    """
    found = {name: _changes(config, name, characters) for name in PRESETS}
    preset = min(found, key=lambda name: len(found[name]))
    words = ["megatron-model", "train", config.data.corpus, "--preset", preset]
    for key in found[preset]:
        words += ["--set", f"{key}={get_setting(config, key)}"]
    return words


def _changes(config: RunConfig, preset: str, characters: int) -> list[str]:
    """Return the settings to name beside a preset, so that fitting it gives the configuration."""
    base = with_settings(PRESETS[preset].config, {"data.corpus": config.data.corpus})
    keys: set[str] = set()
    while True:
        asked = with_settings(base, {key: get_setting(config, key) for key in keys})
        # Naming one setting may change how others are fitted.
        missing = differences(config, fitted(asked, characters, keys)).keys() - keys
        if not missing:
            return sorted(keys)
        keys |= missing


def shown(words: list[str]) -> str:
    """Return the command for a shell, an option a line."""
    lines: list[str] = []
    for word in words:
        if word.startswith("--"):
            lines.append(word)
        elif lines:
            lines[-1] += f" {shlex.quote(word)}"
        else:
            lines.append(word)
    return " \\\n  ".join(lines)
