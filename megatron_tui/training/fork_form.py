"""The forms that change a run in training or fork it: what they ask, what answers amount to.

No widgets: a screen shows the questions and hands the answers back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_model.config import RunConfig, all_fields, get_setting, with_settings
from megatron_model.control import Change
from megatron_model.errors import RequestError
from megatron_model.fork import forkable
from megatron_model.live_settings import changeable, changed
from megatron_model.run_folder import Checkpoint, RunFolder, check_run_name, free_name
from megatron_model.run_state import RunState
from megatron_tui.curves import OtherRun
from megatron_tui.setup_draft import value_text

FORKED = (
    "training.steps",
    "training.max_seconds",
    "training.learning_rate",
    "training.muon_learning_rate",
    "training.schedule",
    "training.batch_size",
    "training.weight_decay",
    "model.dropout",
    "training.token_dropout",
    "training.seed",
)
"""What the form of a fork asks for, where it means something."""

GENERATIONS = 16
"""A fork of a fork of a fork: so many are followed back."""


def label(key: str) -> str:
    """Return the name of a setting as people read it."""
    return key.partition(".")[2].replace("_", " ")


def live_keys(config: RunConfig) -> tuple[str, ...]:
    """Return the settings that can change while the run trains."""
    return changeable(config)


def live_changes(config: RunConfig, state: RunState, texts: Mapping[str, str]) -> list[Change]:
    """Return what was typed as changes of a run in training.

    Raises:
        RequestError: something cannot be.
    """
    found = []
    for key, text in texts.items():
        value = all_fields()[key].parse(text)
        assert isinstance(value, (int, float))
        if value != get_setting(config, key):
            changed(config, key, value, step=state.step, seconds=state.elapsed_seconds)
            found.append(Change(key, value))
    return found


def fork_keys(config: RunConfig) -> tuple[str, ...]:
    """Return the settings that a fork is asked for."""
    modern = config.model.architecture == "modern"
    unused = {
        "training.steps" if config.training.max_seconds else "training.max_seconds",
        "training.muon_learning_rate" if config.training.optimizer == "adamw" else "",
        "" if modern else "training.token_dropout",
    }
    return tuple(key for key in FORKED if key not in unused and forkable(key))


def fork_name(folder: RunFolder, step: int) -> str:
    """Return a free name for a fork."""
    stem = folder.name.partition("-at-")[0]
    return free_name(folder.path.parent, f"{stem[:90]}-at-{step}")


def fork_config(
    folder: RunFolder, config: RunConfig, checkpoint: Checkpoint, texts: Mapping[str, str]
) -> tuple[str, RunConfig]:
    """Return the name and the configuration of the fork that was typed.

    Raises:
        RequestError: something cannot be.
    """
    name = texts["name"]
    check_run_name(name)
    if (folder.path.parent / name).exists():
        raise RequestError("A run of this name exists; choose another.")
    new = with_settings(config, {key: text for key, text in texts.items() if key != "name"})
    if new.training.steps <= checkpoint.step and not new.training.max_seconds:
        raise RequestError(
            f"training.steps must be more than the {checkpoint.step:,} of the checkpoint."
        )
    return name, new


def ask_texts(config: RunConfig, keys: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Return (key, label, present text) for a form."""
    return [(key, label(key), value_text(get_setting(config, key))) for key in keys]


def ancestors(folder: RunFolder) -> list[OtherRun]:
    """Return the runs that this one was forked from, the oldest first, each up to its branch.

    One that was deleted ends the list: the rest is unknown.
    """
    found: list[OtherRun] = []
    seen: set[Path] = {folder.path}
    until = float("inf")
    while (parent := folder.parent) is not None and len(found) < GENERATIONS:
        name, step = parent
        until = min(until, step)
        path = folder.path.parent / name
        if path in seen or path.name != name:
            break
        seen.add(path)
        try:
            folder = RunFolder.open(path)
            state = folder.state()
        except (RequestError, OSError):
            break
        found.append(OtherRun(f"before: {name}", state, "", "chart-parent", until))
    return found[::-1]
