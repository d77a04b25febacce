"""Several texts side by side from one prompt: other seeds, or a ladder of temperatures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import msgspec
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Grid

from megatron_model.config.fields import SamplingConfig
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.generation.sampling_draft import with_later_seed
from megatron_tui.generation.written_text import WrittenText
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.services.workbench import Workbench
from megatron_tui.ui import formatting
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.stream_view import StreamView

if TYPE_CHECKING:
    from megatron_model.run.checkpoint import LoadedModel

TEMPERATURES = (0.2, 0.5, 0.8, 1.0, 1.2, 1.5)
FEWEST, MOST = 2, 8


@dataclass(frozen=True)
class Batch:
    """What is written side by side."""

    title: str
    samplings: tuple[SamplingConfig, ...]
    labels: tuple[str, ...]
    ladder: bool = False


def seeds(sampling: SamplingConfig, count: int = 4) -> Batch:
    """Return the same way of sampling with seeds that follow each other."""
    each = tuple(with_later_seed(sampling, index) for index in range(count))
    return Batch(f"{count} samples", each, tuple(f"seed {one.seed}" for one in each))


def ladder(sampling: SamplingConfig) -> Batch:
    """Return the same draws at rising temperatures."""
    each = tuple(
        msgspec.structs.replace(sampling, temperature=temperature) for temperature in TEMPERATURES
    )
    labels = tuple(f"temperature {one.temperature:g}" for one in each)
    return Batch("temperature ladder", each, labels, ladder=True)


class SamplePanel(Panel):
    """One of the texts."""

    EXPLANATION: ClassVar[str] = (
        "One of several texts that are written in step from the same prompt. Enter, or its number, "
        "takes it to the Generation screen."
    )


class SamplesScreen(JobScreen[list[str]]):
    """A grid of texts, written in step."""

    CSS_PATH = "samples.tcss"
    AUTO_FOCUS = "StreamView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "take", "Take", tooltip="Go on with the text that has the focus",
                id="samples.take"),
        *(
            Binding(str(number), f"take({number})", "Take", show=False,
                    tooltip=f"Go on with text {number}", id=f"samples.take_{number}")
            for number in range(1, MOST + 1)
        ),
        Binding("r", "again", "Again", tooltip="Other seeds", id="samples.again"),
        Binding("plus", "count(1)", "Texts", key_display="+", tooltip="One text more",
                id="samples.more"),
        Binding("minus", "count(-1)", "Texts", key_display="-", tooltip="One text fewer",
                id="samples.fewer"),
        Binding("S", "halt", "Stop", tooltip="Stop writing", id="samples.stop"),
    ]  # fmt: skip

    def __init__(
        self,
        workbench: Workbench,
        chosen: ModelChoice,
        prompt: str,
        batch: Batch,
        choose: Callable[[WrittenText], None],
    ) -> None:
        """`choose` is called with the text that a person wants to go on with."""
        super().__init__(workbench)
        self._chosen, self._prompt, self._choose = chosen, prompt, choose
        self.asked = batch
        self.texts: list[WrittenText] = []

    def compose_body(self) -> ComposeResult:
        """As many panels as there can be; those without a text are hidden."""
        with Grid(id="samples"):
            for number in range(MOST):
                with SamplePanel("", id=f"sample-{number}"):
                    yield StreamView(follow=False)
        yield Label(id="state")

    def begin(self) -> None:
        """Write all of them."""
        chosen, batch, prompt = self._chosen, self.asked, self._prompt
        self.texts = [
            WrittenText(chosen.weights, chosen.run, chosen.words, sampling, prompt)
            for sampling in batch.samplings
        ]
        for number in range(MOST):
            panel = self.query_one(f"#sample-{number}", Panel)
            panel.display = number < len(self.texts)
            panel.query_one(StreamView).restart(prompt)
            if panel.display:
                panel.set_title(f"{number + 1}  {batch.labels[number]}")
        self.query_one("#samples").set_class(len(self.texts) <= 4, "-few")
        samplings = batch.samplings
        self.study([chosen.weights], lambda model: _write(model, prompt, samplings), refresh=True)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if action == "count":
            return not self.asked.ladder
        if action == "halt":
            return self.busy
        if action == "take" and parameters:
            return isinstance(parameters[0], int) and parameters[0] <= len(self.texts)
        return True

    def take(self, items: list[list[str]]) -> None:
        """Show what came, a character of each text at a time."""
        for number, pieces in enumerate(zip(*items, strict=True)):
            piece = "".join(pieces)
            self.texts[number].append(piece)
            self.query_one(f"#sample-{number} StreamView", StreamView).append(piece)

    def show_state(self) -> None:
        """How much was written, how fast, or what is wrong."""
        state, feed = self.query_one("#state", Label), self.feed
        if feed is None:
            return
        count = sum(text.length for text in self.texts)
        words = "loading the model" if feed.phase == "loading" else feed.phase
        line = f" {self.asked.title}, {words}"
        if count and feed.seconds:
            line += f", {formatting.count(count / feed.seconds)} characters/s together"
        line += f", {self._chosen.title}"
        state.show(self.problem if self.problem.plain else line)
        self.refresh_bindings()

    def action_again(self) -> None:
        """Write other texts: with the seeds that follow."""
        batch = self.asked
        first = with_later_seed(batch.samplings[0], 1 if batch.ladder else len(batch.samplings))
        self.asked = ladder(first) if batch.ladder else seeds(first, len(batch.samplings))
        self.begin()

    def action_count(self, change: int) -> None:
        """Write more or fewer texts."""
        count = max(FEWEST, min(MOST, len(self.asked.samplings) + change))
        self.asked = seeds(self.asked.samplings[0], count)
        self.begin()

    def action_take(self, number: int = 0) -> None:
        """Go back with one of the texts."""
        if not number:
            panels = [panel for panel in self.query(SamplePanel) if panel.has_focus_within]
            number = int((panels[0].id or "sample-0").rpartition("-")[2]) + 1 if panels else 1
        self.poll()  # what came meanwhile belongs to it
        self._choose(self.texts[number - 1])
        self.action_close()


def _write(
    model: LoadedModel, prompt: str, samplings: tuple[SamplingConfig, ...]
) -> Iterator[list[str]]:
    from megatron_model.inference.sampler import generate_batch

    return generate_batch(model.model, model.tokenizer, prompt, samplings)
