"""The command line: what may be asked, and the exit status. The verbs are in commands.py.

argparse rather than a library: it starts in milliseconds, and its errors can be kept to one line.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from megatron_model import __version__
from megatron_model.config import SamplingConfig
from megatron_model.errors import RequestError, nearest
from megatron_model.presets import PRESETS
from megatron_model.process import wait_without_spinning
from megatron_model.settings import fields_of
from megatron_model.text import safe

EXIT_FAILED = 1
EXIT_WRONG_REQUEST = 2


class _Parser(argparse.ArgumentParser):
    """A parser whose complaint is one line on stderr and exit status 2."""

    def error(self, message: str) -> NoReturn:
        line = f"{self.prog}: {safe(message, one_line=True)} (see {self.prog} --help)"
        print(line, file=sys.stderr)
        sys.exit(EXIT_WRONG_REQUEST)


def build_parser() -> _Parser:
    """Return the parser of every verb."""
    parser = _Parser(
        prog="megatron-model", description="Train character-level transformers and write with them."
    )
    parser.add_argument("--version", action="version", version=f"megatron-model {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True, parser_class=_Parser)
    common = _Parser(add_help=False)
    common.add_argument(
        "--runs-dir",
        type=Path,
        help="where runs are kept (or MEGATRON_RUNS_DIR; default: user data)",
    )
    _add_train(verbs, common)
    _add_sample(verbs, common)
    evaluate = verbs.add_parser("evaluate", parents=[common], help="loss over the validation split")
    evaluate.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    evaluate.add_argument(
        "corpus", metavar="CORPUS", nargs="?", help="default: the run's own corpus"
    )
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument(
        "--surprise",
        type=Path,
        metavar="FILE",
        help="write the log probability of each validation character, one JSON object a line",
    )
    check = verbs.add_parser("preflight", parents=[common], help="what a run will cost")
    check.add_argument("corpus", metavar="CORPUS", help=_CORPUS_HELP)
    _add_configuration(check)
    check.add_argument("--devices", metavar="N", help="for a run on N devices")
    check.add_argument(
        "--device-memory", metavar="80GiB", help="for devices like this, which need not be here"
    )
    check.add_argument(
        "--device-rate", metavar="300T", help="operations a second that such a device reaches"
    )
    check.add_argument(
        "--interconnect",
        metavar="25GB/s",
        default="25GB/s",
        help="what each device sends to the others in a second",
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    runs = verbs.add_parser("runs", parents=[common], help="list the runs, newest first")
    runs.add_argument("--json", action="store_true", help="print one JSON object a run")
    export = verbs.add_parser("export", parents=[common], help="write a model's weights to a file")
    export.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    export.add_argument("output", metavar="OUT.{pt,safetensors}", type=Path)
    tell = verbs.add_parser("tell", parents=[common], help="command a run that is in training")
    tell.add_argument("run", metavar="RUN", help="a run's name or folder")
    tell.add_argument("command", choices=COMMANDS, help="what its trainer is to do")
    return parser


COMMANDS = ("pause", "resume", "save", "evaluate", "sample", "stop")

_CORPUS_HELP = "a text file, a folder of text files, or builtin:NAME"
_MODEL_HELP = "a run's name or folder, a checkpoint folder, or a .safetensors file"


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", metavar="P", help=f"{', '.join(PRESETS)} (default: cpu, or small with a GPU)"
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, e.g. model.layers=4 or training.batch_size=32; may be repeated",
    )


def _add_train(verbs: argparse._SubParsersAction, common: _Parser) -> None:  # type: ignore[type-arg]
    train = verbs.add_parser("train", parents=[common], help="train a model, or go on with a run")
    train.add_argument("corpus", metavar="CORPUS", nargs="?", help=_CORPUS_HELP)
    train.add_argument("--resume", metavar="RUN", help="go on with this run instead of a new one")
    train.add_argument(
        "--take-over",
        action="store_true",
        help="with --resume: ask the process that trains the run to let it go, then go on",
    )
    _add_configuration(train)
    train.add_argument("--name", help="name of the run (default: corpus and preset)")
    train.add_argument(
        "--max-seconds", type=float, metavar="S", help="time budget; schedule and run end with it"
    )
    train.add_argument(
        "--devices", metavar="N", help="train on N devices of this machine, a process on each"
    )
    train.add_argument(
        "--max-restarts",
        type=int,
        default=0,
        metavar="N",
        help="with several devices: start again from the last checkpoint, N times at most",
    )
    train.add_argument("--json", action="store_true", help="print the events, one JSON line each")


def _add_sample(verbs: argparse._SubParsersAction, common: _Parser) -> None:  # type: ignore[type-arg]
    sample = verbs.add_parser("sample", parents=[common], help="write text with a model")
    sample.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    sample.add_argument("--prompt", default="", help="text to go on from; - reads it from stdin")
    sample.add_argument(
        "--num-samples",
        type=int,
        default=1,
        metavar="N",
        help="texts written at once; their seeds count up. Default 1.",
    )
    sample.add_argument(
        "--jsonl",
        action="store_true",
        help="print one JSON object a sample, with the log probability of each character",
    )
    sample.add_argument(
        "--latest", action="store_true", help="a run's newest weights, not its best"
    )
    sample.add_argument(
        "--drop-unknown",
        action="store_true",
        help="leave out prompt characters the model never saw",
    )
    for field in fields_of(SamplingConfig):
        sample.add_argument(
            f"--{field.name.replace('_', '-')}",
            dest=field.name,
            metavar=field.name[0].upper(),
            default=str(field.default),
            help=f"{field.description} Default {field.default or repr(field.default)}.",
        )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Turn the command line into its parts.

    Raises:
        RequestError: an unknown verb; everything else ends the process as argparse does.
    """
    parser = build_parser()
    verbs = next(a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    if arguments and not arguments[0].startswith("-") and arguments[0] not in verbs:
        wrong = safe(arguments[0], one_line=True)
        raise RequestError(
            f'Unknown verb "{wrong}"; there are {", ".join(verbs)}.' + nearest(wrong, verbs)
        )
    return parser.parse_args(arguments)


def main() -> NoReturn:
    """Run one verb and end the process with its status."""
    wait_without_spinning()
    try:
        options = parse(sys.argv[1:])
        from megatron_model import commands

        status = commands.run(options)
        sys.stdout.flush()
    except RequestError as error:
        print(f"megatron-model: {safe(str(error), one_line=True)}", file=sys.stderr)
        status = EXIT_WRONG_REQUEST
    except BrokenPipeError:
        # Whoever read our output is gone; leave without a second complaint at shutdown.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = EXIT_FAILED
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)
