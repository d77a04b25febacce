"""`tag`: put tags on a run, or take them off."""

from __future__ import annotations

import argparse

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.run.about import read_about, with_tags, write_about
from megatron_model.run.folder import find_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model tag first +baseline +paper
megatron-model tag first -paper
megatron-model tag first
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "tags",
        metavar="+TAG|-TAG",
        nargs=argparse.REMAINDER,  # to argparse -TAG would be an option
        help="a tag to put on, or to take off (default: print them)",
    )


def run(options: argparse.Namespace) -> int:
    """Print a run's tags, or change them."""
    folder = find_run(options.run, runs_dir(options))
    about = read_about(folder)
    if not options.tags:
        for tag in about.tags:
            print(tag)
        return 0
    for word in options.tags:
        if word[:1] not in ("+", "-") or word.startswith("-", 1):
            raise RequestError(
                f'"{safe(word, one_line=True)}" is no +TAG or -TAG; options stand before RUN.'
            )
    write_about(folder, with_tags(about, options.tags))
    return 0
