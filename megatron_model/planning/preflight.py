"""What a run will cost, worked out before it starts: parameters, memory, epochs, time, disk.

No torch. The memory formula counts, in bytes: weights and gradients 4 a parameter each; AdamW 8 a
parameter, Muon 4; and the activations that the backward pass needs, per character: in each block
8 C + 2 F numbers in the arithmetic's size (classic), or 16 C numbers in float32 and 2 F in the
arithmetic's size (modern), C = embed_dim and F = ff_dim, plus the logits and their gradient in
float32. Where attention is computed without a fused kernel, each head keeps a few bytes for every
pair of positions in a block. On a card the numbers are others, and fewer where layers are compiled;
the token ids of the training split lie there as well. The coefficients are measured; tests hold
them against torch.
"""

from __future__ import annotations

import math

from msgspec import Struct

from megatron_model.config.fields import RunConfig
from megatron_model.device import DeviceInfo
from megatron_model.model.size import count_parameters, matrix_parameters
from megatron_model.planning.measurement import Measurement
from megatron_model.util.text import plural

MUCH_REPETITION = 40.0
"""Epochs from which there is a warning that the model will memorize its corpus."""

ASSUMED_EFFICIENCY = 0.3
"""Share of the measured matrix rate that a training step reaches on a CPU; for the time alone."""
KERNEL_EFFICIENCY = 0.5
"""The same by compiled kernels: 0.52 to 0.58 measured with the preset for a CPU."""
EFFICIENT_WIDTH = 1800
"""On a card a step of width C reaches C / (C + this): measured on an H100, from 384 to 768."""
UNCOMPILED_SHARE = 0.4
"""What is left of that where layers are not compiled."""
COMPILE_ON_CARD_FROM_SECONDS = 12.0
"""Length of a run on a card from which compiling its layers, in some 7 s, is earned back."""

VOCABULARY_GUESS = 100

MEMORY_SHARE = 0.8
"""Share of the free memory that a step may take: the formula is not exact, and others need some."""


class Preflight(Struct, frozen=True, kw_only=True):
    """The cost of a run; bytes, seconds, characters. None where something is not known yet."""

    parameters: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    corpus_bytes: int
    """Token ids that lie on a card; on a CPU they are read from the disk's cache."""
    total_bytes: int
    compiled_on_card: bool
    """Whether layers are compiled for an accelerator."""
    memory_total: int | None
    memory_free: int | None
    fits: bool | None
    micro_batch: int
    """Sequences worked on at once; the batch is processed in parts of this size."""
    characters_per_step: int
    total_characters: int | None
    epochs: float | None
    seconds: float | None
    checkpoint_bytes: int
    disk_free: int | None
    training_characters: int | None
    validation_characters: int | None
    measured: bool
    """Whether memory and time rest on steps that were really taken."""
    problems: list[str]
    warnings: list[str]


