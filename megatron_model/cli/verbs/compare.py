"""`compare`: runs beside each other, the best first, and which of their settings differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.cli.console import print_table, say
from megatron_model.run.comparison import AXES, as_csv, as_markdown, read_run, table
from megatron_model.run.folder import find_run
from megatron_model.util.errors import RequestError
from megatron_model.util.files import write_asked_for
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model compare first second third
megatron-model compare first second --by flops
megatron-model compare --markdown table.md $(megatron-model runs --names --filter tag=sweep)
"""

SHOWN = 28
"""Characters of the widest column on a terminal; a file has them all."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", nargs="+", help=RUN_HELP)
    parser.add_argument(
        "--by",
        choices=AXES,
        default="step",
        help="where runs are at the same place: after as many steps, seconds of training, "
        "characters or floating-point operations (default: step)",
    )
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write it as Markdown")


def run(options: argparse.Namespace) -> int:
    """Print the table, or write it where that was asked."""
    kept = runs_dir(options)
    named = [find_run(name, kept) for name in options.run]
    folders = {folder.path.absolute(): folder for folder in named}
    if len(folders) < 2:
        raise RequestError("compare needs two runs or more.")
    runs = [read_run(folder) for folder in folders.values()]
    for path, form in ((options.csv, as_csv), (options.markdown, as_markdown)):
        if path is not None:
            write_asked_for(path, form(runs, options.by).encode(errors="backslashreplace"))
            say(f"wrote {safe(str(path), one_line=True)}")
    if options.csv is None and options.markdown is None:
        titles, rows = table(runs, options.by)
        lines = [titles, *([_cut(str(cell)) for cell in row] for row in rows)]
        print_table(lines, left=("run",))
    return 0


def _cut(cell: str) -> str:
    return cell if len(cell) <= SHOWN else f"{cell[: SHOWN - 1]}…"
