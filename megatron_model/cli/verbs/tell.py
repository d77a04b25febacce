"""`tell`: command a run that is in training."""

from __future__ import annotations

import argparse

from megatron_model.cli.asked import RUN_HELP, key_and_value, runs_dir
from megatron_model.config.fields import all_fields, get_setting
from megatron_model.config.live import changeable, changed
from megatron_model.events.log import last_event
from megatron_model.events.schema import RunFailed, RunFinished
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import REQUESTS, Change, Command
from megatron_model.run.folder import RunFolder, find_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model tell first pause
megatron-model tell first save
megatron-model tell first set training.learning_rate=1e-4
megatron-model tell first set training.steps=20000
"""

SET = "set"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("command", choices=(*REQUESTS, SET), help="what its trainer is to do")
    parser.add_argument(
        "change",
        metavar="KEY=VALUE",
        nargs="*",
        help="with set: what changes, such as training.learning_rate=1e-4",
    )


def run(options: argparse.Namespace) -> int:
    """Send a request to the process that trains a run."""
    if (options.command == SET) != bool(options.change):
        raise RequestError("KEY=VALUE belongs to set: tell RUN set training.learning_rate=1e-4.")
    folder = find_run(options.run, runs_dir(options))
    over = isinstance(last_event(folder.events_path), (RunFinished, RunFailed))
    if over or not folder.is_active():
        raise RequestError(f'No process trains the run "{safe(folder.name)}" now.')
    asked: list[Command] = [options.command]
    if options.command == SET:
        asked = [*_changes(folder, options.change)]
    commands = CommandFolder(folder.path)
    for command in asked:
        commands.send(command)
    return 0


def _changes(folder: RunFolder, items: list[str]) -> list[Change]:
    """Return what was typed as changes; the trainer looks again, at the step it is at then.

    Raises:
        RequestError: a setting cannot change in this run, or not to this value.
    """
    config, state = folder.read_config(), folder.state()
    found = []
    for item in items:
        key, text = key_and_value(item, SET)
        value = get_setting(config, key)
        if key in changeable(config):
            value = all_fields()[key].parse(text)
        config = changed(config, key, value, step=state.step, seconds=state.elapsed_seconds)
        found.append(Change(key, value))
    return found
