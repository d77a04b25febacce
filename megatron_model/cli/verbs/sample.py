"""`sample`: write text with a model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from megatron_model.cli.asked import add_model, model_asked
from megatron_model.config.fields import SamplingConfig
from megatron_model.config.schema import fields_of, whole_number
from megatron_model.util.errors import RequestError
from megatron_model.util.text import with_line_feeds

EXAMPLES = """\
megatron-model sample first --prompt "ROMEO:"
megatron-model sample first --prompt-file scene.txt --max-new-tokens 2000 --temperature 0.7
megatron-model sample first --num-samples 5 --null > five.txt
megatron-model sample first --num-samples 5 --jsonl
megatron-model sample first --typical-p 0.9 --forbidden "0123456789"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    add_model(parser, latest=True)
    prompt = parser.add_mutually_exclusive_group()
    prompt.add_argument("--prompt", help="text to go on from; - reads it from stdin")
    prompt.add_argument(
        "--prompt-file", type=Path, metavar="FILE", help="a file to go on from; - is stdin"
    )
    parser.add_argument(
        "--num-samples",
        type=whole_number,
        default=1,
        metavar="N",
        help="texts written at once; their seeds count up. Default 1.",
    )
    parser.add_argument(
        "--null",
        action="store_true",
        help="end each text with a NUL in place of a line break: no text has one in it",
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help="print one JSON object a sample, with the log probability of each character",
    )
    parser.add_argument(
        "--drop-unknown",
        action="store_true",
        help="leave out prompt characters the model never saw",
    )
    for field in fields_of(SamplingConfig):
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            metavar=field.name[0].upper(),
            default=str(field.default),
            help=f"{field.description} Default {field.default or repr(field.default)}.",
        )


def run(options: argparse.Namespace) -> int:
    """Write text; stdout gets the text alone."""
    if options.num_samples < 1:
        raise RequestError(f"--num-samples is {options.num_samples}; it must be at least 1.")
    asked = {f.name: f.parse(getattr(options, f.name)) for f in fields_of(SamplingConfig)}
    for name in ("stop", "forbidden", "only"):
        asked[name] = with_line_feeds(getattr(options, name))
    sampling = msgspec.structs.replace(SamplingConfig(), **asked)
    loaded, _ = model_asked(options)
    from megatron_model.cli.output import read_prompt, write_json_lines, write_texts

    prompt = read_prompt(options.prompt or "", options.prompt_file)
    if options.drop_unknown:
        prompt = loaded.tokenizer.drop_unknown(prompt)
    if options.jsonl:
        write_json_lines(loaded, prompt, sampling, options.num_samples, sys.stdout)
        return 0
    write_texts(
        loaded,
        prompt,
        sampling,
        options.num_samples,
        sys.stdout,
        terminal=sys.stdout.isatty(),
        null=options.null,
    )
    return 0
