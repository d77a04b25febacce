"""The beginning of the corpus, to be read."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from megatron_model.util.text import safe
from megatron_tui.ui.panel import Label, Panel


class PreviewPanel(Panel, can_focus=True):
    """A text that scrolls while it has the focus."""

    EXPLANATION: ClassVar[str] = (
        "How the corpus begins, as it is read: line ends made alike, in the chosen encoding. "
        "What a terminal would obey is shown as \ufffd here; the model sees the character itself."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "scroll_up", "Up", show=False, tooltip="Line up", id="text.up"),
        Binding("down,j", "scroll_down", "Down", show=False, tooltip="Line down", id="text.down"),
        Binding(
            "pageup,ctrl+u", "page_up", "Page up", show=False, tooltip="Page up",
            id="text.page_up",
        ),
        Binding(
            "pagedown,ctrl+d,space", "page_down", "Page down", show=False, tooltip="Page down",
            id="text.page_down",
        ),
        Binding("home", "scroll_home", "Top", show=False, tooltip="To the top", id="text.top"),
        Binding("end,G", "scroll_end", "End", show=False, tooltip="To the end", id="text.end"),
    ]  # fmt: skip

    def __init__(self) -> None:
        super().__init__("text", id="text")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Label()

    def show(self, text: str) -> None:
        """Show another text."""
        self.query_one(Label).show(safe(text).expandtabs(4), layout=True)
