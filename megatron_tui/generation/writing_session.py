"""The text being written: asked of the service, and shown as it comes or at reading pace."""

from __future__ import annotations

import msgspec

from megatron_model.config.fields import SamplingConfig
from megatron_model.util.text import plural
from megatron_tui.generation.written_text import WrittenText
from megatron_tui.services.generation import GenerationService, GenerationStatus
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.ui import formatting

READING = 30.0
"""Characters a second that one can read along with: some 300 words a minute."""


class WritingSession:
    """One text at a time; what was written but not yet shown waits here."""

    def __init__(self, generation: GenerationService) -> None:
        self._generation = generation
        self.text: WrittenText | None = None
        self.at_reading_pace = False
        self._unread = ""
        self._allowance = 0.0
        """Characters that a reader has had the time for, and that were not shown yet."""

    @property
    def busy(self) -> bool:
        """Whether a text is being written, or shown more slowly than it was."""
        return self._generation.busy or self.has_unread

    @property
    def has_unread(self) -> bool:
        """Whether there is text that was written but not shown yet."""
        return bool(self._unread)

    def start(self, chosen: ModelChoice, prompt: str, sampling: SamplingConfig) -> None:
        """Write a new text after `prompt`."""
        self.text = WrittenText(chosen.weights, chosen.run, chosen.words, sampling, prompt)
        self._generation.generate(chosen.weights, prompt, sampling)
        self._restart_clock()

    def extend(self, chosen: ModelChoice, sampling: SamplingConfig) -> bool:
        """Go on as if the text had never stopped; False where that cannot be.

        Other weights, other settings and a text that its stop text ended need a new text, with all
        of this one for a prompt.
        """
        text = self.text
        if text is None or not text.length or text.weights != chosen.weights:
            return False
        settings = msgspec.structs.replace(sampling, max_new_tokens=text.sampling.max_new_tokens)
        ended = bool(sampling.stop) and text.written.endswith(sampling.stop)
        if settings != text.sampling or ended:
            return False
        whole = msgspec.structs.replace(
            sampling, max_new_tokens=text.length + sampling.max_new_tokens
        )
        self._generation.generate(text.weights, text.prompt, whole, text.written)
        self._restart_clock()
        return True

    def replace(self, text: WrittenText) -> None:
        """Go on with a text that was written elsewhere."""
        self.text, self._unread = text, ""

    def stop(self) -> None:
        """Stop within one character; at reading pace, the text ends where it was read to."""
        self._generation.cancel()
        if self.at_reading_pace:
            self._generation.drain()
            self._unread = ""

    def advance(self, seconds: float) -> str:
        """Return what is to be shown now, `seconds` after the last call; it joins the text."""
        self._unread += self._generation.drain()
        count = len(self._unread)
        if self.at_reading_pace:
            self._allowance = min(self._allowance + READING * seconds, READING)
            count = min(count, int(self._allowance))
            self._allowance -= count
        piece, self._unread = self._unread[:count], self._unread[count:]
        if self.text is None:
            return ""
        if piece:
            self.text.append(piece)
        return piece

    def describe(self, status: GenerationStatus) -> str:
        """Return how far the text is, in a few words."""
        words = {"idle": "", "loading": "loading the model"}.get(status.phase, status.phase)
        if self.has_unread:
            words = "reading along"
        if self.text is not None and self.text.length:
            words += f", {plural(self.text.length, 'character')}"
            if status.characters_per_second:
                words += f", {formatting.count(status.characters_per_second)} characters/s"
        return words

    def _restart_clock(self) -> None:
        self._unread, self._allowance = "", 1.0  # the first character is shown at once
