"""`runs`: list the runs, newest first, or those that are meant, in another order."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Iterable

from megatron_model.cli.asked import runs_dir
from megatron_model.events.describe import loss_text
from megatron_model.events.schema import local_time
from megatron_model.run.archive import archive_of
from megatron_model.run.facts import KINDS, RunFacts, sorted_by
from megatron_model.run.folder import list_runs
from megatron_model.util.text import bytes_text, safe

EXAMPLES = """\
megatron-model runs
megatron-model runs --sort val --filter 'val<1.5 and corpus~shake'
megatron-model runs --sort size --reverse
megatron-model runs --filter 'model.layers>=6 and not (status=failed or tag=bad) and age<7d'
megatron-model runs --archived
megatron-model runs --json
"""

NAME_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "--filter",
        metavar="QUERY",
        help="only these: comparisons (< <= > >= = != ~) joined by and, or, not and parentheses, "
        f"over {', '.join(KINDS)} and settings such as model.layers",
    )
    parser.add_argument(
        "--sort", metavar="COLUMN", help="rising by what --filter knows, such as val or size"
    )
    parser.add_argument("--reverse", action="store_true", help="turn the order around")
    parser.add_argument("--archived", action="store_true", help="those that were put aside")
    parser.add_argument("--names", action="store_true", help="print the names alone")
    parser.add_argument("--json", action="store_true", help="print one JSON object a run")


def run(options: argparse.Namespace) -> int:
    """List the runs; one that cannot be shown is a line that says why."""
    where = archive_of(runs_dir(options)) if options.archived else runs_dir(options)
    found: Iterable[RunFacts] = map(RunFacts, list_runs(where))
    if options.filter is not None:
        from megatron_model.run.query import parse_query

        query = parse_query(options.filter)
        found = (each for each in found if query(each.value))
    if options.sort is not None:
        found = sorted_by(list(found), options.sort, falling=options.reverse)
    elif options.reverse:
        found = reversed(list(found))
    if options.names:
        for each in found:
            print(safe(each.folder.name, one_line=True))
    elif options.json:
        for each in found:
            print(json.dumps(each.row()))
    else:
        _print_table(found)
    return 0


def _print_table(found: Iterable[RunFacts]) -> None:
    name_width, head = NAME_WIDTH, False
    if sys.stdout.isatty():
        # All but the name, and some room for tags.
        name_width, head = max(12, min(NAME_WIDTH, shutil.get_terminal_size().columns - 72)), True
    for each in found:
        if head:
            print(
                f"{'run':<{name_width}} {'status':<12} {'step':>8}  {'best':>8}  "
                f"{'last heard of':<16}  {'size':>9}  tags"
            )
            head = False
        print(_line(each, name_width))


def _line(facts: RunFacts, name_width: int) -> str:
    summary = facts.summary
    start = f"{safe(facts.folder.name, one_line=True):<{name_width}} {summary.status:<12}"
    if facts.problem:
        return f"{start} {facts.problem}"
    best = summary.best_val_loss
    shown = "-" if best is None else loss_text(best)
    when = local_time(summary.time, "%Y-%m-%d %H:%M") if summary.time else "-"
    line = (
        f"{start} {summary.step:>8,}  {shown:>8}  {when:<16}  {bytes_text(facts.size):>9}  "
        f"{' '.join(facts.about.tags)}"
    )
    return line.rstrip()
