"""The prompt: a few lines of text, where enter generates and ctrl+j begins a new line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea


class PromptArea(TextArea):
    """Text to go on from."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority: the text area would take enter for a new line.
        Binding(
            "enter", "submit", "Generate", tooltip="Let the model go on from the prompt",
            priority=True, id="prompt.generate",
        ),
        Binding(
            "ctrl+j", "new_line", "New line", tooltip="New line", priority=True, id="prompt.line"
        ),
    ]  # fmt: skip

    @dataclass
    class Submitted(Message):
        """Enter was pressed."""

        text: str

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id, compact=True, soft_wrap=True, show_line_numbers=False, tab_behavior="focus"
        )
        self.cursor_blink = False

    def action_submit(self) -> None:
        """Ask for a text."""
        self.post_message(self.Submitted(self.text))

    def action_new_line(self) -> None:
        """Put a line feed at the cursor."""
        self.insert("\n")
