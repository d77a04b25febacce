"""What several verbs take: where runs are kept, a model, a corpus, and a configuration."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_model.cli.console import say
from megatron_model.config.presets import ACCELERATOR_PRESET, AUTO, CPU_PRESET, PRESETS
from megatron_model.data.corpus import find_corpus
from megatron_model.distributed.launcher import processes_here, started_by_torchrun
from megatron_model.run.folder import default_runs_dir, find_model, find_run
from megatron_model.run.request import Request, Start, ask, start_from
from megatron_model.util.errors import RequestError

if TYPE_CHECKING:
    from megatron_model.run.checkpoint import LoadedModel

CORPUS_HELP = "a text file, a folder of text files, or builtin:NAME"
RUN_HELP = "a run's name or folder"
PLAIN_HELP = "the text that the weights of a plain .pt file were trained on"
MODEL_HELP = "a run's name or folder, a checkpoint folder, a .safetensors or a plain .pt file"


def add_configuration(parser: argparse.ArgumentParser) -> None:
    """Declare the options that make a configuration: `request` reads them."""
    parser.add_argument(
        "--preset",
        metavar="P",
        help=f"{', '.join(PRESETS)}, or {AUTO}: chosen for the text, the machine and "
        f"--max-seconds (default: {CPU_PRESET}, or {ACCELERATOR_PRESET} with a GPU)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file")
    add_changes(parser)


def add_start(parser: argparse.ArgumentParser) -> None:
    """Declare the options that name the model a run begins with: `request` reads them."""
    parser.add_argument(
        "--from",
        dest="start",
        metavar="MODEL",
        help="begin with the weights of a model, and go on from them with CORPUS: " + MODEL_HELP,
    )
    parser.add_argument("--from-corpus", metavar="TEXT", help=f"with --from FILE.pt: {PLAIN_HELP}")


def add_changes(parser: argparse.ArgumentParser) -> None:
    """Declare the option that changes single settings: `changes_asked` reads it."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, e.g. model.layers=4 or training.batch_size=32; may be repeated",
    )


def add_model(parser: argparse.ArgumentParser, *, latest: bool) -> None:
    """Declare the options that name a model: `model_asked` reads them.

    `latest`: a run's newest weights may be asked for in place of its best.
    """
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--corpus", metavar="TEXT", help=f"with FILE.pt: {PLAIN_HELP}")
    if latest:
        parser.add_argument(
            "--latest", action="store_true", help="a run's newest weights, not its best"
        )


def model_asked(options: argparse.Namespace, device: str = "auto") -> tuple[LoadedModel, Path]:
    """Return the model that is asked for, and its file.

    Raises:
        RequestError: there is none, or it cannot be read.
    """
    which = "latest" if getattr(options, "latest", False) else "best"
    path = find_model(options.model, runs_dir(options), which=which, say=say)
    from megatron_model.run.checkpoint import load_model

    return load_model(path, device, corpus=options.corpus), path


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


def request(options: argparse.Namespace) -> Request:
    """Return the run that is asked for, which may begin with a model."""
    return ask(
        options.corpus,
        preset=options.preset,
        file=options.config,
        changes=changes_asked(options),
        start=_start(options),
        say=say,
    )


def _start(options: argparse.Namespace) -> Start | None:
    """Return the model that the run is to begin with."""
    if options.start is None:
        if options.from_corpus:
            raise RequestError("--from-corpus belongs to --from FILE.pt.")
        return None
    return start_from(options.start, runs_dir(options), corpus=options.from_corpus, say=say)


def start_written_down(options: argparse.Namespace) -> tuple[str, str]:
    """Return the model that a run begins with and the text of a plain one, for another process.

    A run's folder stands for its best checkpoint at the time when the new run begins.
    """
    if options.start is None:
        return "", ""
    try:
        model = find_run(options.start, runs_dir(options)).path
    except RequestError:
        model = Path(options.start)
    corpus = find_corpus(options.from_corpus).location if options.from_corpus else ""
    return str(model.absolute()), corpus
