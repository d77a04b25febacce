"""`archive`: put runs aside, where no list shows them, or bring them back."""

from __future__ import annotations

import argparse

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.cli.console import say
from megatron_model.run.archive import archive_of, archive_run, bring_back
from megatron_model.run.folder import find_run
from megatron_model.run.rename import check_idle
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model archive first second
megatron-model archive --undo first
megatron-model runs --archived
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", nargs="+", help=RUN_HELP)
    parser.add_argument("--undo", action="store_true", help="bring them back")


def run(options: argparse.Namespace) -> int:
    """Put aside, or bring back, every run that was named, or none where one cannot be."""
    kept = runs_dir(options)
    where = archive_of(kept) if options.undo else kept
    folders = [find_run(name, where) for name in dict.fromkeys(options.run)]
    for folder in folders:
        check_idle(folder)
    for folder in folders:
        moved = bring_back(folder) if options.undo else archive_run(folder)
        done = "brought back" if options.undo else "put aside"
        say(f"{done}: {safe(moved.name, one_line=True)}")
    return 0
