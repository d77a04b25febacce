"""`compare`: runs beside each other, the best first, and which of their settings differ."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.cli.console import say
from megatron_model.run.comparison import AXES, as_csv, as_markdown, read_run, table, write_text
from megatron_model.run.folder import find_run
from megatron_model.util.errors import RequestError
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
    folders = {find_run(name, kept).path.absolute(): name for name in options.run}
    if len(folders) < 2:
        raise RequestError("compare needs two runs or more.")
    runs = [read_run(find_run(name, kept)) for name in folders.values()]
    for path, form in ((options.csv, as_csv), (options.markdown, as_markdown)):
        if path is not None:
            write_text(path, form(runs, options.by))
            say(f"wrote {safe(str(path), one_line=True)}")
    if options.csv is None and options.markdown is None:
        _print(*table(runs, options.by))
    return 0


def _print(titles: list[str], rows: list[list[object]]) -> None:
    lines = [[_cut(str(cell)) for cell in line] for line in [list[object](titles), *rows]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = [
            cell.ljust(width) if title == "run" else cell.rjust(width)
            for cell, width, title in zip(line, widths, titles, strict=True)
        ]
        print("  ".join(cells).rstrip())


def _cut(cell: str) -> str:
    return cell if len(cell) <= SHOWN else f"{cell[: SHOWN - 1]}…"
