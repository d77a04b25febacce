"""`sweep`: a setting in several values, each a run in the queue; and which was best."""

from __future__ import annotations

import argparse
import json

from megatron_model.cli.asked import (
    CORPUS_HELP,
    add_configuration,
    add_start,
    key_and_value,
    request,
    runs_dir,
    start_written_down,
)
from megatron_model.cli.console import print_table, say
from megatron_model.config.fields import all_fields, get_setting
from megatron_model.config.schema import number
from megatron_model.planning.preflight import preflight
from megatron_model.queue import Queue, start_keeper
from megatron_model.sweep.grid import Point, add_sweep, check_room, grid
from megatron_model.sweep.results import SweepResults, free_sweep_name, sweep_results, table
from megatron_model.sweep.values import values_of
from megatron_model.util.errors import RequestError
from megatron_model.util.files import free_bytes
from megatron_model.util.text import plural

EXAMPLES = """\
megatron-model sweep tale.txt --set 'training.learning_rate=0.01..0.08 x4 log' --max-seconds 60
megatron-model sweep tale.txt --set 'model.layers=2, 4' --set 'training.seed=seeds 3' --dry-run
megatron-model sweep --show rates
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("corpus", metavar="CORPUS", nargs="?", help=CORPUS_HELP)
    add_start(parser)
    add_configuration(parser)
    parser.add_argument("--name", help="name of the sweep (default: sweep, sweep-2, ...)")
    parser.add_argument("--max-seconds", type=number, metavar="S", help="time budget of each run")
    parser.add_argument(
        "--dry-run", action="store_true", help="say which runs it would be, and how long they take"
    )
    parser.add_argument("--show", metavar="NAME", help="show what came of a sweep, the best first")
    parser.add_argument("--json", action="store_true", help="with --show: one JSON object a run")


def run(options: argparse.Namespace) -> int:
    """Line a sweep up, or show what came of one."""
    queue = Queue(runs_dir(options))
    if options.show is not None:
        if options.corpus is not None:
            raise RequestError("--show takes no CORPUS: it shows a sweep that there is.")
        _show(sweep_results(queue, options.show), as_json=options.json)
        return 0
    if options.corpus is None:
        raise RequestError("sweep needs a CORPUS to train on, or --show NAME.")
    varied = _varied(options)
    if not varied:
        raise RequestError(
            "No setting has several values; write one as --set 'model.layers=2, 4, 8'."
        )
    asked = request(options)
    points = grid(asked.config, varied)
    _foretell(points, len(asked.vocabulary), asked.prepared.characters, queue)
    if options.dry_run:
        for point in points:
            print(", ".join(f"{key}={value}" for key, value in point.values.items()))
        return 0
    name = options.name or free_sweep_name(queue, "sweep")
    start, start_corpus = start_written_down(options)
    add_sweep(queue, name, points, start=start, start_corpus=start_corpus)
    start_keeper(queue)
    say(f"in the queue; megatron-model sweep --show {name} tells what came of it")
    return 0


def _varied(options: argparse.Namespace) -> dict[str, list[object]]:
    """Take out of ``--set`` what has several values, and leave the first of them there."""
    fields, varied = all_fields(), {}
    for index, item in enumerate(options.set):
        key, value = key_and_value(item, "--set")
        if key in fields and len(values := values_of(fields[key], value)) > 1:
            varied[key] = values
            options.set[index] = f"{key}={values[0]}"
        else:
            varied.pop(key, None)  # of two requests the later one counts
    return varied


def _foretell(points: list[Point], vocabulary: int, characters: int, queue: Queue) -> None:
    """Say how many runs there are and how long they take; refuse what there is no room for."""
    from megatron_model.device import measured_device

    training = points[0].config.training
    device = measured_device(training.device, training.precision)
    check_room(points, vocabulary, free_bytes(queue.runs_dir))
    seconds = [
        preflight(
            point.config, characters=characters, vocabulary_size=vocabulary, device=device
        ).seconds
        for point in points
    ]
    known = [value for value in seconds if value is not None]
    about = f", about {sum(known):,.0f} s in all" if len(known) == len(points) else ""
    say(f"a sweep of {plural(len(points), 'run')}{about}")


def _show(results: SweepResults, *, as_json: bool) -> None:
    if as_json:
        for one in results.runs:
            values = {key: get_setting(one.config, key) for key in results.varied}
            print(json.dumps({**one._asdict(), "config": values}))
        return
    print_table(table(results), left=("run", "status"))
