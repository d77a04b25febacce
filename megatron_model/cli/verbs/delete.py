"""`delete`: delete runs and their folders, after having asked."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.cli.console import say
from megatron_model.run.folder import CHECKPOINTS, RunFolder, find_run
from megatron_model.run.rename import check_idle
from megatron_model.util.errors import RequestError
from megatron_model.util.files import bytes_in
from megatron_model.util.text import bytes_text, plural, safe

EXAMPLES = """\
megatron-model delete first second
megatron-model delete --yes $(megatron-model runs --names --filter 'status=failed and age>30d')
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", nargs="+", help=RUN_HELP)
    parser.add_argument("--yes", action="store_true", help="do not ask")


def run(options: argparse.Namespace) -> int:
    """Delete runs that nobody trains: all that were named, or none."""
    found = {}
    for name in options.run:
        folder = find_run(name, runs_dir(options))
        path = Path(os.path.abspath(folder.path))
        found[path] = RunFolder(path)
    for folder in found.values():
        _check(folder)
    if not options.yes and not _agreed(list(found.values())):
        say("nothing was deleted")
        return 1
    for folder in found.values():
        folder.delete()
    return 0


def _check(folder: RunFolder) -> None:
    """Refuse what is in training, a link, or a folder in which a run.toml lies by chance."""
    if folder.path.is_symlink():
        raise RequestError(f'"{safe(folder.name)}" is a link; delete what it points to by hand.')
    check_idle(folder)
    if not (folder.path / CHECKPOINTS).is_dir():
        raise RequestError(
            f"{safe(str(folder.path))} has no folder {CHECKPOINTS}, which every run has; look into "
            "it, and delete it by hand."
        )


def _agreed(runs: list[RunFolder]) -> bool:
    """Ask the person at the terminal.

    Raises:
        RequestError: there is none.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise RequestError("Nobody can be asked here whether to delete; say --yes.")
    size = bytes_text(sum(bytes_in(folder.path) for folder in runs))
    names = ", ".join(safe(folder.name, one_line=True) for folder in runs)
    sys.stderr.write(f"Delete {plural(len(runs), 'run')} ({size}): {names}? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
