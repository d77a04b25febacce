"""What a run on several devices costs each: memory, and what it sends to the others. No torch.

Bytes sent are those of the ring algorithms that NCCL and gloo use: a sum over N ranks costs each
2 (N - 1) / N times the tensor, gathering or scattering one (N - 1) / N times. With the whole model
on each device (DDP) every step sums the gradients, and gathers the matrices that Muon
orthogonalised, in its own arithmetic. Divided (FSDP2) it gathers each layer's weights for the
forward and again for the backward pass, scatters the gradients, and exchanges Muon's matrices
twice.
"""

from __future__ import annotations

import math
import re
from typing import Literal

import msgspec
from msgspec import Struct

from megatron_model.config.fields import RunConfig
from megatron_model.device import DeviceInfo
from megatron_model.model.size import count_parameters
from megatron_model.planning.preflight import (
    VOCABULARY_GUESS,
    efficiency,
    flops_per_character,
    preflight,
    will_compile_on_card,
)
from megatron_model.util.errors import RequestError

BANDWIDTH = 25e9
"""Bytes a second that each device is taken to send where nothing is said."""

UNITS = {"": 1, "k": 1000, "m": 1000**2, "g": 1000**3, "t": 1000**4}
BINARY = {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}


class DeviceCost(Struct, frozen=True, kw_only=True):
    """One device's part of a run; bytes and seconds, None where something is not known."""

    sharding: Literal["none", "full"]
    devices: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    buffers_bytes: int
    """What is put together from others' parts meanwhile."""
    total_bytes: int
    fits: bool | None
    micro_batch: int
    """Sequences worked on at once, of the device's part of the batch."""
    traffic_bytes: int
    """Sent by each device in every step."""
    compute_seconds: float | None
    """What a step takes on one device alone."""
    traffic_seconds: float | None
    speedup: float | None
    """Against one device, if nothing is sent while something is computed: it can only be more."""


def per_device(
    config: RunConfig,
    vocabulary: int | None,
    *,
    devices: int,
    sharding: Literal["none", "full"],
    device: DeviceInfo | None,
    bandwidth: float | None = None,
) -> DeviceCost:
    """Work out one device's part of `config`.

    Args:
        config: what was asked; its batch is divided among the devices.
        vocabulary: different characters; None takes a guess.
        devices: how many train together.
        sharding: ``none`` keeps the whole model on each device, ``full`` divides it.
        device: one of them.
        bandwidth: bytes a second that each device sends to the others.
    """
    vocabulary = vocabulary or VOCABULARY_GUESS
    rows = math.ceil(config.training.batch_size / devices)
    training = msgspec.structs.replace(config.training, batch_size=rows)
    part = msgspec.structs.replace(config, training=training)
    alone = preflight(part, vocabulary_size=vocabulary, device=device)
    share = devices if sharding == "full" else 1
    wide = _bytes_of_muon(config, device)
    buffers = (
        _gathered_matrices(config, wide) if sharding == "none" else _unit_bytes(config, vocabulary)
    )
    kept = [alone.weights_bytes, alone.gradients_bytes, alone.optimizer_bytes]
    weights, gradients, optimizer = (math.ceil(value / share) for value in kept)
    total = weights + gradients + optimizer + alone.activations_bytes + buffers
    traffic = traffic_bytes(config, vocabulary, devices=devices, sharding=sharding, device=device)
    compute = _compute_seconds(config, vocabulary, device)
    sending = None if bandwidth is None else traffic / bandwidth
    speedup = None
    if compute is not None and sending is not None:
        speedup = compute / (compute / devices + sending)
    return DeviceCost(
        sharding=sharding,
        devices=devices,
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=alone.activations_bytes,
        buffers_bytes=buffers,
        total_bytes=total,
        fits=None if device is None else total <= device.memory_free,
        micro_batch=alone.micro_batch,
        traffic_bytes=traffic,
        compute_seconds=compute,
        traffic_seconds=sending,
        speedup=speedup,
    )


def one_of(device: DeviceInfo, devices: int) -> DeviceInfo:
    """Return what one of so many processes has of a machine with this device.

    A card is its own; the memory and the cores of the machine are divided.
    """
    if device.kind != "cpu":
        return device
    rate = device.matrix_rate and device.matrix_rate / devices
    return msgspec.structs.replace(
        device, memory_free=device.memory_free // devices, matrix_rate=rate
    )


