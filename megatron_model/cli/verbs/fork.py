"""`fork`: make a new run from a checkpoint of another one."""

from __future__ import annotations

import argparse

from megatron_model.cli.asked import RUN_HELP, add_changes, changes_asked, runs_dir
from megatron_model.cli.console import say
from megatron_model.config.fields import with_settings
from megatron_model.config.schema import whole_number
from megatron_model.run.folder import find_run
from megatron_model.run.fork import fork_name, fork_run, nearest_checkpoint
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model fork first --set training.learning_rate=1e-4
megatron-model fork first --at 2000 --set training.steps=8000 --name longer
megatron-model train --resume "$(megatron-model fork first --at 2000)"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--at",
        type=whole_number,
        metavar="STEP",
        help="from the checkpoint nearest to this step (default: the newest)",
    )
    add_changes(parser)
    parser.add_argument("--name", help="name of the new run (default: that of RUN, and the step)")


def run(options: argparse.Namespace) -> int:
    """Make the fork beside its parent, and print its name; it is trained by ``--resume``."""
    parent = find_run(options.run, runs_dir(options))
    checkpoint = nearest_checkpoint(parent, options.at)
    if checkpoint is None:
        raise RequestError(f'The run "{safe(parent.name)}" has no checkpoint to start from.')
    config = with_settings(parent.read_config(), changes_asked(options))
    name = fork_name(parent, checkpoint.step) if options.name is None else options.name
    made = fork_run(parent, checkpoint, name, config)
    say(
        f"forked {parent.name} at step {checkpoint.step:,}; train it: "
        f"megatron-model train --resume {made.name}"
    )
    print(made.name)
    return 0
