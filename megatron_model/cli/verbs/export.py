"""`export`: write the weights of a model, or the curves of a run, to a file."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from megatron_model.cli.asked import MODEL_HELP, runs_dir
from megatron_model.cli.console import say
from megatron_model.cli.curves import add_curve_exports, export_curves
from megatron_model.run.folder import find_model
from megatron_model.util.errors import RequestError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("output", metavar="OUT.{pt,safetensors}", type=Path, nargs="?")
    add_curve_exports(parser)


def run(options: argparse.Namespace) -> int:
    """Write a model's weights as a plain state dict, or its model file."""
    curves_written = export_curves(options)
    if options.output is None:
        if curves_written:
            return 0
        raise RequestError(
            "export needs OUT.pt or OUT.safetensors, --csv FILE or --tensorboard DIR."
        )
    output: Path = options.output
    if output.suffix not in (".pt", ".safetensors"):
        raise RequestError(f"{output} must end in .pt or .safetensors.")
    path = find_model(options.model, runs_dir(options), say=say)
    from megatron_model.run.checkpoint import load_model, save_plain_weights
    from megatron_model.util.files import write_atomically

    loaded = load_model(path, device="cpu")
    try:
        if output.suffix == ".pt":
            save_plain_weights(output, loaded.model.state_dict(), mode=0o666)
        else:
            write_atomically(output, path.read_bytes(), mode=0o666)
    except OSError as error:
        raise RequestError(f"Cannot write {output}: {error.strerror}.") from None
    loss = loaded.val_loss if loaded.val_loss is not None else math.nan
    say(f"wrote {output} (step {loaded.step:,}, validation loss {loss:.4f})")
    return 0
