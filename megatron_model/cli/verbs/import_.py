"""`import`: take in what other programs made, as a run: weights, or curves."""

from __future__ import annotations

import argparse
from pathlib import Path

from megatron_model.cli.asked import runs_dir
from megatron_model.cli.console import say
from megatron_model.cli.curves import add_curve_arguments, import_curves
from megatron_model.run.folder import check_run_name, free_name
from megatron_model.util.errors import RequestError

EXAMPLES = """\
megatron-model import out/ckpt.pt --meta data/shakespeare_char/meta.pkl --name theirs
megatron-model import folder-of-transformers
megatron-model import --csv curves.csv
megatron-model import --tensorboard logs/run-1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument(
        "model",
        metavar="CKPT",
        nargs="?",
        type=Path,
        help="weights: a checkpoint of nanoGPT (ckpt.pt), or a folder of transformers that holds a "
        "GPT-2 with a tokenizer of single characters",
    )
    parser.add_argument(
        "--meta",
        type=Path,
        metavar="META",
        help="nanoGPT's meta.pkl, with the vocabulary (default: beside CKPT)",
    )
    add_curve_arguments(parser)


def run(options: argparse.Namespace) -> int:
    """Make a run of what another program wrote."""
    curves = options.csv or options.tensorboard
    if (options.model is None) == (curves is None):
        raise RequestError("import takes one of CKPT, --csv FILE and --tensorboard DIR.")
    if import_curves(options):
        return 0
    from megatron_model.interop.weights_in import import_weights, read_weights

    source: Path = options.model
    kept = runs_dir(options)
    stem = source.absolute().name if source.is_dir() else source.stem
    name = options.name or free_name(kept, stem)
    check_run_name(name)
    read = read_weights(source, options.meta)
    folder = import_weights(kept, name, source, read)
    state = read.state
    loss = "" if state.val_loss is None else f", validation loss {state.val_loss:.4f}"
    known = f"{state.tokenizer.vocab_size:,} characters"
    say(f"imported {read.kind}: {known}, step {state.step:,}{loss}")
    say(f"run {folder.name} in {folder.path}")
    return 0