def preflight(
    config: RunConfig,
    *,
    characters: int | None = None,
    vocabulary_size: int | None = None,
    device: DeviceInfo | None = None,
    disk_free: int | None = None,
    measurement: Measurement | None = None,
) -> Preflight:
    """Work out what `config` will cost on a corpus of `characters` on `device`.

    A `measurement` of this configuration takes the place of the estimates of memory and time.
    """
    vocabulary = vocabulary_size or VOCABULARY_GUESS
    model, training = config.model, config.training
    parameters = count_parameters(model, vocabulary)
    stacked = training.optimizer == "muon" and model.architecture == "modern"
    in_muon = matrix_parameters(model) if stacked else 0
    optimizer = 4 * in_muon + 8 * (parameters - in_muon)
    trained_on = characters * (1 - config.data.validation_fraction) if characters else None
    compiled = will_compile_on_card(config, vocabulary, device)
    resident = _resident_bytes(trained_on, vocabulary, device)
    fixed = 8 * parameters + optimizer + resident
    each = activation_bytes(config, vocabulary, device, compiled=compiled)
    micro = micro_batch_size(training.batch_size, fixed=fixed, each=each, device=device)
    activations = micro * each
    total = measurement.memory_bytes if measurement else fixed + activations
    per_step = training.batch_size * config.sequence_length
    budget = bool(training.max_seconds)
    total_characters = None if budget else per_step * training.steps
    border = None if characters is None else int(characters * (1 - config.data.validation_fraction))
    if measurement:
        seconds: float | None = training.steps * measurement.seconds_per_step
    else:
        seconds = estimated_seconds(config, vocabulary, device, compiled=compiled)
    on_disk = (4 * parameters + optimizer) * (training.keep_checkpoints + 1)
    epochs = total_characters / trained_on if total_characters and trained_on else None
    return Preflight(
        parameters=parameters,
        weights_bytes=4 * parameters,
        gradients_bytes=4 * parameters,
        optimizer_bytes=optimizer,
        activations_bytes=activations,
        corpus_bytes=resident,
        total_bytes=total,
        compiled_on_card=compiled,
        memory_total=device.memory_total if device else None,
        memory_free=device.memory_free if device else None,
        fits=total <= device.memory_free if device else None,
        micro_batch=micro,
        characters_per_step=per_step,
        total_characters=total_characters,
        epochs=epochs,
        seconds=training.max_seconds or seconds,
        checkpoint_bytes=on_disk,
        disk_free=disk_free,
        training_characters=border,
        validation_characters=None if characters is None else characters - (border or 0),
        measured=measurement is not None,
        problems=_problems(config, characters, total, device) + _disk_problem(on_disk, disk_free),
        warnings=_warnings(config, epochs, micro),
    )


def will_compile_on_card(config: RunConfig, vocabulary: int, device: DeviceInfo | None) -> bool:
    """Whether a run on an accelerator has its layers compiled: as asked, or where that pays.

    The one place where that is decided; `compile_choice.choose` asks here.
    """
    if device is None or device.kind == "cpu" or config.training.compile == "off":
        return False
    seconds = config.training.max_seconds or estimated_seconds(
        config, vocabulary, device, compiled=True
    )
    asked = config.training.compile == "on"
    return asked or (math.inf if seconds is None else seconds) >= COMPILE_ON_CARD_FROM_SECONDS


def _resident_bytes(trained_on: float | None, vocabulary: int, device: DeviceInfo | None) -> int:
    """Return what the training split takes on a card; see `Batches`."""
    if device is None or device.kind != "cuda" or trained_on is None:
        return 0
    size = int(trained_on) * (1 if vocabulary <= 256 else 4)
    return size if size <= device.memory_free // 4 else 0


def activation_bytes(
    config: RunConfig, vocabulary: int, device: DeviceInfo | None, *, compiled: bool = False
) -> int:
    """Return the bytes kept for the backward pass for one training sequence.

    Args:
        config: what was asked.
        vocabulary: different characters.
        device: what it is trained on; None is a CPU.
        compiled: whether layers are compiled for an accelerator.
    """
    model = config.model
    on_cpu = device is None or device.kind == "cpu"
    half = config.training.precision == "bfloat16" or (
        config.training.precision == "auto" and device is not None and device.bfloat16
    )
    size = 2 if half else 4
    if not on_cpu and model.architecture == "modern":
        if half:  # measured: see docs/gpu.md
            width = (32 if compiled else 52) + (4 if compiled else 5) * bool(model.dropout)
        else:
            width = (48 if compiled else 74) + (7 if compiled else 2) * bool(model.dropout)
        per_position = width * model.embed_dim + 2 * size * model.ff_dim
        per_pair = 0
    elif not on_cpu:
        per_position = size * (12 * model.embed_dim + 2 * model.ff_dim)
        per_pair = 0
    elif model.architecture == "modern":
        per_position = 64 * model.embed_dim + 2 * size * model.ff_dim
        per_pair = 8 if half else 4
    else:
        per_position = size * (8 * model.embed_dim + 2 * model.ff_dim)
        per_pair = 4 if half else 0
    attention = per_pair * model.heads * model.block_size**2
    per_layer = model.block_size * per_position + attention
    per_logit = 8 if on_cpu else 16
    return model.layers * per_layer + model.block_size * vocabulary * per_logit


