"""The dialogs: yes or no, and "please wait" while the trainer saves."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button

from megatron_model.text import safe
from megatron_tui.widgets.panel import Text


class Confirm(ModalScreen[bool]):
    """Ask one question; the safe answer is one key away."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", tooltip="Do it", id="dialog.yes"),
        Binding("n,escape", "answer(False)", "No", tooltip="Do nothing", id="dialog.no"),
        Binding("left,right,up,down", "other", show=False),
    ]

    def __init__(self, title: str, text: str, *, yes: str, no: str, danger: bool = False) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._yes, self._no, self._danger = yes, no, danger

    def compose(self) -> ComposeResult:
        """Question, explanation, two buttons."""
        with Vertical(classes="dialog"):
            yield Text(Content.styled(safe(self._title, one_line=True), "bold"))
            yield Text(safe(self._text), classes="explanation")
            with Horizontal(classes="buttons"):
                yield Button(
                    Content.assemble(("y", "underline"), f"  {self._yes}"),
                    id="yes",
                    compact=True,
                )
                yield Button(
                    Content.assemble(("n", "underline"), f"  {self._no}"), id="no", compact=True
                )

    def on_mount(self) -> None:
        """What cannot be taken back is not what enter does."""
        self.query_one("#no" if self._danger else "#yes").focus()

    @on(Button.Pressed)
    def _press(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)

    def action_other(self) -> None:
        """Go to the other button."""
        self.focus_next(Button)


class Saving(ModalScreen[None]):
    """Say that the trainer saves; it goes away with the program."""

    CSS_PATH = "dialogs.tcss"

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def compose(self) -> ComposeResult:
        """Two sentences."""
        with Vertical(classes="dialog"):
            yield Text(Content.styled("Saving…", "bold"))
            yield Text(
                f"{self._name} finishes its step and saves a checkpoint; "
                "then the workbench closes.",
                classes="explanation",
            )
