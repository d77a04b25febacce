"""`export`: write a model's weights, or a run's curves, as another program reads them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from megatron_model.cli.asked import add_model, model_asked
from megatron_model.cli.console import say
from megatron_model.cli.curves import add_curve_exports, export_curves
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

FORMATS = ("pt", "safetensors", "gguf", "hf")

EXAMPLES = """\
megatron-model export first first.pt
megatron-model export first first.safetensors
megatron-model export first folder --format hf
megatron-model export first --csv first.csv
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_model(parser, latest=False)
    parser.add_argument(
        "output",
        metavar="OUT",
        type=Path,
        nargs="?",
        help="a file in .pt, .safetensors or .gguf, or a new folder for --format hf",
    )
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="pt: a plain state dict; safetensors: our own model file; hf: a folder for "
        "transformers; gguf: for llama.cpp, classic models alone. Default: by the name of OUT",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a folder that was exported before"
    )
    add_curve_exports(parser)


def run(options: argparse.Namespace) -> int:
    """Write what was asked for."""
    curves_written = export_curves(options)
    if options.output is None:
        if curves_written:
            return 0
        raise RequestError("export needs OUT, --csv FILE or --tensorboard DIR.")
    output: Path = options.output
    kind = options.format or output.suffix.removeprefix(".")
    if kind not in FORMATS:
        raise RequestError(
            f"{output} must end in .pt or .safetensors or .gguf, or be a folder with --format hf."
        )
    loaded, path = model_asked(options, "cpu")
    from megatron_model.interop.weights_out import export_model

    try:
        used = export_model(loaded, path, output, kind, overwrite=options.overwrite)
    except OSError as error:
        where = safe(str(output), one_line=True)
        raise RequestError(f"Cannot write {where}: {error.strerror or error}.") from None
    loss = loaded.val_loss if loaded.val_loss is not None else math.nan
    say(f"wrote {output} (step {loaded.step:,}, validation loss {loss:.4f})")
    if used:
        say(used)
    return 0
