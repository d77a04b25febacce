"""`rename`: give a run another name."""

from __future__ import annotations

import argparse

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.run.folder import find_run
from megatron_model.run.rename import rename_run

EXAMPLES = """\
megatron-model rename shakespeare-cpu-2 baseline
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument("new", metavar="NEW", help="its new name")


def run(options: argparse.Namespace) -> int:
    """Rename a run that nobody trains."""
    rename_run(find_run(options.run, runs_dir(options)), options.new)
    return 0
