"""`train`: train a new run, or resume one."""

from __future__ import annotations

import argparse
import contextlib
import os
from functools import partial
from pathlib import Path

from megatron_model.cli.asked import (
    CORPUS_HELP,
    add_configuration,
    add_start,
    changes_asked,
    request,
    runs_dir,
)
from megatron_model.cli.console import follow, say
from megatron_model.config.fields import RunConfig, get_setting, with_settings
from megatron_model.config.schema import number, whole_number
from megatron_model.data.corpus import find_corpus
from megatron_model.distributed.launcher import launch, started_by_torchrun
from megatron_model.planning.compile_choice import begin_compiling
from megatron_model.run.folder import RunFolder, find_run, list_runs
from megatron_model.util.errors import RequestError

EXAMPLES = """\
megatron-model train shakespeare.txt
megatron-model train shakespeare.txt --preset auto --max-seconds 600
megatron-model train texts/ --preset cpu --set model.layers=4 --set training.batch_size=32
megatron-model train builtin:python-reference --config settings.toml --name first
megatron-model train --resume first --set training.steps=20000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.set_defaults(begun=None)
    parser.add_argument("corpus", metavar="CORPUS", nargs="?", help=CORPUS_HELP)
    parser.add_argument(
        "--resume", metavar="RUN", help="resume this run instead of starting a new one"
    )
    parser.add_argument(
        "--take-over",
        action="store_true",
        help="with --resume: have the process that trains the run hand it over, then train it here",
    )
    add_start(parser)
    add_configuration(parser)
    parser.add_argument("--name", help="name of the run (default: corpus and preset)")
    parser.add_argument(
        "--max-seconds", type=number, metavar="S", help="time budget; schedule and run end with it"
    )
    parser.add_argument(
        "--devices", metavar="N", help="train on N devices of this machine, a process on each"
    )
    parser.add_argument(
        "--max-restarts",
        type=whole_number,
        default=0,
        metavar="N",
        help="with several devices: start again from the last checkpoint, N times at most",
    )
    parser.add_argument("--json", action="store_true", help="print the events, one JSON line each")


def run(options: argparse.Namespace) -> int:
    """Train a new run, or resume one: in this process, or in several of its own."""
    if started_by_torchrun():
        from megatron_model.distributed import worker

        flags = {"json_lines": options.json, "take_over": options.take_over}
        flags["begun"] = options.begun
        worker.train(partial(_run_of, options), follow=partial(follow, **flags), say=say)
    folder, changed = _run_of(options)
    with folder.removed_unless_begun():
        return _train(folder, changed, options)


def _train(folder: RunFolder, changed: RunConfig | None, options: argparse.Namespace) -> int:
    devices = (changed or folder.read_config()).training.devices
    if devices > 1:
        arguments = []
        if changed:  # every value as it was understood: they do not work in the current folder
            asked = {key: get_setting(changed, key) for key in changes_asked(options)}
            arguments = [word for key in asked for word in ("--set", f"{key}={asked[key]}")]
        flags = {"--json": options.json, "--take-over": options.take_over}
        arguments += [flag for flag, given in flags.items() if given]
        return launch(folder, devices, max_restarts=options.max_restarts, arguments=arguments)
    begin_compiling(changed or folder.read_config())
    return follow(
        folder,
        changed,
        json_lines=options.json,
        take_over=options.take_over,
        begun=options.begun,
    )


def _run_of(options: argparse.Namespace) -> tuple[RunFolder, RunConfig | None]:
    """Return the run to train, and the configuration to use instead of its own, if any."""
    kept = runs_dir(options)
    if options.take_over and not options.resume:
        raise RequestError("--take-over needs the run to take over: --resume RUN.")
    if options.resume and options.corpus:
        raise RequestError("--resume keeps the run's own corpus; leave CORPUS out.")
    if options.resume:
        if options.preset or options.config or options.name or options.start:
            raise RequestError("--resume keeps the run's name and settings; change one with --set.")
        folder = find_run(options.resume, kept)
        changes = changes_asked(options)
        if "data.corpus" in changes:
            changes["data.corpus"] = find_corpus(str(changes["data.corpus"])).location
        return folder, with_settings(folder.read_config(), changes) if changes else None
    if options.corpus:
        asked = request(options)
        if _attempt() > 0 and (begun := _begun(kept, asked.config, options.name)) is not None:
            return begun, None
        name = asked.name_in(kept) if options.name is None else options.name
        return asked.create(kept, name), None
    hint = " Did you mean megatron-model train data.txt?" if os.path.isfile("data.txt") else ""
    raise RequestError(
        f"train needs a CORPUS (a text file, a folder, builtin:NAME) or --resume RUN.{hint}"
    )


def _attempt() -> int:
    """Return how often torchrun has started this process again after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _begun(kept: Path, config: RunConfig, name: str | None) -> RunFolder | None:
    """Return the run that an attempt before this one began: the newest with just these settings."""
    for folder in list_runs(kept):
        with contextlib.suppress(RequestError):
            if (name is None or folder.name == name) and folder.read_config() == config:
                return folder
    return None
