"""The forms that change a run in training or fork it: what they ask, what answers amount to.

No widgets; see run_dialogs.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from megatron_model.config.fields import RunConfig, all_fields, get_setting, with_settings
from megatron_model.config.live import changeable, changed, check_left
from megatron_model.events.state import RunState
from megatron_model.run.control import Change
from megatron_model.run.folder import Checkpoint, RunFolder, check_run_name
from megatron_model.run.fork import forkable, spent_seconds
from megatron_model.util.errors import RequestError
from megatron_tui.ui.draft import value_text

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
    check_left(
        new, step=checkpoint.step, seconds=spent_seconds(checkpoint), loss=checkpoint.val_loss
    )
    return name, new


def ask_texts(config: RunConfig, keys: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Return (key, label, present text) for a form."""
    return [(key, label(key), value_text(get_setting(config, key))) for key in keys]
