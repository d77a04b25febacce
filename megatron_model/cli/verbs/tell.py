"""`tell`: command a run that is in training."""

from __future__ import annotations

import argparse

from megatron_model.cli.asked import runs_dir
from megatron_model.events.log import last_event
from megatron_model.events.schema import RunFailed, RunFinished
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import REQUESTS
from megatron_model.run.folder import find_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", help="a run's name or folder")
    parser.add_argument("command", choices=REQUESTS, help="what its trainer is to do")


def run(options: argparse.Namespace) -> int:
    """Send a request to the process that trains a run."""
    folder = find_run(options.run, runs_dir(options))
    over = isinstance(last_event(folder.events_path), (RunFinished, RunFailed))
    if over or not folder.is_active():
        raise RequestError(f'No process trains the run "{safe(folder.name)}" now.')
    CommandFolder(folder.path).send(options.command)
    return 0
