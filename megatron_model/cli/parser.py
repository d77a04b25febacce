"""The command line: what may be asked, and the exit status. The verbs are in commands.py.

argparse rather than a library: it starts in milliseconds, and its errors can be kept to one line.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from megatron_model import __version__
from megatron_model.config.fields import SamplingConfig
from megatron_model.config.presets import ACCELERATOR_PRESET, AUTO, CPU_PRESET, PRESETS
from megatron_model.config.schema import fields_of, number, whole_number
from megatron_model.run.control import REQUESTS
from megatron_model.util.arguments import EXIT_WRONG_REQUEST, ArgumentParser
from megatron_model.util.environment import VARIABLES
from megatron_model.util.errors import RequestError, RunFailedError, nearest
from megatron_model.util.process import wait_without_spinning
from megatron_model.util.streams import OutputLostError, give_up, open_streams, say
from megatron_model.util.text import safe

EXIT_FAILED = 1


def build_parser() -> ArgumentParser:
    """Return the parser of every verb."""
    ours = [f"{each.name}: {each.help}" for each in VARIABLES if each.kind == "ours"]
    parser = ArgumentParser(
        prog="megatron-model",
        description="Train character-level transformers and write with them.",
        epilog=f"Environment variables. {'. '.join(ours)}.",
    )
    parser.add_argument("--version", action="version", version=f"megatron-model {__version__}")
    verbs = parser.add_subparsers(
        dest="verb", metavar="VERB", required=True, parser_class=ArgumentParser
    )
    common = ArgumentParser(add_help=False)
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
    tell.add_argument("command", choices=REQUESTS, help="what its trainer is to do")
    return parser


_CORPUS_HELP = "a text file, a folder of text files, or builtin:NAME"
_MODEL_HELP = "a run's name or folder, a checkpoint folder, or a .safetensors file"


def _add_configuration(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        metavar="P",
        help=f"{', '.join(PRESETS)}, or {AUTO}: chosen for the text, the machine and "
        f"--max-seconds (default: {CPU_PRESET}, or {ACCELERATOR_PRESET} with a GPU)",
    )
    parser.add_argument("--config", type=Path, metavar="FILE.toml", help="settings from a file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="one setting, e.g. model.layers=4 or training.batch_size=32; may be repeated",
    )


def _add_train(verbs: argparse._SubParsersAction[ArgumentParser], common: ArgumentParser) -> None:
    train = verbs.add_parser("train", parents=[common], help="train a model, or resume a run")
    train.set_defaults(begun=None)
    train.add_argument("corpus", metavar="CORPUS", nargs="?", help=_CORPUS_HELP)
    train.add_argument(
        "--resume", metavar="RUN", help="resume this run instead of starting a new one"
    )
    train.add_argument(
        "--take-over",
        action="store_true",
        help="with --resume: have the process that trains the run hand it over, then train it here",
    )
    _add_configuration(train)
    train.add_argument("--name", help="name of the run (default: corpus and preset)")
    train.add_argument(
        "--max-seconds", type=number, metavar="S", help="time budget; schedule and run end with it"
    )
    train.add_argument(
        "--devices", metavar="N", help="train on N devices of this machine, a process on each"
    )
    train.add_argument(
        "--max-restarts",
        type=whole_number,
        default=0,
        metavar="N",
        help="with several devices: start again from the last checkpoint, N times at most",
    )
    train.add_argument("--json", action="store_true", help="print the events, one JSON line each")


def _add_sample(verbs: argparse._SubParsersAction[ArgumentParser], common: ArgumentParser) -> None:
    sample = verbs.add_parser("sample", parents=[common], help="write text with a model")
    sample.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    sample.add_argument("--prompt", default="", help="text to go on from; - reads it from stdin")
    sample.add_argument(
        "--num-samples",
        type=whole_number,
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
        say(f"megatron-model: {safe(str(error), one_line=True)}")
        status = EXIT_WRONG_REQUEST
    except RunFailedError as error:
        say(f"megatron-model: {safe(str(error), one_line=True)}")
        status = EXIT_FAILED
    except (MemoryError, RuntimeError) as error:
        from megatron_model.training.nonfinite import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        say(
            "megatron-model: There is not enough memory for this model and text; free some, or "
            "take a model of a smaller block size."
        )
        status = EXIT_FAILED
    except OutputLostError as error:
        say(f"megatron-model: {error}")
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
    from megatron_model.cli import commands

    options.begun = begun
    return commands.run(options)