def traffic_bytes(
    config: RunConfig,
    vocabulary: int,
    *,
    devices: int,
    sharding: Literal["none", "full"],
    device: DeviceInfo | None = None,
) -> int:
    """Return the bytes that each device sends in a step."""
    parameters = count_parameters(config.model, vocabulary)
    others, wide = devices - 1, _bytes_of_muon(config, device)
    if sharding == "none":
        numbers = parameters + 1  # the loss goes along
        gathered = others * sum(
            wide * math.ceil(count / devices) * size for count, size in _stacks(config)
        )
        return 2 * others * math.ceil(4 * numbers / devices) + gathered
    root = _root_parameters(config, vocabulary)
    passes = 2 * (parameters - root) + root  # what the root holds is kept until its backward pass
    exchanged = sum(
        2 * wide * math.ceil(count / devices) * (size // devices) for count, size in _stacks(config)
    )
    return others * (4 * math.ceil((passes + parameters) / devices) + exchanged)


def check_batch(config: RunConfig, devices: int) -> None:
    """Refuse a batch with fewer sequences than there are processes.

    Raises:
        RequestError: that is so.
    """
    rows = config.training.batch_size
    if rows < devices:
        raise RequestError(
            f"training.batch_size ({rows}) is less than the {devices} processes that train "
            "together; each needs a sequence of its own."
        )


def check_device(config: RunConfig, _devices: int) -> None:
    """Refuse a device that several processes cannot each have one of.

    Raises:
        RequestError: that is so.
    """
    name = config.training.device
    if name not in ("auto", "cpu", "cuda"):
        raise RequestError(
            f'training.device is "{name}"; a run on several devices needs auto, cpu or cuda.'
        )


def check_divisible(config: RunConfig, devices: int) -> None:
    """Refuse a model whose matrices cannot be divided evenly by rows.

    Raises:
        RequestError: that is so.
    """
    model = config.model
    for name, value in (("embed_dim", model.embed_dim), ("ff_dim", model.ff_dim)):
        if model.architecture == "modern" and value % devices:
            raise RequestError(
                f"model.{name} ({value}) cannot be divided among {devices} devices; choose a "
                "multiple, or training.sharding none."
            )


def parse_amount(text: str, what: str) -> float:
    """Read an amount such as ``80GiB``, ``25GB/s`` or ``300T``.

    Raises:
        RequestError: it is none.
    """
    match = re.fullmatch(r"([0-9.]+)\s*([kmgt]?i?)(b|b/s|flops)?", text.strip().lower())
    try:
        assert match is not None
        amount = float(match[1]) * {**UNITS, **BINARY}[match[2]]
        assert 0 < amount < float("inf")
        return amount
    except (AssertionError, KeyError, ValueError):
        raise RequestError(
            f'{what} must be an amount above 0, such as 80GiB, not "{text}".'
        ) from None


def _stacks(config: RunConfig) -> list[tuple[int, int]]:
    """Return how many matrices Muon orthogonalises, and the numbers in each, by their shape."""
    model = config.model
    if config.training.optimizer != "muon" or model.architecture != "modern":
        return []
    return [
        (4 * model.layers, model.embed_dim**2),
        (2 * model.layers, model.embed_dim * model.ff_dim),
    ]


def _gathered_matrices(config: RunConfig, wide: int) -> int:
    return max((wide * count * size for count, size in _stacks(config)), default=0)


def _bytes_of_muon(config: RunConfig, device: DeviceInfo | None) -> int:
    """Return the bytes of a number that Muon exchanges; see `training.muon.iteration_dtype`."""
    emulated = device is not None and device.kind == "cpu" and not device.bfloat16
    return 4 if emulated or config.training.muon_precision == "float32" else 2


def _root_parameters(config: RunConfig, vocabulary: int) -> int:
    """Return the weights that belong to no layer."""
    width = config.model.embed_dim
    if config.model.architecture == "modern":
        return 2 * vocabulary * width + width
    return (2 * vocabulary + config.model.block_size) * width + vocabulary + 2 * width


def _unit_bytes(config: RunConfig, vocabulary: int) -> int:
    """Return what is whole at once: the root and two layers, the next one being fetched."""
    root = _root_parameters(config, vocabulary)
    layer = (count_parameters(config.model, vocabulary) - root) // config.model.layers
    return 8 * (root + 2 * layer)


def _compute_seconds(config: RunConfig, vocabulary: int, device: DeviceInfo | None) -> float | None:
    if device is None or device.matrix_rate is None:
        return None
    per_step = config.training.batch_size * config.sequence_length
    compiled = will_compile_on_card(config, vocabulary, device)
    return (
        flops_per_character(config, vocabulary)
        * per_step
        / (device.matrix_rate * efficiency(config, device, compiled=compiled))
    )


def lines_of(costs: list[DeviceCost]) -> list[tuple[str, str]]:
    """Return what there is to say for people, as names and values."""
    rows = []
    for cost in costs:
        kind = "whole on each (DDP)" if cost.sharding == "none" else "divided (FSDP2)"
        fits = "" if cost.fits is None else ", fits" if cost.fits else ", does not fit"
        rows.append((kind, f"{cost.total_bytes / 2**30:.2f} GiB a device{fits}"))
        rows.append(("  traffic", f"{cost.traffic_bytes / 1e6:,.1f} MB a device and step"))
        if cost.speedup is not None:
            rows.append(("  speed", f"at least {cost.speedup:.2f} times that of one device"))
    return rows
