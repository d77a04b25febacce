"""A dialog to paste or type a text of several lines."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import TextArea

from megatron_model.text import safe
from megatron_tui.screens.modal import ModalScreen
from megatron_tui.widgets.key_hints import KeyHints
from megatron_tui.widgets.panel import Text


class AskText(ModalScreen[str | None]):
    """ctrl+s takes the text, escape leaves it."""

    CSS_PATH = "history.tcss"
    AUTO_FOCUS = "TextArea"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "take", "Take", tooltip="Take the text", id="asktext.take",
                priority=True),
        Binding("escape", "cancel", "Cancel", tooltip="Take none", id="asktext.cancel",
                priority=True),
    ]  # fmt: skip

    def __init__(self, title: str, text: str = "") -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """Title, text, keys."""
        with Vertical(classes="history"):
            yield Text(Content.styled(safe(self._title, one_line=True), "bold"))
            area = TextArea(self._text, compact=True, soft_wrap=True, show_line_numbers=False)
            area.cursor_blink = False
            yield area
            yield KeyHints()

    def action_take(self) -> None:
        """Close with the text."""
        self.dismiss(self.query_one(TextArea).text)

    def action_cancel(self) -> None:
        """Close without."""
        self.dismiss(None)
