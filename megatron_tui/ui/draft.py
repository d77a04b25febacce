"""What is typed into the Setup form, and what it amounts to: a configuration or errors. Pure."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from megatron_model.config.fields import RunConfig, all_fields, get_setting, with_settings
from megatron_model.config.presets import AUTO, PRESETS, fitted
from megatron_model.config.schema import Field
from megatron_model.device import DeviceInfo
from megatron_model.planning.sizing import Sizing, sized
from megatron_model.run.taken_recipe import gentler, recipe_of
from megatron_model.sweep.values import values_of
from megatron_model.util.errors import RequestError

NOT_IN_FORM = ("data.corpus",)
"""Settings that have a place of their own on the screen."""


def form_fields() -> dict[str, Field]:
    """Return the settings of the form by key."""
    return {key: found for key, found in all_fields().items() if key not in NOT_IN_FORM}


def value_text(value: Any) -> str:
    """Return a value as a person would type it."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return str(value)


@dataclass(frozen=True)
class Checked:
    """The outcome of a draft."""

    config: RunConfig
    """The preset with every valid edit; what the preflight is worked out for."""
    errors: Mapping[str, str]
    varied: Mapping[str, Sequence[object]] = field(default_factory=dict)
    """What has several values, each for runs of its own; `config` has the first of them."""

    @property
    def valid(self) -> bool:
        """Whether a run can be made from it."""
        return not self.errors


@dataclass(frozen=True)
class Beginning:
    """The model whose weights a run begins with."""

    name: str
    """Of its run."""
    folder: Path
    """Of its run, whose best checkpoint at the start it is."""
    config: RunConfig


@dataclass(frozen=True)
class SetupDraft:
    """A preset and the texts typed over its values; every change is a new draft.

    What is not typed is the preset's, fitted to the corpus and the time budget as the command line
    does it, so that the same request means the same run in both.
    """

    preset: str
    edits: Mapping[str, str] = field(default_factory=dict)
    size: int = 0
    """Of the corpus in characters; 0 while it is not known, and nothing is fitted."""
    machine: DeviceInfo | None = None
    """What it is trained on, for the preset that is chosen for it."""
    start: Beginning | None = None
    """What the run begins with; None: with random weights."""

    def with_preset(self, preset: str) -> SetupDraft:
        """Return the draft on another preset; what was typed gives way to it, but for the data."""
        kept = {key: text for key, text in self.edits.items() if key.startswith("data.")}
        return replace(self, preset=preset, edits=kept, start=None)

    def with_text(self, key: str, text: str) -> SetupDraft:
        """Return the draft with one field typed over."""
        others = self.without(key)
        if text == others.text(key):
            return others
        return replace(self, edits={**self.edits, key: text})

    def without(self, key: str) -> SetupDraft:
        """Return the draft with one field as the preset has it."""
        return replace(self, edits={k: text for k, text in self.edits.items() if k != key})

    def without_edits(self) -> SetupDraft:
        """Return the draft with nothing typed."""
        return replace(self, edits={})

    def with_values(self, changes: Mapping[str, object]) -> SetupDraft:
        """Return the draft with several settings changed at once."""
        draft = self
        for key, value in changes.items():
            draft = draft.with_text(key, value_text(value))
        return draft

    def with_config(self, config: RunConfig) -> SetupDraft:
        """Return the draft that amounts to `config`, kept as what differs from the preset."""
        draft = replace(self.without_edits(), start=None)
        # An edit may change what others are fitted to: done when nothing is left to say.
        for _ in range(len(form_fields())):
            present = draft.check().config
            values = {key: get_setting(config, key) for key in form_fields()}
            wrong = {k: value_text(v) for k, v in values.items() if v != get_setting(present, k)}
            if not wrong:
                break
            draft = replace(draft, edits={**draft.edits, **wrong})
        return draft

    def with_start(self, start: Beginning) -> SetupDraft:
        """Return the draft of a run that goes on from a model, by the model's own recipe."""
        taken = gentler(recipe_of(start.config))
        data = {key: text for key, text in self.edits.items() if key.startswith("data.")}
        draft = self.with_config(taken)
        edits = {key: text for key, text in draft.edits.items() if not key.startswith("data.")}
        return replace(draft, edits=edits | data, start=start)

    def text(self, key: str) -> str:
        """Return what the field shows."""
        typed = self.edits.get(key)
        return value_text(get_setting(self.check().config, key)) if typed is None else typed

    def preset_text(self, key: str) -> str:
        """Return what the field would show if nothing were typed over it."""
        return self.without(key).text(key)

    def check(self) -> Checked:
        """Parse and check every edit."""
        return self._checked

    @cached_property
    def _checked(self) -> Checked:
        fields = form_fields()
        good: dict[str, object] = {}
        errors: dict[str, str] = {}
        varied: dict[str, Sequence[object]] = {}
        for key, text in self.edits.items():
            try:
                values = values_of(fields[key], text)
                good[key] = values[0]
                if len(values) > 1:
                    varied[key] = values
            except RequestError as error:
                errors[key] = _without_key(str(error), key)
        base = self._base(good)
        try:
            return Checked(self._fitted(with_settings(base, good), good), errors, varied)
        except RequestError as error:
            # Fields that only together are wrong: said at the first that was typed over.
            named = [key for key in fields if key in str(error)]
            edited = [key for key in named if key in self.edits]
            key = (edited or named or list(self.edits))[0]
            errors = {**errors, key: _without_key(str(error), key)}
            return Checked(self._fitted(base, ()), errors)

    @property
    def sizing(self) -> Sizing | None:
        """What was chosen for text, machine and time, and why, where that is the preset."""
        if self.preset != AUTO:
            return None
        return self._sizing(self.check().config.training.max_seconds)

    def _base(self, good: Mapping[str, object]) -> RunConfig:
        if self.preset != AUTO:
            return PRESETS[self.preset].config
        seconds = good.get("training.max_seconds", 0.0)
        return self._sizing(seconds if isinstance(seconds, float) else 0.0).config

    def _sizing(self, seconds: float) -> Sizing:
        return sized(self.size, self.machine if self.size else None, seconds=seconds)

    def _fitted(self, config: RunConfig, chosen: Collection[str]) -> RunConfig:
        return fitted(config, self.size, chosen) if self.size else config


