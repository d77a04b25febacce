"""`note`: write down, or read, what a run is about."""

from __future__ import annotations

import argparse

from msgspec.structs import replace

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.run.about import read_about, write_about
from megatron_model.run.folder import find_run
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model note first "no dropout, to see how soon it overfits"
megatron-model note first
megatron-model note first ""
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "text", metavar="TEXT", nargs="?", help="the new note; empty takes it off (default: print)"
    )


def run(options: argparse.Namespace) -> int:
    """Print a run's note, or replace it."""
    folder = find_run(options.run, runs_dir(options))
    about = read_about(folder)
    if options.text is not None:
        write_about(folder, replace(about, note=options.text))
    elif about.note:
        print(safe(about.note))
    return 0
