"""`flipbook`: one prompt through all checkpoints of a run, as a film or as text."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.cli.console import say
from megatron_model.config.fields import SamplingConfig
from megatron_model.config.schema import fields_of
from megatron_model.run.folder import find_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model flipbook first --prompt "ROMEO:"
megatron-model flipbook first --prompt "ROMEO:" --out romeo.svg
megatron-model flipbook first --prompt "ROMEO:" --max-new-tokens 300 --out romeo.cast
"""
_TAKEN = ("max_new_tokens", "temperature", "seed")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run_name", metavar="RUN", help=RUN_HELP)
    parser.add_argument("--prompt", default="", help="text to go on from; - reads it from stdin")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="FILE.svg plays by itself, FILE.cast in asciinema, FILE.txt is to be read; without "
        "it the text is printed",
    )
    for field in fields_of(SamplingConfig):
        if field.name in _TAKEN:
            default = 400 if field.name == "max_new_tokens" else field.default
            parser.add_argument(
                f"--{field.name.replace('_', '-')}",
                metavar=field.name[0].upper(),
                default=str(default),
                help=f"{field.description} Default {default}.",
            )


def run(options: argparse.Namespace) -> int:
    """Write the film."""
    output: Path | None = options.out
    ending = output.suffix.lower() if output is not None else ".txt"
    folder = find_run(options.run_name, runs_dir(options))
    values = {
        field.name: field.parse(getattr(options, field.name))
        for field in fields_of(SamplingConfig)
        if field.name in _TAKEN
    }
    from megatron_model.analysis.flipbook import turn_pages
    from megatron_model.cli.output import read_prompt
    from megatron_model.interop.film import EXPORTS, WRITERS, film_of_pages
    from megatron_model.util.files import write_asked_for

    if ending not in WRITERS:
        raise RequestError(f"{safe(str(output), one_line=True)} must end in {EXPORTS}.")
    prompt = read_prompt(options.prompt)
    sampling = SamplingConfig(**values)  # type: ignore[arg-type]
    film = film_of_pages(list(turn_pages(folder, prompt, sampling)), prompt, folder.name)
    written = WRITERS[ending](film)
    if output is None:
        sys.stdout.write(written)
        return 0
    write_asked_for(output, written.encode("utf-8", "replace"))
    say(f"wrote {safe(str(output), one_line=True)}")
    return 0
