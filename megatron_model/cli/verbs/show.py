"""`show`: what is known of a run, and every metric at a step."""

from __future__ import annotations

import argparse
import bisect
import json
import math
from collections.abc import Callable
from typing import Any

from megatron_model.cli.asked import RUN_HELP, runs_dir
from megatron_model.config.fields import RunConfig, all_fields, get_setting
from megatron_model.config.schema import whole_number
from megatron_model.events.describe import line_of, loss_text
from megatron_model.events.schema import SampleGenerated, local_time
from megatron_model.events.state import RunState, Series
from megatron_model.run.facts import RunFacts
from megatron_model.run.folder import find_run
from megatron_model.util.errors import RequestError
from megatron_model.util.text import bytes_text, duration_text, safe

EXAMPLES = """\
megatron-model show first
megatron-model show first --at 2000
megatron-model show first --json
"""

_METRICS: dict[str, Callable[[float], str]] = {
    "train_loss": loss_text,
    "val_loss": loss_text,
    "learning_rate": lambda value: f"{value:.4g}",
    "gradient_norm": lambda value: f"{value:.4g}",
    "speed": lambda value: f"{value:,.0f} characters/s",
    "memory": bytes_text,
}
"""The curves of a run's state, and how a value of each is written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("run", metavar="RUN", help=RUN_HELP)
    parser.add_argument(
        "--at",
        type=whole_number,
        metavar="STEP",
        help="the metrics as they were last reported at this step (default: the last there are)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print a run's facts, then its metrics at a step and what it wrote there."""
    if options.at is not None and options.at < 0:
        raise RequestError(f"--at is {options.at}; it must be at least 0.")
    facts = RunFacts(find_run(options.run, runs_dir(options)))
    facts.folder.check_readable()
    state, config = facts.folder.state(), facts.folder.read_config()
    at = state.step if options.at is None else options.at
    metrics = {name: point for name in _METRICS if (point := _point(getattr(state, name), at))}
    sample = next((each for each in reversed(state.samples) if each.step <= at), None)
    if options.json:
        print(json.dumps(_object(facts, state, config, at, metrics, sample)))
        return 0
    for name, words in _rows(facts, state):
        print(f"{name:<20} {words}")
    print(f"\nat step {at:,}")
    for name, point in metrics.items():
        value = point["value"]
        shown = "not finite" if value is None else _METRICS[name](value)
        print(f"{name.replace('_', ' '):<20} {shown:<24} (step {point['step']:,})")
    if sample is not None:
        print(f"\nwritten at step {sample.step:,}\n{safe(sample.prompt + sample.text)}")
    return 0


def _point(series: Series, at: int) -> dict[str, Any] | None:
    """Return the last point of a curve up to a step; JSON has no NaN, so its value is None then."""
    index = bisect.bisect_right(series.steps, at) - 1
    if index < 0:
        return None
    return {
        "step": series.steps[index],
        "seconds": series.seconds[index],
        "value": series.values[index] if math.isfinite(series.values[index]) else None,
    }


def _rows(facts: RunFacts, state: RunState) -> list[tuple[str, str]]:
    summary, folder, started = facts.summary, facts.folder, state.started
    checkpoints = [f"{each.step:,}" for each in folder.checkpoints()]
    rows = [
        ("run", folder.name),
        ("status", f"{summary.status}{f': {state.error}' if state.error else ''}"),
        ("folder", f"{folder.path} ({bytes_text(facts.size)})"),
        ("corpus", str(facts.value("corpus") or "-")),
        ("step", f"{state.step:,}" + (f" of {started.steps:,}" if started else "")),
        ("trained for", duration_text(state.elapsed_seconds)),
        ("last heard of", local_time(state.last_time, "%Y-%m-%d %H:%M:%S")),
    ]
    if state.best_val_loss is not None:
        rows.append(("best", f"{loss_text(state.best_val_loss)} at step {state.best_step:,}"))
    if started is not None:
        different = f"{started.vocabulary_size:,} different"
        rows.append(("text", f"{started.characters:,} characters ({different})"))
        rows.append(("model", f"{started.parameters:,} parameters"))
        many = f"{started.devices} x " if started.devices > 1 else ""
        rows.append(("device", f"{many}{started.device}, {started.precision}"))
    rows.append(("checkpoints", ", ".join(checkpoints) or "-"))
    if parent := folder.read_parent():
        rows.append(("forked from", f"{parent[0]} at step {parent[1]:,}"))
    for change in state.changes:
        rows.append(("changed", line_of(change)))
    rows += [("tags", " ".join(facts.about.tags))] if facts.about.tags else []
    rows += [("note", facts.about.note)] if facts.about.note else []
    return [(name, safe(value, one_line=True)) for name, value in rows]


def _object(
    facts: RunFacts,
    state: RunState,
    config: RunConfig,
    at: int,
    metrics: dict[str, Any],
    sample: SampleGenerated | None,
) -> dict[str, Any]:
    """Return all of it as plain values: what ``runs --json`` says, and more."""
    started, parent = state.started, facts.folder.read_parent()
    return {
        **facts.row(),
        "error": state.error,
        "elapsed_seconds": state.elapsed_seconds,
        "characters": started and started.characters,
        "vocabulary_size": started and started.vocabulary_size,
        "parameters": started and started.parameters,
        "device": started and started.device,
        "devices": started and started.devices,
        "precision": started and started.precision,
        "parent": parent and {"name": parent[0], "step": parent[1]},
        "checkpoints": [
            {"step": each.step, "val_loss": each.val_loss} for each in facts.folder.checkpoints()
        ],
        "changes": [
            {"step": each.step, "key": each.key, "old": each.old, "new": each.new}
            for each in state.changes
        ],
        "settings": {key: get_setting(config, key) for key in all_fields()},
        "at": at,
        "metrics": metrics,
        "sample": sample and {"step": sample.step, "prompt": sample.prompt, "text": sample.text},
    }
