"""The preflight of a run on several devices: what each needs, what stands in the way. No torch."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from megatron_model.config.fields import RunConfig
from megatron_model.device import DeviceInfo
from megatron_model.planning.device_cost import (
    BANDWIDTH,
    DeviceCost,
    check_batch,
    check_device,
    check_divisible,
    one_of,
    per_device,
)
from megatron_model.planning.fit import suggest_fix
from megatron_model.planning.preflight import Preflight, preflight
from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural

SHARDINGS: tuple[Literal["none", "full"], ...] = ("none", "full")


def costs_of_each(
    config: RunConfig,
    vocabulary_size: int | None,
    device: DeviceInfo | None,
    bandwidth: float = BANDWIDTH,
) -> list[DeviceCost]:
    """Return what each device of a run needs: with the whole model, and with a part of it."""
    devices = config.training.devices
    one = None if device is None else one_of(device, devices)
    costs = [
        per_device(
            config,
            vocabulary_size,
            devices=devices,
            sharding=sharding,
            device=one,
            bandwidth=bandwidth,
        )
        for sharding in SHARDINGS
    ]
    if device is not None and device.kind == "cpu":
        # Against the same cores in one process they gain nothing that can be worked out.
        costs = [msgspec.structs.replace(cost, speedup=None) for cost in costs]
    return costs


def chosen_cost(config: RunConfig, costs: list[DeviceCost]) -> DeviceCost:
    """Return the one of the two that the run will be: as asked, or what fits."""
    whole, divided = costs
    asked = config.training.sharding
    return divided if asked == "full" or (asked == "auto" and whole.fits is False) else whole


def preflight_together(
    config: RunConfig,
    *,
    characters: int | None = None,
    vocabulary_size: int | None = None,
    device: DeviceInfo | None = None,
    disk_free: int | None = None,
    cards: int | None = None,
) -> Preflight:
    """Work out what `config` will cost each of its devices, on a corpus of `characters`.

    Args:
        config: what was asked; its batch is divided among the devices.
        characters: of the corpus.
        vocabulary_size: different characters; None takes a guess.
        device: one of the devices; for processes on a CPU, all of it.
        disk_free: bytes for checkpoints.
        cards: how many CUDA devices there are; None where that is not known.
    """
    alone = preflight(
        config, characters=characters, vocabulary_size=vocabulary_size, disk_free=disk_free
    )
    costs = costs_of_each(config, vocabulary_size, device)
    each = chosen_cost(config, costs)
    seconds = None
    if each.compute_seconds is not None and each.traffic_seconds is not None:
        step = each.compute_seconds / each.devices + each.traffic_seconds
        seconds = config.training.steps * step
    one = None if device is None else one_of(device, each.devices)
    free = None if one is None else one.memory_free
    warnings = list(alone.warnings)
    rows = math.ceil(config.training.batch_size / each.devices)
    if each.micro_batch < rows:
        warnings.append(
            f"The {plural(rows, 'sequence')} of a device do not fit at once; it processes them "
            f"{each.micro_batch} at a time, with the same result."
        )
    return msgspec.structs.replace(
        alone,
        weights_bytes=each.weights_bytes,
        gradients_bytes=each.gradients_bytes,
        optimizer_bytes=each.optimizer_bytes,
        activations_bytes=each.activations_bytes + each.buffers_bytes,
        total_bytes=each.total_bytes,
        memory_total=None if one is None else one.memory_total,
        memory_free=free,
        fits=each.fits,
        micro_batch=each.micro_batch,
        seconds=config.training.max_seconds or seconds,
        problems=[
            *refusals(config, each, device, cards),
            *_memory_problem(config, each, free),
            *alone.problems,
        ],
        warnings=warnings,
    )


def refusals(
    config: RunConfig, each: DeviceCost, device: DeviceInfo | None, cards: int | None
) -> list[str]:
    """Return what the processes would refuse once they are up."""
    training, found = config.training, []
    name = training.device
    checks = [check_batch, check_device, *([check_divisible] if each.sharding == "full" else [])]
    for check in checks:
        try:
            check(config, training.devices)
        except RequestError as error:
            found.append(str(error))
    on_cards = name == "cuda" or (name == "auto" and device is not None and device.kind == "cuda")
    if on_cards and cards is not None and training.devices > cards:
        found.append(
            f"training.devices is {training.devices}, but this machine has {cards} CUDA "
            f"device{'' if cards == 1 else 's'}."
        )
    return found


def _memory_problem(config: RunConfig, each: DeviceCost, free: int | None) -> list[str]:
    if each.fits is not False or free is None:
        return []
    divide = "choose training.sharding full, " if each.sharding == "none" else ""
    return [
        f"Each of {each.devices} devices needs {each.total_bytes / 2**30:.1f} GiB even one "
        f"sequence at a time, of {free / 2**30:.1f} GiB free: {divide}lower model.layers or "
        "model.embed_dim, or choose a smaller preset."
    ]


def suggest_fix_together(
    config: RunConfig,
    cost: Preflight,
    *,
    characters: int | None,
    vocabulary_size: int | None,
    device: DeviceInfo | None,
    disk_free: int | None,
    cards: int | None,
) -> dict[str, object]:
    """Return the settings to change so that the run can be; empty when that is not known."""
    training = config.training
    on_cards = device is not None and device.kind == "cuda"
    if on_cards and cards is not None and training.devices > cards >= 1:
        return {"training.devices": cards}
    if training.batch_size < training.devices:
        return {"training.batch_size": training.devices}
    if cost.fits is False and training.sharding == "none":
        divided = costs_of_each(config, vocabulary_size, device)[1]
        if divided.fits:
            return {"training.sharding": "full"}
    one = one_of(device, training.devices) if device is not None and cost.fits is False else None
    return suggest_fix(
        config,
        characters=characters,
        vocabulary_size=vocabulary_size,
        device=one,
        disk_free=disk_free,
    )
