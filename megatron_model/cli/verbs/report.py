"""`report`: write a run, or several over each other, as one page to read."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_model.cli.asked import runs_dir
from megatron_model.cli.console import say
from megatron_model.run.folder import find_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model report first first.html
megatron-model report first second both.html
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("runs", metavar="RUN", nargs="+", help="a run's name or folder")
    parser.add_argument("output", metavar="OUT.html", type=Path, help="the page to write")


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    output: Path = options.output
    shown = safe(str(output), one_line=True)
    if output.suffix.lower() not in (".html", ".htm"):
        raise RequestError(f"{shown} must end in .html: report RUN... OUT.html.")
    kept = runs_dir(options)
    folders = [find_run(name, kept) for name in options.runs]
    from megatron_model.interop.report import write_report

    write_report(folders, output)
    say(f"wrote {shown}")
    return 0
