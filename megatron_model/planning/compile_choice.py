"""Whether the steps of a run are compiled, and what for on a CPU: C kernels. No torch.

The learner asks, and so does the preview of what a run will cost: both get one answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from megatron_model.config.fields import RunConfig
from megatron_model.device import DeviceInfo, may_have_accelerator
from megatron_model.planning.preflight import Preflight, preflight
from megatron_model.util.c_library import CLibrary

COMPILE_FROM_SECONDS = 3.0
"""Time budget of a run on a CPU from which compiling its kernels is earned back."""
COMPILE_IN_ACCELERATOR_SECONDS = 10.0
"""What is left of a time budget at least, where compiling for an accelerator was asked for."""

STEP_LIBRARY = CLibrary(
    "kernels",
    Path(__file__).parents[1] / "training" / "fused" / "kernels.c",
    ["-ffp-contract=fast", "-fopenmp-simd"],
    ["-ffp-contract=fast"],
)
"""What a step on a CPU does between its matrix products."""


class Choice(NamedTuple):
    """Whether the steps are compiled."""

    compiles: bool
    why_not: str = ""
    """What keeps them from it, where that was asked for or would have paid."""


def choose(
    config: RunConfig,
    cost: Preflight,
    *,
    device: str,
    ready: Callable[[], bool],
) -> Choice:
    """Decide whether the steps of a run are compiled: as asked, or where it is earned back.

    Args:
        config: what was asked.
        cost: what the run costs each of its processes (see `cost_of_each`).
        device: ``cpu``, ``cuda`` or ``mps``.
        ready: whether the kernels were compiled already.
    """
    training = config.training
    if training.compile == "off":
        return Choice(False)
    on_cpu = training.compile == "on" or can_be_compiled(config)
    if not (on_cpu if device == "cpu" else cost.compiled_on_card):
        return Choice(False)
    why = obstacle(config, device=device, ready=ready)
    return Choice(not why, why)


def obstacle(
    config: RunConfig,
    *,
    device: str,
    ready: Callable[[], bool],
    seconds_left: float | None = None,
) -> str:
    """Return what keeps the steps from being compiled, or nothing.

    Args:
        config: what was asked.
        device: ``cpu``, ``cuda`` or ``mps``.
        ready: whether the kernels were compiled already.
        seconds_left: of the time budget; None takes all of it.
    """
    left = seconds_left if seconds_left is not None else config.training.max_seconds or math.inf
    least = COMPILE_FROM_SECONDS if device == "cpu" else COMPILE_IN_ACCELERATOR_SECONDS
    if device != "cpu":
        return "" if left >= least else f"{left:.0f} s are too short a time to compile in"
    if not can_be_compiled(config):
        return "on a CPU that is for the modern architecture"
    if ready():
        return ""
    if left < least:
        return f"{left:.0f} s are too short a time to compile in"
    return STEP_LIBRARY.obstacle()


def can_be_compiled(config: RunConfig) -> bool:
    """Whether a CPU's steps of this kind are those whose kernels are written: the modern ones."""
    return config.model.architecture == "modern"


def begin_compiling(config: RunConfig) -> None:
    """Have the compiler at work while torch is still being loaded, where a run will need it."""
    training = config.training
    short = 0.0 < training.max_seconds < COMPILE_FROM_SECONDS
    here = training.device == "cpu" or (training.device == "auto" and not may_have_accelerator())
    if here and training.compile != "off" and can_be_compiled(config) and not short:
        STEP_LIBRARY.begin()


def is_ready() -> bool:
    """Whether the kernels were compiled already."""
    return STEP_LIBRARY.find() is not None


def cost_of_each(
    config: RunConfig, vocabulary_size: int, device: DeviceInfo | None, *, ranks: int, here: int
) -> Preflight:
    """Return what a run costs each of the processes that train it together.

    Args:
        config: what was asked; its batch is divided among them.
        vocabulary_size: different characters.
        device: one of their devices; those on a CPU divide its memory.
        ranks: how many they are.
        here: how many of them are on this machine.
    """
    rows = math.ceil(config.training.batch_size / ranks)
    part = msgspec.structs.replace(config.training, batch_size=rows)
    if device is not None and device.kind == "cpu":
        device = msgspec.structs.replace(device, memory_free=device.memory_free // here)
    whole = msgspec.structs.replace(config, training=part)
    return preflight(whole, vocabulary_size=vocabulary_size, device=device)


def choose_beforehand(config: RunConfig, vocabulary_size: int, device: DeviceInfo | None) -> Choice:
    """Decide what `choose` will, before anything of the run is there.

    Args:
        config: what was asked.
        vocabulary_size: different characters.
        device: the one the run is for, with its matrix rate; None while it is not known.
    """
    if device is None:
        return Choice(False)
    ranks = config.training.devices
    cost = cost_of_each(config, vocabulary_size, device, ranks=ranks, here=ranks)
    return choose(config, cost, device=device.kind, ready=is_ready)
