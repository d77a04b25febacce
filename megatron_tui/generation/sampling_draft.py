"""What is typed into the sampling form of the Generation screen, and what it amounts to."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from megatron_model.config.fields import SamplingConfig
from megatron_model.config.schema import Field, fields_of
from megatron_model.util.errors import RequestError
from megatron_tui.services.preferences import Preferences
from megatron_tui.ui.draft import value_text

FIELDS: dict[str, Field] = {field.key: field for field in fields_of(SamplingConfig)}
DEFAULTS = {key: value_text(field.default) for key, field in FIELDS.items()}
NAME = "generation.sampling"
SEEDS = 2**63

PRESETS: dict[str, tuple[str, dict[str, str]]] = {
    "greedy": ("always the likeliest; soon repeats itself", {"temperature": "0"}),
    "careful": ("likely words, few mistakes", {"temperature": "0.5", "top_p": "0.9"}),
    "balanced": ("the defaults", {}),
    "true": ("the model as it is", {"temperature": "1"}),
    "lively": ("surprising, but not absurd", {"temperature": "1.1", "min_p": "0.05"}),
    "wild": ("anything may happen", {"temperature": "1.5", "min_p": "0.02"}),
    "typical": ("neither dull nor absurd", {"temperature": "1", "typical_p": "0.9"}),
    "no echo": ("repeats itself less", {"repetition_penalty": "1.2"}),
}
"""Ways of sampling by name: what they are like, and where they differ from the defaults."""

_KEPT = (
    "temperature", "top_k", "top_p", "min_p", "typical_p",
    "repetition_penalty", "repetition_window",
)  # fmt: skip
"""What a preset decides; length, seed and stop text stay."""

_STEPS: dict[str, list[float]] = {
    "temperature": [round(step / 10, 1) for step in range(31)],
    # Nothing cut off is the widest of all.
    "top_k": [1, 2, 3, 5, 10, 20, 40, 80, 0],
    "top_p": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 1.0],
}


class SamplingDraft:
    """The texts of the form; remembered from one session to the next."""

    def __init__(self, preferences: Preferences) -> None:
        self._preferences = preferences
        self.texts = dict(DEFAULTS)
        for line in preferences.get(NAME, list[str]()):
            key, _, text = line.partition("=")
            if key in FIELDS:
                self.texts[key] = text
        if self.errors:
            self.texts = dict(DEFAULTS)
        self.seed_locked = False
        """Whether one text after the other is written with the same seed."""
        self._temperature = DEFAULTS["temperature"]
        """The temperature to come back to from greedy sampling."""

    @property
    def edited(self) -> set[str]:
        """The settings that differ from their defaults."""
        return {key for key in FIELDS if self.texts[key] != DEFAULTS[key]}

    @property
    def errors(self) -> dict[str, str]:
        """What is wrong, by setting."""
        return self._parsed()[1]

    @property
    def sampling(self) -> SamplingConfig:
        """What it amounts to; a wrong value counts as its default."""
        return self._parsed()[0]

    def put(self, key: str, text: str) -> None:
        """Type over a value."""
        self.texts = {**self.texts, key: text}
        kept = [f"{key}={self.texts[key]}" for key in sorted(self.edited - {"seed"})]
        self._preferences.set(NAME, kept)

    def take(self, values: Mapping[str, str]) -> None:
        """Sample as a preset does."""
        for key in _KEPT:
            self.put(key, values.get(key, DEFAULTS[key]))

    @property
    def preset(self) -> str:
        """The preset that is in force: the one whose values all stand in the form; else none."""
        present = self.sampling
        for name, (_, values) in PRESETS.items():
            wanted = {key: values.get(key, DEFAULTS[key]) for key in _KEPT}
            if all(getattr(present, key) == FIELDS[key].parse(wanted[key]) for key in _KEPT):
                return "" if any(key in self.errors for key in _KEPT) else name
        return ""

    def nudge(self, key: str, direction: int) -> None:
        """Choose the next narrower or wider value."""
        steps = _STEPS[key]
        value = float(getattr(self.sampling, key))
        places = [place for place, step in enumerate(steps) if step == value]
        if places:
            place = places[0] + direction
        else:  # between two steps
            below = [p for p, step in enumerate(steps) if 0 < step < value or step == 0 == p]
            place = below[-1] + (direction > 0) if below else 0
        step = steps[max(0, min(len(steps) - 1, place))]
        self.put(key, value_text(FIELDS[key].kind(step)))

    def toggle_greedy(self) -> None:
        """Always take the likeliest, or draw as before."""
        if self.sampling.temperature:
            self._temperature = self.texts["temperature"]
            self.put("temperature", "0")
        else:
            self.put("temperature", self._temperature)

    def next_seed(self) -> None:
        """Count the seed up."""
        self.put("seed", str(with_later_seed(self.sampling).seed))

    def _parsed(self) -> tuple[SamplingConfig, dict[str, str]]:
        values: dict[str, object] = {}
        errors: dict[str, str] = {}
        for key, field in FIELDS.items():
            try:
                values[key] = field.parse(self.texts[key])
            except RequestError as error:
                errors[key] = str(error).removeprefix(f"{key} ")
        return msgspec.convert(values, SamplingConfig), errors


def with_later_seed(sampling: SamplingConfig, by: int = 1) -> SamplingConfig:
    """Return the same way of sampling with a seed further on; after the last comes 0."""
    return msgspec.structs.replace(sampling, seed=(sampling.seed + by) % SEEDS)
