"""Fill in the middle: what may stand between two texts, the best that was found on top."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.content import Content

from megatron_model.config.fields import SamplingConfig
from megatron_model.util.text import plural, safe
from megatron_tui.generation.characters import bits
from megatron_tui.generation.insight_panels import ProblemLabel
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.services.workbench import Workbench
from megatron_tui.ui.panel import Label, Panel

if TYPE_CHECKING:
    from megatron_model.analysis.filling import Filling
    from megatron_model.run.checkpoint import LoadedModel

KEPT = 9
AROUND = 60
"""Characters of the two texts that are shown on either side of a gap."""


class FillingPanel(Panel):
    """The best fillings."""

    EXPLANATION: ClassVar[str] = (
        "The model reads from left to right and cannot aim at an end. It wrote several texts after "
        "the prompt; each of them, cut after every character, was judged by how likely the model "
        "then holds what comes after the gap. The fewer bits a character of that takes, the better."
    )


class FillingScreen(JobScreen["Filling"]):
    """Ways to fill a gap, by number."""

    CSS_PATH = "insight.tcss"
    AUTO_FOCUS = "VerticalScroll"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"take({number})", "Take", show=number == 1,
                    tooltip=f"Take filling {number} into the prompt", id=f"filling.take_{number}")
            for number in range(1, KEPT + 1)
        ),
        Binding("r", "again", "Again", tooltip="Look once more, with other seeds",
                id="filling.again"),
        Binding("S", "halt", "Stop", tooltip="Stop looking", id="filling.stop"),
    ]  # fmt: skip

    def __init__(
        self,
        workbench: Workbench,
        chosen: ModelChoice,
        before: str,
        after: str,
        sampling: SamplingConfig,
        choose: Callable[[str], None],
    ) -> None:
        """`choose` is called with the whole text that a person wants."""
        super().__init__(workbench)
        self._chosen, self._before, self._after = chosen, before, after
        self._sampling, self._choose = sampling, choose
        self.best: list[Filling] = []
        """The best that were found, the best one first."""
        self._judged = 0

    def compose_body(self) -> ComposeResult:
        """A list of them."""
        with FillingPanel("fill in", id="reading"):
            yield ProblemLabel()
            with VerticalScroll():
                yield Label(id="candidates")

    def begin(self) -> None:
        """Look for some."""
        self.best, self._judged = [], 0
        before, after, sampling = self._before, self._after, self._sampling
        self.study([self._chosen.weights], lambda model: _fill(model, before, after, sampling))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if action == "halt":
            return self.busy
        if action == "take" and parameters:
            return isinstance(parameters[0], int) and parameters[0] <= len(self.best)
        return True

    def take(self, items: list[Filling]) -> None:
        """Keep the best."""
        self._judged += len(items)
        self.best = heapq.nlargest(KEPT, [*self.best, *items], lambda one: one.log_probability)

    def show_state(self) -> None:
        """The fillings, how many were judged, and what is wrong."""
        panel = self.query_one("#reading", Panel)
        panel.set_title(f"fill in, by {self._chosen.title}: samples judged by what comes after")
        judged = plural(self._judged, "filling")
        panel.set_subtitle(f"{judged} judged" if not self.busy else f"{judged} judged …")
        self.query_one(ProblemLabel).show_problem(self.problem)
        lines = [self._line(number, one) for number, one in enumerate(self.best, 1)]
        self.query_one("#candidates", Label).show(Content("\n").join(lines), layout=True)
        self.refresh_bindings()

    def _line(self, number: int, filling: Filling) -> Content:
        def shown(text: str) -> str:
            return safe(text).replace("\n", "↵")

        return Content.assemble(
            (f"{number} ", "bold $primary"),
            (f"{bits(filling.log_probability):.2f} bits  ", "$quiet"),
            shown(self._before[-AROUND:]),
            (shown(filling.middle) or "∅", "bold $heat-ink on $primary 30%"),
            shown(self._after[:AROUND]),
        )

    def action_again(self) -> None:
        """Look once more, with other seeds."""
        from megatron_model.analysis.filling import TRIES
        from megatron_tui.generation.sampling_draft import with_later_seed

        self._sampling = with_later_seed(self._sampling, TRIES)
        self.begin()

    def action_take(self, number: int) -> None:
        """Go back with one of them in the prompt."""
        self._choose(self._before + self.best[number - 1].middle + self._after)
        self.action_close()


def _fill(
    model: LoadedModel, before: str, after: str, sampling: SamplingConfig
) -> Iterator[Filling]:
    from megatron_model.analysis.filling import fill

    return fill(model.model, model.tokenizer, before, after, sampling)
