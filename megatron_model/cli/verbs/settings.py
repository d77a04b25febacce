"""`settings`: what can be set, to what, and what it does."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import textwrap

from megatron_model.config.fields import (
    RunConfig,
    all_fields,
    config_to_toml,
    get_setting,
    settings_named,
)
from megatron_model.config.live import CHANGEABLE
from megatron_model.config.presets import PRESETS, get_preset
from megatron_model.config.schema import Field

EXAMPLES = """\
megatron-model settings
megatron-model settings training.learning_rate
megatron-model settings model --preset small
megatron-model settings --preset cpu --toml > settings.toml
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "key", metavar="KEY", nargs="?", help="a setting such as model.layers, or a group: model"
    )
    parser.add_argument(
        "--preset",
        metavar="P",
        help=f"show its values: {', '.join(PRESETS)} (default: seed, what stands where nothing "
        "is asked for)",
    )
    parser.add_argument(
        "--toml", action="store_true", help="print a file that train --config takes"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object a setting")


def run(options: argparse.Namespace) -> int:
    """Print settings: for people, as a file for ``--config``, or as JSON lines."""
    config = RunConfig() if options.preset is None else get_preset(options.preset).config
    found = all_fields() if options.key is None else settings_named(options.key)
    if options.toml:
        print(config_to_toml(config, found), end="")
        return 0
    wide = min(100, shutil.get_terminal_size().columns) if sys.stdout.isatty() else 100
    for field in found.values():
        if options.json:
            print(json.dumps(_row(field, config)))
        else:
            print(_paragraph(field, config, wide))
    return 0


def _row(field: Field, config: RunConfig) -> dict[str, object]:
    return {
        "key": field.key,
        "type": field.kind.__name__,
        "choices": field.choices,
        "low": field.low,
        "high": field.high,
        "unit": field.unit,
        "default": field.default,
        "value": get_setting(config, field.key),
        "live": field.key in CHANGEABLE,
        "help": field.description,
    }


def _paragraph(field: Field, config: RunConfig, wide: int) -> str:
    value = get_setting(config, field.key)
    shown = f"{field.key} = {value if value != '' else repr('')}"
    if value != field.default:
        shown += f" (default {field.default if field.default != '' else repr('')})"
    live = " Can change while the run trains." if field.key in CHANGEABLE else ""
    text = f"{field.description}{live}"
    indented = {"initial_indent": "    ", "subsequent_indent": "    "}
    return "\n".join(
        (
            f"{shown}  [{field.allowed}]",
            textwrap.fill(text, max(20, wide), **indented),  # type: ignore[arg-type]
        )
    )
