"""Continue each line: every line of a text goes on by itself, to the end of the line it becomes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from megatron_model.config.fields import SamplingConfig
from megatron_model.util.text import plural
from megatron_tui.generation.insight_panels import ProblemLabel
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.services.workbench import Workbench
from megatron_tui.ui.heat_view import PLAIN, HeatView
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Panel

if TYPE_CHECKING:
    from megatron_model.run.checkpoint import LoadedModel

WRITTEN = "heat--share-2"


class LinesPanel(Panel):
    """The lines."""

    EXPLANATION: ClassVar[str] = (
        "Each line of the prompt with what the model wrote after it, in colour. A line is written "
        "as if nothing stood before it, with the settings and the seed of the form, until a line "
        "end comes or the length is reached."
    )


class LinesScreen(JobScreen[tuple[int, str]]):
    """The lines, one after the other as they are written."""

    CSS_PATH = "insight.tcss"
    AUTO_FOCUS = "HeatView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "copy", "Copy", tooltip="Copy all lines", id="lines.copy"),
        Binding("S", "halt", "Stop", tooltip="Stop writing", id="lines.stop"),
    ]

    def __init__(
        self, workbench: Workbench, chosen: ModelChoice, text: str, sampling: SamplingConfig
    ) -> None:
        super().__init__(workbench)
        self._chosen, self._text, self._sampling = chosen, text, sampling
        self.lines = text.split("\n")
        """Each as far as it was written."""
        self._over = 0
        """Lines that are over."""

    def compose_body(self) -> ComposeResult:
        """One panel."""
        with LinesPanel("each line", id="reading"):
            yield ProblemLabel()
            yield HeatView()

    def begin(self) -> None:
        """Write all of them."""
        text, sampling = self._text, self._sampling
        self._show(self.lines[0], written=False)
        self.study([self._chosen.weights], lambda model: _write(model, text, sampling))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        return self.busy if action == "halt" else True

    def take(self, items: list[tuple[int, str]]) -> None:
        """Put each character behind its line; the next line stands there once one is over."""
        for number, character in items:
            if character:
                self.lines[number] += character
                self._show(character, written=True)
                continue
            self._over += 1
            if self._over < len(self.lines):
                self._show("\n" + self.lines[self._over], written=False)

    def _show(self, text: str, *, written: bool) -> None:
        view = self.query_one(HeatView)
        follows = view.cursor >= view.length - 1
        view.append(text, [WRITTEN if written else PLAIN] * len(text))
        if follows:
            view.go_to(view.length - 1)

    def show_state(self) -> None:
        """Title, how far it is, and what is wrong."""
        panel = self.query_one("#reading", Panel)
        panel.set_title(f"each line, by {self._chosen.title}")
        panel.set_subtitle(f"{self._over} of {plural(len(self.lines), 'line')}")
        self.query_one(ProblemLabel).show_problem(self.problem)
        self.refresh_bindings()

    def action_copy(self) -> None:
        """Put all lines on the clipboard of the terminal."""
        self.poll()
        self.app.copy_to_clipboard("\n".join(self.lines))
        notify(self, f"Copied {plural(len(self.lines), 'line')}.")


def _write(model: LoadedModel, text: str, sampling: SamplingConfig) -> Iterator[tuple[int, str]]:
    from megatron_model.inference.sampler import continue_lines

    return continue_lines(model.model, model.tokenizer, text, sampling)
