"""`preflight`: what a run will cost on this machine, or on one that is described."""

from __future__ import annotations

import argparse
import json

import msgspec

from megatron_model.cli.asked import CORPUS_HELP, add_configuration, add_start, request
from megatron_model.cli.console import say
from megatron_model.device import DeviceInfo
from megatron_model.planning.device_cost import lines_of, parse_amount
from megatron_model.planning.multi_device import costs_of_each

EXAMPLES = """\
megatron-model preflight shakespeare.txt --preset medium
megatron-model preflight shakespeare.txt --preset large --devices 8 --device-memory 80GiB
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what the verb takes."""
    parser.add_argument("corpus", metavar="CORPUS", help=CORPUS_HELP)
    add_start(parser)
    add_configuration(parser)
    parser.add_argument("--devices", metavar="N", help="for a run on N devices")
    parser.add_argument(
        "--device-memory", metavar="80GiB", help="for devices like this, which need not be here"
    )
    parser.add_argument(
        "--device-rate", metavar="300T", help="operations a second that such a device reaches"
    )
    parser.add_argument(
        "--interconnect",
        metavar="25GB/s",
        default="25GB/s",
        help="what each device sends to the others in a second",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(options: argparse.Namespace) -> int:
    """Print what a run will cost on this machine."""
    from megatron_model.device import measured_device
    from megatron_model.planning.preflight import preflight as work_out

    asked = request(options)
    config, prepared = asked.config, asked.prepared
    stated = _stated_device(options)
    bandwidth = parse_amount(options.interconnect, "--interconnect")
    about = stated or measured_device(config.training.device, config.training.precision)
    result = work_out(
        config,
        characters=prepared.characters,
        vocabulary_size=len(asked.vocabulary),
        device=about,
    )
    count, vocabulary = config.training.devices, len(asked.vocabulary)
    costs = costs_of_each(config, vocabulary, about, bandwidth) if count > 1 else []
    if options.json:
        print(json.dumps({**msgspec.to_builtins(result), "devices": msgspec.to_builtins(costs)}))
        return 0
    gib = 2**30
    rows = [
        ("parameters", f"{result.parameters:,}"),
        ("memory", f"{result.total_bytes / gib:.2f} GiB of {about.memory_free / gib:.1f} GiB free"),
        ("characters", f"{prepared.characters:,}"),
        ("characters a step", f"{result.characters_per_step:,}"),
        ("epochs", "-" if result.epochs is None else f"{result.epochs:.1f}"),
        ("time", "-" if result.seconds is None else f"about {result.seconds:,.0f} s"),
        ("checkpoints", f"{result.checkpoint_bytes / 2**20:,.0f} MiB on disk"),
    ]
    for name, value in rows + lines_of(costs):
        print(f"{name:<20} {value}")
    for text in result.problems + result.warnings:
        say(text)
    return 0


def _stated_device(options: argparse.Namespace) -> DeviceInfo | None:
    """Return the device that was described, which need not be here."""
    if options.device_memory is None:
        return None
    memory = int(parse_amount(options.device_memory, "--device-memory"))
    rate = options.device_rate
    if rate is not None:
        rate = parse_amount(rate, "--device-rate")
    return DeviceInfo("cuda", "as stated", "GPU", memory, memory, bfloat16=True, matrix_rate=rate)
