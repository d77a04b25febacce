"""The samples of a run as frames of a film: which one is shown, and what stands beside it. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from megatron_model.events.schema import SampleGenerated
from megatron_model.events.state import RunState
from megatron_tui.training.chart_view import Unit, in_unit, nearest
from megatron_tui.ui import formatting


@dataclass(frozen=True)
class FilmStrip:
    """Where a person is in the film; frames are known by their step, not by their number."""

    step: int | None = None
    """The step of the frame on show; None follows the newest."""

    def index(self, samples: Sequence[SampleGenerated]) -> int:
        """Return the number of the frame on show."""
        if self.step is None or not samples:
            return len(samples) - 1
        return nearest([sample.step for sample in samples], self.step)

    def scrubbed(self, samples: Sequence[SampleGenerated], change: int) -> FilmStrip:
        """Return the strip so many frames further; beyond the last one it follows again."""
        if not samples:
            return self
        index = max(0, self.index(samples) + change)
        return FilmStrip(samples[index].step) if index < len(samples) - 1 else FilmStrip()

    @property
    def following(self) -> bool:
        """Whether the newest frame is shown, whatever comes."""
        return self.step is None


def frame_title(state: RunState, index: int, unit: Unit) -> str:
    """Return step and loss of a frame."""
    sample = state.samples[index]
    title = f"sample at step {sample.step:,}"
    name, loss = frame_loss(state, sample.step)
    return title if loss is None else f"{title} · {name} {formatting.loss(in_unit(loss, unit))}"


def frame_place(state: RunState, index: int, strip: FilmStrip) -> str:
    """Return where in the film a frame is, and how to follow again."""
    place = f"{index + 1} of {len(state.samples)}"
    return place if strip.following else f"{place}, end follows"


def frame_loss(state: RunState, step: int) -> tuple[str, float | None]:
    """Return the loss that belongs to a frame: of its own evaluation, else the train loss then."""
    if step in state.val_loss.steps:
        return "validation", state.val_loss.values[state.val_loss.steps.index(step)]
    if len(state.train_loss):
        return "train", state.train_loss.values[nearest(state.train_loss.steps, step)]
    return "", None


def film_line(samples: Sequence[SampleGenerated], index: int, width: int) -> Content:
    """Return the steps of the frames around the one on show, as many as fit."""
    if len(samples) < 2:
        return Content("")
    labels = [_label(sample.step) for sample in samples]
    first = last = index
    # Grown on both sides by turns, so that the frame on show stays in the middle.
    used = len(labels[index]) + 6
    while True:
        grown = False
        for candidate in (last + 1, first - 1):
            if 0 <= candidate < len(labels) and used + len(labels[candidate]) + 3 <= width:
                used += len(labels[candidate]) + 3
                first, last = min(first, candidate), max(last, candidate)
                grown = True
        if not grown:
            break
    parts: list[Content] = [Content.styled("◂ " if index else "  ", "$primary")]
    for number in range(first, last + 1):
        if number > first:
            parts.append(Content.styled(" · ", "$quiet"))
        style = "bold reverse" if number == index else "$quiet"
        parts.append(Content.styled(labels[number], style))
    parts.append(Content.styled(" ▸" if index < len(samples) - 1 else "", "$primary"))
    return Content("").join(parts)


def _label(step: int) -> str:
    return f"{step:,}" if step < 1_000_000 else formatting.count(step)


def no_samples() -> Content:
    """Return what stands there before the first frame."""
    return Content.styled("The model writes here at every validation.", "$quiet")