def micro_batch_size(batch_size: int, *, fixed: int, each: int, device: DeviceInfo | None) -> int:
    """Return how many sequences to work on at once: the batch, or an equal part of it that fits.

    Args:
        batch_size: sequences in a step.
        fixed: bytes for weights, gradients and optimizer.
        each: bytes of activations for one sequence.
        device: its free memory is the limit; None sets none.
    """
    if device is None:
        return batch_size
    room = max(0.0, MEMORY_SHARE * device.memory_free - fixed)
    parts = 1
    while parts < batch_size and math.ceil(batch_size / parts) * each > room:
        parts += 1
    return math.ceil(batch_size / parts)


def flops_per_character(config: RunConfig, vocabulary: int) -> float:
    """Return the arithmetic of training on one character: 6 a weight, and attention's products.

    Chinchilla's count (Hoffmann et al. 2022, appendix F): forward 2 and backward 4 a weight;
    attention adds ``12 C T / 2`` a layer for scores and mix, halved because it is causal.
    """
    model = config.model
    weights = matrix_parameters(model) + vocabulary * model.embed_dim
    return 6.0 * weights + 6.0 * model.layers * model.embed_dim * config.sequence_length


def estimated_seconds(
    config: RunConfig, vocabulary: int, device: DeviceInfo | None, *, compiled: bool
) -> float | None:
    """Return how long the steps of a run take; None where the device was not measured."""
    if device is None or device.matrix_rate is None:
        return None
    per_step = config.training.batch_size * config.sequence_length
    work = flops_per_character(config, vocabulary) * per_step * config.training.steps
    return work / (device.matrix_rate * efficiency(config, device, compiled=compiled))


def efficiency(config: RunConfig, device: DeviceInfo, *, compiled: bool) -> float:
    """Return the share of the measured matrix rate that a training step is taken to reach."""
    if device.kind == "cpu":
        by_kernels = config.model.architecture == "modern" and config.training.compile != "off"
        return KERNEL_EFFICIENCY if by_kernels else ASSUMED_EFFICIENCY
    share = config.model.embed_dim / (config.model.embed_dim + EFFICIENT_WIDTH)
    return share if compiled else UNCOMPILED_SHARE * share


def _problems(
    config: RunConfig, characters: int | None, total: int, device: DeviceInfo | None
) -> list[str]:
    problems = []
    if device is not None and total > device.memory_free:
        problems.append(
            f"Needs {total / 2**30:.1f} GiB even one sequence at a time, of "
            f"{device.memory_free / 2**30:.1f} GiB free: lower model.layers or model.embed_dim, "
            "or choose a smaller preset."
        )
    if characters is not None:
        validation = int(characters * config.data.validation_fraction)
        if validation <= config.model.block_size:
            problems.append(
                f"The validation split has {validation:,} characters; model.block_size "
                f"{config.model.block_size:,} needs more. Choose a longer text or a smaller block."
            )
    return problems


def _disk_problem(needed: int, free: int | None) -> list[str]:
    if free is None or needed <= free:
        return []
    return [
        f"Checkpoints take {needed / 2**30:.1f} GiB of disk, {free / 2**30:.1f} GiB are free: "
        "lower training.keep_checkpoints, or make room."
    ]


def _warnings(config: RunConfig, epochs: float | None, micro: int) -> list[str]:
    warnings = []
    if epochs is not None and epochs > MUCH_REPETITION:
        warnings.append(
            f"Reads the corpus {epochs:,.0f} times: the model will memorize it. "
            "Fewer training.steps would do."
        )
    if micro < config.training.batch_size:
        warnings.append(
            f"A batch of {config.training.batch_size} does not fit at once; "
            f"it is processed {plural(micro, 'sequence')} at a time, with the same result."
        )
    return warnings
