"""What several verbs take: where runs are kept, a model, a corpus, and a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_model.cli.console import say
from megatron_model.config.fields import RunConfig, config_from_toml, with_settings
from megatron_model.config.presets import (
    ACCELERATOR_PRESET,
    AUTO,
    CPU_PRESET,
    PRESETS,
    default_preset,
    fitted,
    get_preset,
)
from megatron_model.data.corpus import find_corpus
from megatron_model.distributed.launcher import processes_here, started_by_torchrun
from megatron_model.planning.sizing import sized
from megatron_model.run.folder import default_runs_dir
from megatron_model.util.errors import RequestError

if TYPE_CHECKING:
    from megatron_model.data.token_cache import PreparedCorpus

CORPUS_HELP = "a text file, a folder of text files, or builtin:NAME"
RUN_HELP = "a run's name or folder"
MODEL_HELP = "a run's name or folder, a checkpoint folder, or a .safetensors file"


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a configuration: `configuration` reads them."""
    parser.add_argument(
        "--preset",
        metavar="P",
        help=f"{', '.join(PRESETS)}, or {AUTO}: chosen for the text, the machine and "
        f"--max-seconds (default: {CPU_PRESET}, or {ACCELERATOR_PRESET} with a GPU)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file")
    add_changes(parser)


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Declare the option that changes single settings: `changes_asked` reads it."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, e.g. model.layers=4 or training.batch_size=32; may be repeated",
    )


def runs_dir(options: argparse.Namespace) -> Path:
    """Return where runs are kept."""
    return options.runs_dir or default_runs_dir()


def changes_asked(options: argparse.Namespace) -> dict[str, object]:
    """Return what ``--set`` and ``--max-seconds`` ask for."""
    changes: dict[str, object] = {}
    for item in options.set:
        key, value = key_and_value(item, "--set")
        changes[key] = value
    if getattr(options, "max_seconds", None) is not None:
        changes["training.max_seconds"] = str(options.max_seconds)
    if getattr(options, "devices", None) is not None:
        changes["training.devices"] = str(options.devices)
    elif getattr(options, "verb", "") == "train" and started_by_torchrun():
        # A process that takes the run over on this machine uses as many; see handover.py.
        changes["training.devices"] = processes_here()
    return changes


def key_and_value(item: str, where: str) -> tuple[str, str]:
    """Return the two halves of ``KEY=VALUE``.

    Raises:
        RequestError: it has no value.
    """
    key, separator, value = item.partition("=")
    if not separator:
        raise RequestError(f'{where} "{item}" has no value; write KEY=VALUE, e.g. model.layers=4.')
    return key.strip(), value


def configuration(options: argparse.Namespace) -> tuple[str, RunConfig, PreparedCorpus]:
    """Return the preset's name, the configuration asked for, and its corpus.

    The corpus is read for it: a preset is fitted to its characters, which no number of bytes tells.
    """
    from megatron_model.data.report import corpus_notes
    from megatron_model.data.token_cache import prepare_now
    from megatron_model.device import choose_device

    if options.preset is None and options.config:
        name, config = "", RunConfig()
    else:
        name = default_preset(choose_device().type) if options.preset is None else options.preset
        if name == AUTO and options.config:
            raise RequestError("--preset auto chooses what --config sets; leave one of them out.")
        config = RunConfig() if name == AUTO else get_preset(name).config
    if options.config:
        config = config_from_toml(options.config, base=config)
    # A resume may start in another folder.
    changes = {**changes_asked(options), "data.corpus": find_corpus(options.corpus).location}
    config = with_settings(config, changes)
    data = config.data
    source = find_corpus(options.corpus, data.reading)
    prepared = prepare_now(source, data.encoding, errors=data.errors)
    for note in corpus_notes(source, prepared, data.encoding):
        say(note)
    if name == AUTO:
        config = _sized(config, changes, prepared)
    if not options.config:
        config = fitted(config, prepared.characters, changes.keys())
    return name or options.config.stem, config, prepared


def _sized(asked: RunConfig, changes: dict[str, object], prepared: PreparedCorpus) -> RunConfig:
    """Return what is chosen for the text, the machine and the time, with what was asked."""
    from megatron_model.device import measured_device

    found = sized(
        prepared.characters,
        measured_device(asked.training.device, asked.training.precision),
        seconds=asked.training.max_seconds,
        vocabulary=len(prepared.vocabulary),
    )
    for reason in found.reasons:
        say(reason)
    return with_settings(found.config, changes)
