"""What to change so that a run fits its machine and its corpus: the nearest settings that do."""

from __future__ import annotations

from collections.abc import Iterator

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.device import DeviceInfo
from megatron_model.planning.preflight import MUCH_REPETITION, Preflight, preflight
from megatron_model.util.errors import RequestError

_SMALLEST_BLOCK = 32


def suggest_fix(
    config: RunConfig,
    *,
    characters: int | None = None,
    vocabulary_size: int | None = None,
    device: DeviceInfo | None = None,
    disk_free: int | None = None,
) -> dict[str, object]:
    """Return the settings to change, by dotted key; empty when nothing is wrong or nothing helps.

    In this order: the corpus is too short for a block, memory, disk, and
    only when all that is well, a corpus that is read too often.
    """

    def cost_of(changed: RunConfig) -> Preflight:
        return preflight(
            changed,
            characters=characters,
            vocabulary_size=vocabulary_size,
            device=device,
            disk_free=disk_free,
        )

    changes: dict[str, object] = {}

    def take(new: dict[str, object]) -> RunConfig:
        changes.update(new)
        return with_settings(config, changes)

    cost, changed = cost_of(config), config
    validation = cost.validation_characters
    if validation is not None and validation <= changed.model.block_size and validation > 1:
        changed = take(_block_changes(changed, _power_of_two_below(validation)))
        cost = cost_of(changed)
    if cost.fits is False:
        for smaller in _smaller_models(changed):
            try:
                cost = cost_of(with_settings(changed, smaller))
            except RequestError:
                continue  # settings that do not go together
            if cost.fits:
                changed = take(smaller)
                break
        else:
            return {}
    if disk_free is not None and cost.checkpoint_bytes > disk_free:
        one = cost.checkpoint_bytes / (changed.training.keep_checkpoints + 1)
        keep = int(disk_free / one) - 1
        if keep < 1:
            return changes
        changed = take({"training.keep_checkpoints": keep})
    if not changes and cost.epochs is not None and cost.epochs > MUCH_REPETITION:
        steps = config.training.steps * MUCH_REPETITION / cost.epochs
        take({"training.steps": max(1, _round_down(int(steps)))})
    return changes


def _smaller_models(config: RunConfig) -> Iterator[dict[str, object]]:
    """Yield smaller and smaller models, each as changes of `config`: what is nearest first."""
    model = config.model
    width, heads, feed_forward, block = (
        model.embed_dim, model.heads, model.ff_dim, model.block_size,
    )  # fmt: skip
    while True:
        shape: dict[str, object] = {
            "model.embed_dim": width,
            "model.heads": heads,
            "model.ff_dim": feed_forward,
            **_block_changes(config, block),
        }
        shape = {key: value for key, value in shape.items() if value != _present(config, key)}
        # Fewer layers of the same width first: they are the smaller loss.
        for layers in range(model.layers - (not shape), max(1, model.layers // 3) - 1, -1):
            yield {**shape, "model.layers": layers} if layers != model.layers else shape
        if width <= 8 and feed_forward <= 8 and block <= _SMALLEST_BLOCK:
            return
        if width > 8:
            heads = max(1, heads // 2) if width // heads <= 64 else heads
            width //= 2
        feed_forward = max(8, feed_forward // 2)
        if width * 4 < model.embed_dim:
            block = max(_SMALLEST_BLOCK, block // 2)


def _block_changes(config: RunConfig, block: int) -> dict[str, object]:
    changes: dict[str, object] = {"model.block_size": block}
    if config.training.sequence_length > block:
        changes["training.sequence_length"] = 0
    return changes


def _present(config: RunConfig, key: str) -> object:
    group, name = key.split(".")
    return getattr(getattr(config, group), name)


def _power_of_two_below(number: int) -> int:
    power = 1
    while 2 * power < number:
        power *= 2
    return power


def _round_down(number: int) -> int:
    """Return a number of two digits and zeros: settings that look as a person would type them."""
    unit = int("1" + "0" * max(0, len(str(number)) - 2))
    return number // unit * unit