def range_text(found: Field) -> str:
    """Return the range of a setting in words: ``at least 1``, ``0 to 0.9``."""
    if found.choices:
        return " or ".join(found.choices)
    if found.low is not None and found.high is not None and found.high < 2**53:
        return f"{_plain(found.low)} to {_plain(found.high)}"
    return f"at least {_plain(found.low)}" if found.low is not None else ""


def _plain(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:g}"


def stepped(found: Field, text: str, direction: int) -> str:
    """Return the next larger or smaller value of a setting, or the next of its choices."""
    if found.choices:
        index = found.choices.index(text) if text in found.choices else -direction
        return found.choices[(index + direction) % len(found.choices)]
    if found.kind is str:
        return text
    try:
        value = found.parse(text)
    except RequestError:
        return text
    assert isinstance(value, (int, float))
    new = _next_integer(value, direction) if found.kind is int else _next_float(value, direction)
    if found.low is not None:
        new = max(new, found.low)
    if found.high is not None:
        new = min(new, found.high)
    return value_text(found.kind(new))


def _next_integer(value: float, direction: int) -> float:
    """Powers of two double; other numbers count in their first digit."""
    whole = int(value)
    if whole >= 8 and whole & (whole - 1) == 0:
        return whole * 2 if direction > 0 else whole // 2
    return whole + direction * _unit(whole, direction)


def _next_float(value: float, direction: int) -> float:
    if value == 0:
        return 0.1 * direction
    unit = _unit(value, direction)
    return float(f"{value + direction * unit:.6g}")


def _unit(value: float, direction: int) -> float:
    """Return one of the first digit of `value`; below a power of ten, one of the next digit."""
    if value == 0:
        return 1
    unit = 10.0 ** math.floor(math.log10(abs(value)) + 1e-9)
    at_power = abs(abs(value) / unit - 1) < 1e-9
    step = unit / 10 if at_power and direction < 0 else unit
    return max(1, int(step)) if isinstance(value, int) else step


def _without_key(error: str, key: str) -> str:
    for prefix in (f"{key} ", f'{key}" '):
        if error.startswith(prefix):
            return error.removeprefix(prefix)
    return error
