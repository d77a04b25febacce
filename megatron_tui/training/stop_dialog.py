"""Ask how a run is to end: saved, at once, or not."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button

from megatron_model.util.text import safe
from megatron_tui.terminal.keyboard import irreversible
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label

Ending: TypeAlias = Literal["stop", "abort", ""]


class StopRun(ModalScreen[Ending]):
    """Three answers; the one that loses nothing has the focus."""

    CSS_PATH = "../ui/dialogs.tcss"
    DEFAULT_CSS = """
    StopRun { align: center middle; background: $background 60%; }
    """
    AUTO_FOCUS = "#stop"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y,s", "answer('stop')", "Save and stop", tooltip="Save and end", id="stop.save"),
        Binding("a", "answer('abort')", "Stop now", tooltip="End at once", id="stop.now"),
        Binding("n,escape", "cancel", "Go on", tooltip="Go on training", id="stop.no"),
        Binding("left,up", "app.focus_previous", show=False),
        Binding("right,down", "app.focus_next", show=False),
    ]

    def __init__(self, name: str, step: int, saved: int | None) -> None:
        super().__init__()
        self._run_name, self._step, self._saved = name, step, saved

    def compose(self) -> ComposeResult:
        """Question, explanation, three buttons."""
        lost = "everything" if self._saved is None else f"what came after step {self._saved:,}"
        with Vertical(classes="dialog"):
            yield Label(Content.styled("Stop this run?", "bold"))
            yield Label(
                f"{safe(self._run_name, one_line=True)} is at step {self._step:,}. Saved, it can "
                f"be resumed from here. Stopped now, {lost} is lost.",
                classes="explanation",
            )
            with Horizontal(classes="buttons"):
                for answer, key, label in (
                    ("stop", "y", "Save and stop"),
                    ("abort", "a", "Stop now"),
                    ("no", "n", "Go on"),
                ):
                    yield Button(
                        Content.assemble((key, "underline"), f"  {label}"), id=answer, compact=True
                    )

    @on(Button.Pressed)
    def _press(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id or "")

    def action_cancel(self) -> None:
        """Close, and let the run go on."""
        self.dismiss("")

    @irreversible
    def action_answer(self, answer: str) -> None:
        """Close with the answer."""
        answers: dict[str, Ending] = {"stop": "stop", "abort": "abort"}
        self.dismiss(answers.get(answer, ""))
