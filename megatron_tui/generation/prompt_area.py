"""The prompt: a few lines of text, where enter generates and ctrl+j begins a new line.

Characters that the model has never seen are marked as they are typed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import TextArea


class PromptArea(TextArea):
    """Text to go on from."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"prompt-area--unknown"}

    DEFAULT_CSS = """
    PromptArea .prompt-area--unknown {
        color: $background; background: $error; text-style: bold underline;
    }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority: the text area would take enter for a new line.
        Binding(
            "enter", "submit", "Generate", tooltip="Let the model go on from the prompt",
            priority=True, id="prompt.generate",
        ),
        Binding(
            "ctrl+j", "new_line", "New line", tooltip="New line", priority=True, id="prompt.line"
        ),
        # On the first and the last line; elsewhere the arrows move the cursor.
        Binding("up", "older", show=False, tooltip="The prompt before", id="prompt.older"),
        Binding("down", "newer", show=False, tooltip="The prompt after", id="prompt.newer"),
    ]  # fmt: skip

    @dataclass
    class Submitted(Message):
        """Enter was pressed."""

        text: str

    @dataclass
    class Recalled(Message):
        """An earlier prompt is asked for: the one before (-1) or after (1)."""

        direction: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(
            id=id, compact=True, soft_wrap=True, show_line_numbers=False, tab_behavior="focus",
            highlight_cursor_line=False,  # it would lie over the marks
        )  # fmt: skip
        self.cursor_blink = False
        self._unknown: Callable[[str], list[str]] | None = None

    def mark(self, unknown: Callable[[str], list[str]] | None) -> None:
        """Mark the characters that `unknown` finds."""
        if unknown != self._unknown:
            self._unknown = unknown
            self.notify_style_update()  # drops the lines that were kept
            self.refresh()

    def get_line(self, line_index: int) -> Text:
        """Return a line with what is unknown marked."""
        line = super().get_line(line_index)
        unknown = set(self._unknown(line.plain)) if self._unknown is not None else set()
        if unknown:
            style = self.get_component_rich_style("prompt-area--unknown")
            for index, character in enumerate(line.plain):
                if character in unknown:
                    line.stylize(style, index, index + 1)
        return line

    def put(self, text: str) -> None:
        """Show another prompt, the cursor at its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def action_submit(self) -> None:
        """Ask for a text."""
        self.post_message(self.Submitted(self.text))

    def action_new_line(self) -> None:
        """Put a line feed at the cursor."""
        self.insert("\n")

    def action_older(self) -> None:
        """Go up a row; from the first one to the prompt before."""
        if self.cursor_at_first_line:
            self.post_message(self.Recalled(-1))
        else:
            self.action_cursor_up()

    def action_newer(self) -> None:
        """Go down a row; from the last one to the prompt after."""
        if self.cursor_at_last_line:
            self.post_message(self.Recalled(1))
        else:
            self.action_cursor_down()
