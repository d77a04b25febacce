"""The one dial: a model, its batch and its steps for this text, this machine and this much time.

What is most asked of a program that trains is which settings suit one's text. Three things bound
the size of a model: how often it can be shown the text before it only memorises (the length of the
text), how many characters the machine gets through (the time), and what fits (the memory). The
largest shape within all three is taken, and which of them decided is said. No torch.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from megatron_model.config.fields import RunConfig
from megatron_model.config.presets import MOST_EPOCHS, modern_config, muon_recipe
from megatron_model.device import DeviceInfo
from megatron_model.model.size import count_parameters
from megatron_model.planning.preflight import (
    COMPILE_ON_CARD_FROM_SECONDS,
    VOCABULARY_GUESS,
    efficiency,
    flops_per_character,
    preflight,
)

DEFAULT_SECONDS = 600.0
"""Time that a run is planned for where none is given."""
SEEN_PER_PARAMETER = 4.0
"""Characters that a model has to see for each of its parameters before a smaller one is better.

Near what the preset for a CPU (5) and that for a small card (2.3) were found to do best with.
"""
PARAMETERS_PER_CHARACTER = 10.0
"""Parameters for each character of a text beyond which more only memorise it."""
MEMORISED_FROM = 8.0
"""Times through a text from which a model with more parameters than it has characters learns it."""
SMALLEST_PART = 8
"""The batch may be processed in so many parts at most; a smaller model is faster than more."""


class _Shape(NamedTuple):
    layers: int
    width: int
    heads: int
    block: int
    batch: int


# From the largest down; a block of the smallest is short, so that it fits any text.
_SHAPES = (
    _Shape(12, 768, 12, 1024, 64),
    _Shape(10, 640, 10, 512, 64),
    _Shape(8, 512, 8, 512, 64),
    _Shape(6, 384, 6, 256, 64),
    _Shape(6, 256, 4, 256, 32),
    _Shape(5, 192, 6, 256, 16),
    _Shape(4, 128, 4, 256, 12),
    _Shape(3, 96, 3, 256, 12),
    _Shape(2, 64, 2, 64, 16),
)


class Sizing(NamedTuple):
    """What was chosen, and why, a sentence each."""

    config: RunConfig
    reasons: list[str]
    bound: str = ""
    """What keeps it from being larger: ``text``, ``memory``, ``time``, or nothing."""

    @property
    def short(self) -> str:
        """Say it in a few words, for a line that is cut off."""
        size = f"{self.config.model.layers}x{self.config.model.embed_dim}"
        return f"{size}, bound by {self.bound}" if self.bound else size


def sized(
    characters: int,
    device: DeviceInfo | None,
    *,
    seconds: float = 0.0,
    vocabulary: int | None = None,
) -> Sizing:
    """Choose a configuration.

    Args:
        characters: of the whole text.
        device: what it is trained on, with its matrix rate; None while that is not known.
        seconds: the time budget; 0 plans for `DEFAULT_SECONDS`, and counts in steps.
        vocabulary: different characters.
    """
    vocabulary = vocabulary or VOCABULARY_GUESS
    least = next(shape for shape in _SHAPES if shape.width == 128)
    if device is None or device.matrix_rate is None:
        return Sizing(_config(least, 1000), ["The machine is not measured yet: a small model."])
    trained_on = max(1.0, 0.9 * characters)
    planned = seconds or DEFAULT_SECONDS
    bound, why = "", "It is the largest there is a recipe for"
    for shape in _SHAPES:
        config = _config(shape, 1)
        parameters = count_parameters(config.model, vocabulary)
        pace = _pace(config, vocabulary, device, planned)
        seen = min(planned * pace, MOST_EPOCHS * trained_on)
        found = _too_large(config, parameters, characters, seen, vocabulary, device)
        if found is None:
            break
        bound, why = found
    steps = max(1, round(seen / (shape.batch * shape.block)))
    times = seen / trained_on
    config = _config(shape, steps, seconds, _dropout(parameters / max(1, characters), times))
    reasons = [
        f"{parameters / 1e6:.1f} million parameters, {shape.layers} layers of {shape.width}. "
        f"{why}.",
        f"{seen / 1e6:,.1f} million characters at about {pace / 1e3:,.0f} thousand a second: "
        f"{times:.1f} times through the text in {_duration(seen / pace)}.",
    ]
    return Sizing(config, reasons, bound)


def _dropout(parameters_per_character: float, times: float) -> float:
    """Return what keeps a model from memorising a text that is read so many times.

    Measured with `small` on a million characters, ten parameters for each, 25 times: without, the
    validation loss rises from half of the run on, also where single characters are blanked.
    """
    if times < MEMORISED_FROM or parameters_per_character < 1.0:
        return 0.0
    return 0.2 if parameters_per_character >= 2.0 else 0.1


def _config(shape: _Shape, steps: int, seconds: float = 0.0, dropout: float = 0.0) -> RunConfig:
    training = muon_recipe(
        steps,
        shape.batch,
        log_every=max(1, min(50, steps // 150)),
        evaluate_every=max(1, min(1000, steps // 6)),
        checkpoint_every=max(1, min(1000, steps // 3)),
    )
    config = modern_config(
        layers=shape.layers,
        embed_dim=shape.width,
        heads=shape.heads,
        block_size=shape.block,
        training=training,
        dropout=dropout,
    )
    if seconds:
        training = msgspec.structs.replace(training, max_seconds=seconds)
    return msgspec.structs.replace(config, training=training)


def _pace(config: RunConfig, vocabulary: int, device: DeviceInfo, planned: float) -> float:
    """Return how many characters a second a run of so many seconds is trained on."""
    compiled = device.kind == "cpu" or planned >= COMPILE_ON_CARD_FROM_SECONDS
    rate = (device.matrix_rate or 0.0) * efficiency(config, device, compiled=compiled)
    return rate / flops_per_character(config, vocabulary)


def _too_large(
    config: RunConfig,
    parameters: int,
    characters: int,
    seen: float,
    vocabulary: int,
    device: DeviceInfo,
) -> tuple[str, str] | None:
    """Return what a shape is too large for, and in words that stand behind the smaller one why."""
    layers, width = config.model.layers, config.model.embed_dim
    larger = f"{layers} layers of {width}"
    if 0.1 * characters <= config.model.block_size:
        why = f"For {larger} the text is too short: its last tenth has to hold a whole block"
        return "text", why
    if parameters > PARAMETERS_PER_CHARACTER * characters:
        why = f"With {larger} there would be too many for so short a text: they memorise it"
        return "text", why
    cost = preflight(config, vocabulary_size=vocabulary, device=device)
    if not cost.fits or cost.micro_batch * SMALLEST_PART < config.training.batch_size:
        return "memory", f"For {larger} the memory is too small"
    if seen < SEEN_PER_PARAMETER * parameters:
        if seen >= MOST_EPOCHS * 0.9 * characters * 0.999:
            return "text", (
                f"For {larger} the text is too short: read {MOST_EPOCHS:.0f} times it shows "
                f"{seen / parameters:.1f} characters for each parameter, of {SEEN_PER_PARAMETER:g}"
            )
        return "time", (
            f"For {larger} the time is too short: it shows {seen / parameters:.1f} characters "
            f"for each parameter, of {SEEN_PER_PARAMETER:g}"
        )
    return None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
