"""What a setting takes in a sweep, from what a person typed: a range, a list, a number of seeds."""

from __future__ import annotations

import re

from megatron_model.config.schema import Field, number
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

MOST_VALUES = 100
SEED = "training.seed"

_RANGE = re.compile(r"(\S+?)\s*\.\.\s*(\S+)\s+x\s*(\d{1,6})(\s+log)?")
_SEEDS = re.compile(r"seeds\s+(\d{1,6})")
_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


def values_of(field: Field, text: str) -> list[object]:
    """Return the values that a setting is to have, one after the other; of a plain value, that one.

    ``0.01..0.08 x4 log`` are four values from 0.01 to 0.08, each the one before times the same
    factor; ``1..7 x3`` has equal distances. ``2, 4, 8`` is a list. ``seeds 5`` is 1, 2, 3, 4, 5.

    Raises:
        RequestError: it is none of these, or a value is out of the setting's range.
    """
    text = text.strip()
    if field.kind is str and not field.choices:
        return [field.parse(text)]
    if seeds := _SEEDS.fullmatch(text):
        return _seeds(field, int(seeds[1]))
    if ".." in text:
        return _range(field, text)
    if "," not in text or (field.kind is int and _GROUPED.fullmatch(text)):
        return [field.parse(text)]
    # A comma and a space separate, where there are any: others may stand between thousands.
    words = re.split(r",\s+", text) if re.search(r",\s", text) else text.split(",")
    return _distinct(field, [field.parse(word.strip()) for word in words if word.strip()])


def _seeds(field: Field, count: int) -> list[object]:
    if field.key != SEED:
        raise RequestError(f'{field.key} takes no seeds; write "seeds {count}" for {SEED}.')
    return _distinct(field, [field.parse(str(1 + index)) for index in range(_count(field, count))])


def _range(field: Field, text: str) -> list[object]:
    match = _RANGE.fullmatch(text)
    if match is None or field.choices:
        example = ", ".join(field.choices[:2]) if field.choices else "0.01..0.08 x4 log"
        raise RequestError(
            f'{field.key} cannot be "{safe(text, one_line=True)}"; write it as {example}.'
        )
    try:
        low, high = number(match[1]), number(match[2])
    except ValueError:
        raise RequestError(
            f"{field.key}: the ends of a range are numbers, as in 0.01..0.08 x4."
        ) from None
    count, log = _count(field, int(match[3])), match[4] is not None
    if not low < high:
        raise RequestError(f"{field.key}: the range {match[1]}..{match[2]} is empty.")
    if log and low <= 0:
        raise RequestError(f"{field.key}: a range with log begins above 0.")
    if count < 2:
        raise RequestError(f"{field.key}: a range has at least 2 values, its ends.")
    share = [index / (count - 1) for index in range(count)]
    if log:
        found = [low * (high / low) ** part for part in share]
    else:
        found = [low + (high - low) * part for part in share]
    # To six digits, as people write them; the ends as they were given.
    words = [f"{round(value)}" if field.kind is int else f"{value:.6g}" for value in found]
    return _distinct(field, [field.parse(word) for word in words])


def _count(field: Field, count: int) -> int:
    if not 1 <= count <= MOST_VALUES:
        raise RequestError(
            f"{field.key} takes 1 to {MOST_VALUES} values in a sweep, not {count:,}."
        )
    return count


def _distinct(field: Field, values: list[object]) -> list[object]:
    if not values:
        raise RequestError(f"{field.key} has no value.")
    _count(field, len(values))
    return list(dict.fromkeys(values))
