"""The command line: its verbs, and the exit status. What a verb takes and does is in `verbs/`.

argparse rather than a library: it starts in milliseconds, and its errors can be kept to one line.
"""

from __future__ import annotations

import argparse
import io
import keyword
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from textwrap import fill, indent
from typing import NoReturn, Protocol, cast

from megatron_model import __version__
from megatron_model.util.arguments import EXIT_WRONG_REQUEST, ArgumentParser
from megatron_model.util.environment import VARIABLES
from megatron_model.util.errors import SAYS, RequestError, RunFailedError, nearest
from megatron_model.util.process import wait_without_spinning
from megatron_model.util.streams import OutputLostError, give_up, open_streams, say
from megatron_model.util.text import safe

EXIT_FAILED = 1


VERBS = {
    "train": "train a model, or resume a run",
    "queue": "have runs trained one after the other",
    "sample": "write text with a model",
    "flipbook": "one prompt through all checkpoints of a run, as a film",
    "evaluate": "loss over the validation split",
    "preflight": "what a run will cost",
    "settings": "what can be set, to what, and what it does",
    "runs": "list the runs, newest first",
    "show": "what is known of a run, and every metric at a step",
    "sweep": "train with several values of a setting, and see which is best",
    "compare": "runs beside each other, ranked, and what differs",
    "note": "write down, or read, what a run is about",
    "tag": "put tags on a run, or take them off",
    "fork": "make a new run from a checkpoint of another one",
    "rename": "give a run another name",
    "archive": "put runs aside, or bring them back",
    "delete": "delete runs and their folders",
    "export": "write a model's weights to a file",
    "import": "take in what other programs made",
    "serve": "answer completions on a port, and a page to type into",
    "report": "write runs as a page to read",
    "tell": "command a run that is in training",
    "completion": "print what makes a shell complete this command",
}
"""Each is the module of its name in `verbs/` (`import_` where Python keeps the word), imported when
it is asked for."""


class Verb(Protocol):
    """What a module in `verbs/` has."""

    EXAMPLES: str
    """Command lines that work, one a line; they end its help."""

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare what the verb takes."""

    def run(self, options: argparse.Namespace) -> int:
        """Do it, and return the exit status."""


def verb_of(name: str) -> Verb:
    """Return the verb's module."""
    module = f"{name}_" if keyword.iskeyword(name) else name
    return cast("Verb", import_module(f"megatron_model.cli.verbs.{module}"))


def build_parser(only: str | None = None) -> ArgumentParser:
    """Return the parser: of every verb, or with the arguments of one alone, which starts sooner."""
    ours = [f"{each.name}: {each.help}" for each in VARIABLES if each.kind == "ours"]
    parser = ArgumentParser(
        prog="megatron-model",
        description="Train character-level transformers and write with them.",
        epilog="VERB --help has examples of each. What was python train.py with a data.txt is:\n"
        "megatron-model train data.txt.\n\nEnvironment variables:\n"
        + "\n".join(fill(line, 78, initial_indent="  ", subsequent_indent="    ") for line in ours),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"megatron-model {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=ArgumentParser
    )
    for name, meaning in VERBS.items():
        verb = verbs.add_parser(
            name,
            help=meaning,
            description=f"{meaning[:1].upper()}{meaning[1:]}.",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.add_argument(
            "--runs-dir",
            type=Path,
            help="where runs are kept (or MEGATRON_RUNS_DIR; default: user data)",
        )
        if only is None or name == only:
            module = verb_of(name)
            module.add_arguments(verb)
            verb.epilog = "examples:\n" + indent(module.EXAMPLES, "  ")
    return parser


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Turn the command line into its parts.

    Raises:
        RequestError: an unknown verb; everything else ends the process as argparse does.
    """
    verb = arguments[0] if arguments else ""
    if verb and not verb.startswith("-") and verb not in VERBS:
        wrong = safe(verb, one_line=True)
        if os.path.exists(verb) or verb.startswith("builtin:"):
            raise RequestError(
                f'"{wrong}" is no verb; to train on it: megatron-model train {wrong}'
            )
        raise RequestError(
            f'Unknown verb "{wrong}"; there are {", ".join(VERBS)}.' + nearest(wrong, VERBS)
        )
    return build_parser(verb).parse_args(arguments)


def run(options: argparse.Namespace) -> int:
    """Carry out the parsed command line and return the exit status."""
    from megatron_model.util.fallback import take_missing

    status = verb_of(options.verb).run(options)
    if options.verb != "train":  # whose log says it
        for text in take_missing(set()):
            say(text)
    return status


def main() -> NoReturn:
    """Run one verb and end the process with its status."""
    begun = time.perf_counter()
    open_streams()
    wait_without_spinning()
    for stream in (sys.stdout, sys.stderr):
        # A terminal or pipe in ASCII gets ``\xe9`` for what it cannot take, not a traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _run(begun)
        sys.stdout.flush()
    except RequestError as error:
        say(f"{SAYS}{safe(str(error), one_line=True)}")
        status = EXIT_WRONG_REQUEST
    except RunFailedError as error:
        say(f"{SAYS}{safe(str(error), one_line=True)}")
        status = EXIT_FAILED
    except (MemoryError, RuntimeError) as error:
        from megatron_model.training.nonfinite import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(
            f"{SAYS}There is not enough memory for this model and text; free some, or "
            "take a model of a smaller block size."
        )
        status = EXIT_FAILED
    except OutputLostError as error:
        say(f"{SAYS}{error}")
        give_up(1)
        status = EXIT_FAILED
    except BrokenPipeError:
        # The reader of our output is gone; leave without a second complaint at shutdown.
        give_up(1)
        status = EXIT_FAILED
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _run(begun: float) -> int:
    try:
        options = parse(sys.argv[1:])
    except SystemExit as end:  # what argparse has printed is written now, where it can be refused
        return end.code if isinstance(end.code, int) else 0
    options.begun = begun
    return run(options)
