"""`import`: take in what other programs made."""

from __future__ import annotations

import argparse

from megatron_model.cli.curves import add_curve_arguments, import_curves
from megatron_model.util.errors import RequestError

EXAMPLES = """\
megatron-model import --csv curves.csv --name theirs
megatron-model import --tensorboard logs/run-1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_curve_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Make a run of what another program wrote."""
    if not import_curves(options):
        raise RequestError("import needs --csv FILE or --tensorboard DIR.")
    return 0
