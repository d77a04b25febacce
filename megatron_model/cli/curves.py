"""Curves on the command line: out with `export`, in with `import`."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_model.cli.asked import runs_dir
from megatron_model.cli.console import say
from megatron_model.run.folder import check_run_name, find_run, free_name
from megatron_model.util.text import plural, safe


def add_curve_exports(parser: argparse.ArgumentParser) -> None:
    """Declare where `export` writes the curves of a run."""
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a run's curves as a table")
    parser.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="write a run's curves and samples as an event file of TensorBoard",
    )


def export_curves(options: argparse.Namespace) -> bool:
    """Write the curves where that was asked; return whether it was."""
    if options.csv is None and options.tensorboard is None:
        return False
    from megatron_model.interop.curves_out import write_csv, write_tensorboard

    folder = find_run(options.model, runs_dir(options))
    if options.csv is not None:
        rows = write_csv(folder, options.csv)
        say(f"wrote {_shown(options.csv)} ({plural(rows, 'row')})")
    if options.tensorboard is not None:
        count = write_tensorboard(folder, options.tensorboard)
        say(f"wrote {_shown(options.tensorboard)} ({plural(count, 'event')})")
    return True


def add_curve_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where `import` finds the curves of other programs."""
    sources = parser.add_mutually_exclusive_group()
    sources.add_argument(
        "--csv",
        type=Path,
        metavar="FILE",
        help="curves from a table with a column of steps and one with a loss",
    )
    sources.add_argument(
        "--tensorboard",
        type=Path,
        metavar="DIR",
        help="curves from the event files of one run of TensorBoard",
    )
    parser.add_argument("--name", help="name of the new run (default: that of the file)")


def import_curves(options: argparse.Namespace) -> bool:
    """Make a run of curves where that was asked; return whether it was."""
    if options.csv is None and options.tensorboard is None:
        return False
    from megatron_model.interop import curves_in

    kept = runs_dir(options)
    source: Path = options.csv or options.tensorboard
    name = options.name
    if name is None:
        stem = source.stem if options.csv else source.absolute().name
        name = free_name(kept, stem)
    check_run_name(name)
    read = curves_in.read_csv if options.csv else curves_in.read_tensorboard
    curves = read(source)
    folder = curves_in.import_curves(kept, name, source, curves)
    say(f"imported {curves.sentence()}")
    say(f"run {folder.name} in {folder.path}")
    return True


def _shown(path: Path) -> str:
    return safe(str(path), one_line=True)
