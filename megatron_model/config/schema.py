"""The mechanism behind every group of settings: what a field declares, checks and parses.

Which settings there are is said in config.py.
"""

from __future__ import annotations

import re
import typing
from functools import cache
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import Meta, Struct

from megatron_model.util.errors import RequestError, nearest

_GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+")


def setting(
    description: str, *, unit: str = "", low: float | None = None, high: float | None = None
) -> Meta:
    """Describe one field: its help, unit and inclusive range.

    The range goes into `extra`, not into msgspec's own constraints: msgspec checks those only when
    it converts, while ours hold however a configuration is made, with one wording.
    """
    return Meta(description=description, extra={"unit": unit, "low": low, "high": high})


class Field(Struct, frozen=True):
    """One setting as the form, the command line and the documentation see it."""

    key: str
    name: str
    kind: type
    default: Any
    description: str
    unit: str
    low: float | None
    high: float | None
    choices: tuple[str, ...]

    @property
    def allowed(self) -> str:
        """The values it takes, in a few words: the choices, or what it counts and its range."""
        if self.choices:
            return ", ".join(self.choices)
        if self.kind is str:
            return "text"
        what = self.unit or ("whole number" if self.kind is int else "number")
        low, high = _bound(self.low), _bound(self.high)
        if low and high:
            return f"{what}, {low} to {high}"
        return f"{what}, from {low}" if low else what

    def check(self, value: object) -> None:
        """Raise `RequestError` when `value` is outside the range or the choices."""
        if self.choices:
            if value not in self.choices:
                raise RequestError(
                    f'{self.key} is "{value}"; it must be one of {", ".join(self.choices)}.'
                    + nearest(str(value), self.choices)
                )
            return
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                # What Python makes of bytes in an argument or a file name that are not UTF-8; no
                # file of ours could store it.
                raise RequestError(f"{self.key} has bytes that are not UTF-8.") from None
        if not isinstance(value, (int, float)):
            return
        if value != value or value in (float("inf"), float("-inf")):
            raise RequestError(f"{self.key} must be a finite number.")
        if self.low is not None and value < self.low:
            raise RequestError(
                f"{self.key} is {_number(value)}; it must be at least {_number(self.low)}."
            )
        if self.high is not None and value > self.high:
            raise RequestError(
                f"{self.key} is {_number(value)}; it must be at most {_number(self.high)}."
            )

    def parse(self, text: str) -> object:
        """Turn what a person typed into a value of this field, checked.

        Raises:
            RequestError: the text is not such a value, or is outside the range.
        """
        value: object
        if self.kind is str:
            value = text
        else:
            cleaned = text.strip()
            # Commas only between thousands: elsewhere they may be a decimal point.
            if self.kind is int and _GROUPED.fullmatch(cleaned):
                cleaned = cleaned.replace(",", "")
            try:
                value = whole_number(cleaned) if self.kind is int else number(cleaned)
            except ValueError:
                wanted = "a whole number" if self.kind is int else "a number"
                raise RequestError(f'{self.key} must be {wanted}, not "{text}".') from None
        self.check(value)
        return value


def whole_number(text: str) -> int:
    """Read a whole number in the digits that everything else here is written in.

    Python would take those of any script, which nobody could tell from others by looking.

    Raises:
        ValueError: it is none.
    """
    if not text.isascii():
        raise ValueError(f"not a whole number: {text!r}")
    return int(text)


def number(text: str) -> float:
    """Read a number, as `whole_number` does."""
    if not text.isascii():
        raise ValueError(f"not a number: {text!r}")
    return float(text)


def _number(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _bound(value: float | None) -> str:
    if value is None:
        return ""
    power = int(value).bit_length() - 1
    if isinstance(value, int) and value > 1 << 16 and value in (1 << power, (1 << power + 1) - 1):
        return f"2^{power}" if value == 1 << power else f"2^{power + 1}-1"
    return _number(value)


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A frozen group of settings whose ranges are checked at birth."""

    group: ClassVar[str] = ""
    """First half of the dotted keys of this group."""

    def __post_init__(self) -> None:
        for field in fields_of(type(self)):
            field.check(getattr(self, field.name))


@cache
def fields_of(group: type[Settings]) -> tuple[Field, ...]:
    """Return the fields of one group of settings, in the order of their declaration."""
    prefix = f"{group.group}." if group.group else ""
    hints = typing.get_type_hints(group, include_extras=True)
    found = []
    for info in msgspec.structs.fields(group):
        hint = hints[info.name]
        if not hasattr(hint, "__metadata__"):
            continue
        meta, base = hint.__metadata__[0], hint.__origin__
        choices = typing.get_args(base) if typing.get_origin(base) is Literal else ()
        extra = meta.extra or {}
        found.append(
            Field(
                key=prefix + info.name,
                name=info.name,
                kind=str if choices else base,
                default=info.default,
                description=meta.description or "",
                unit=extra.get("unit", ""),
                low=extra.get("low"),
                high=extra.get("high"),
                choices=choices,
            )
        )
    return tuple(found)
