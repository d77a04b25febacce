"""`queue`: have runs trained one after the other, by a keeper that needs no terminal."""

from __future__ import annotations

import argparse
import json
from typing import get_args

from megatron_model.cli.asked import (
    add_configuration,
    add_start,
    request,
    runs_dir,
    start_written_down,
)
from megatron_model.cli.console import say
from megatron_model.config.schema import number
from megatron_model.data.corpus import find_corpus
from megatron_model.queue.entry import OnInterruption, QueueEntry
from megatron_model.queue.folder import Queue
from megatron_model.queue.keeper import keep
from megatron_model.queue.start import start_keeper
from megatron_model.run.folder import check_run_name
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXAMPLES = """\
megatron-model queue add shakespeare.txt --preset cpu --max-seconds 3600
megatron-model queue add shakespeare.txt --set training.learning_rate=0.002 --tag rates
megatron-model queue list
megatron-model queue move 3 1
megatron-model queue hold 2
megatron-model queue retry 1
"""

DOINGS = ("add", "list", "move", "hold", "release", "remove", "retry", "keep")
_ENTRY = "the number of an entry"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("what", choices=DOINGS, help="what to do")
    parser.add_argument(
        "objects",
        metavar="CORPUS|ID",
        nargs="*",
        help="add: what to train on; move: an entry and its new place; hold, release, remove, "
        "retry: entries",
    )
    add_start(parser)
    add_configuration(parser)
    parser.add_argument("--name", help="name of the run (default: corpus and preset)")
    parser.add_argument(
        "--max-seconds", type=number, metavar="S", help="time budget; schedule and run end with it"
    )
    parser.add_argument("--devices", metavar="N", help="train on N devices of this machine")
    parser.add_argument(
        "--tag", action="append", default=[], metavar="TAG", help="tag the run; may be repeated"
    )
    parser.add_argument("--hold", action="store_true", help="add it held: it waits for a release")
    parser.add_argument(
        "--on-interruption",
        choices=get_args(OnInterruption),
        default="resume",
        help="what becomes of a run that a crash or a restart ended (default: resume)",
    )
    parser.add_argument("--json", action="store_true", help="list: print one JSON object an entry")


def run(options: argparse.Namespace) -> int:
    """Do one thing with the queue, and see to it that somebody keeps it."""
    queue = Queue(runs_dir(options))
    if options.what == "add":
        _add(queue, options)
    elif options.what == "list":
        _expect(options, 0, "nothing behind it")
        _list(queue, as_json=options.json)
    elif options.what == "keep":
        _expect(options, 0, "nothing behind it")
        if keep(queue, say):
            say("a keeper is at work already")
        return 0
    elif options.what == "move":
        _expect(options, 2, "an entry and its place: megatron-model queue move 3 1")
        entry, place = (_number(word) for word in options.objects)
        queue.move(entry, place)
    else:
        if not options.objects:
            raise RequestError(f"queue {options.what} needs {_ENTRY}, or several.")
        do = getattr(queue, options.what)
        for entry in [_number(word) for word in options.objects]:
            do(entry)
    if options.what in ("add", "release", "retry"):
        start_keeper(queue)
    return 0


def _add(queue: Queue, options: argparse.Namespace) -> None:
    _expect(options, 1, "one CORPUS: a text file, a folder or builtin:NAME")
    options.corpus = options.objects[0]
    asked = request(options)
    model, start_corpus = start_written_down(options)
    if options.name is not None:
        check_run_name(options.name)
    corpus = find_corpus(options.corpus).name
    entry = queue.add(
        asked.config,
        name=options.name or queue.name_for(corpus, f"-{asked.label}"),
        start=model,
        start_corpus=start_corpus,
        tags=options.tag,
        on_interruption=options.on_interruption,
        held=options.hold,
    )
    line = [each.id for each in queue.entries() if each.waits]
    place = f", place {line.index(entry.id) + 1} of {len(line)}" if entry.id in line else ""
    say(f"entry {entry.id}: {entry.name}{place}")


def _list(queue: Queue, *, as_json: bool) -> None:
    place = 0
    for entry in queue.entries():
        place += entry.waits
        if as_json:
            print(json.dumps(_row(entry, place if entry.waits else None)))
            continue
        shown = f"{place}." if entry.waits else ""
        title = safe(entry.title, one_line=True) or "-"
        line = f"{entry.id:>4}  {entry.state:<8} {shown:>5}  {title:<36} {entry.problem}"
        print(line.rstrip())


def _row(entry: QueueEntry, place: int | None) -> dict[str, object]:
    return {
        "id": entry.id,
        "state": entry.state,
        "place": place,
        "name": entry.name,
        "run": entry.run,
        "corpus": entry.config.data.corpus,
        "tags": list(entry.tags),
        "on_interruption": entry.on_interruption,
        "problem": entry.problem,
    }


def _expect(options: argparse.Namespace, count: int, what: str) -> None:
    if len(options.objects) != count:
        raise RequestError(f"queue {options.what} takes {what}.")


def _number(word: str) -> int:
    if not (word.isascii() and word.isdigit() and len(word) < 10):
        raise RequestError(f'"{safe(word, one_line=True)}" is not {_ENTRY}, such as 3.')
    return int(word)
