"""Where a view is in the validation text, which is read a stretch at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from megatron_model.analysis.validation_text import Stretch
    from megatron_model.run.checkpoint import LoadedModel

STRETCH = 2_000
"""Characters that are read at once."""


class ValidationPlace:
    """The stretch that is read, or will be; past either end it goes on at the other."""

    def __init__(self) -> None:
        self.start = 0
        self.total: int | None = None
        """Characters of the whole validation text, once they were counted."""

    def move(self, stretches: int) -> None:
        """Go so many stretches on."""
        self.start += stretches * STRETCH

    def found(self, stretch: Stretch) -> None:
        """Take over where the stretch really is."""
        self.start, self.total = stretch.start, stretch.total

    @property
    def words(self) -> str:
        """The place in words, such as ``validation text from 2,000 of 9,000``."""
        if self.total is None:
            return "validation text"
        return f"validation text from {self.start:,} of {self.total:,}"


def read_stretch(model: LoadedModel, start: int) -> Stretch:
    """Return the stretch of the validation text of a model that begins at `start`."""
    from megatron_model.analysis.validation_text import validation_stretch

    return validation_stretch(model, start, STRETCH)
