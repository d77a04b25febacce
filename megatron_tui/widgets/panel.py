"""A titled frame around one part of a screen; its title may hold text from outside."""

from __future__ import annotations

from typing import ClassVar

from textual.containers import Vertical
from textual.content import Content
from textual.widget import Widget
from textual.widgets import Static

from megatron_model.text import safe


class Panel(Vertical):
    """A frame with a title."""

    EXPLANATION: ClassVar[str] = ""
    """What the help says of this panel while it has the focus."""

    DEFAULT_CSS = """
    Panel {
        border: round $line;
        border-title-color: $foreground;
        border-title-style: bold;
        border-subtitle-color: $quiet;
        padding: 0 1;
        &:focus-within { border: round $primary 60%; }
    }
    """

    def __init__(
        self, title: str, *children: Widget, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(*children, id=id, classes=classes)
        self._title = self._subtitle = ""
        self.set_title(title)

    @property
    def title(self) -> str:
        """The title on show."""
        return safe(self._title, one_line=True)

    def set_title(self, title: str) -> None:
        """Show another title; it is text, not markup."""
        # Setting the same one would repaint the whole panel.
        if title != self._title:
            self._title = title
            self.border_title = Content(safe(title, one_line=True))

    def set_subtitle(self, subtitle: str) -> None:
        """Show a word at the lower edge."""
        if subtitle != self._subtitle:
            self._subtitle = subtitle
            self.border_subtitle = Content(safe(subtitle, one_line=True))


class Text(Static):
    """Text that repaints only when it changed; it is never parsed as markup."""

    def __init__(
        self, text: Content | str = "", *, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(_content(text), id=id, classes=classes, markup=False)
        self._shown = _content(text)

    @property
    def plain(self) -> str:
        """The characters on show."""
        return self._shown.plain

    def show(self, text: Content | str, *, layout: bool = False) -> None:
        """Show `text`; with `layout`, its height may change."""
        content = _content(text)
        if content.plain == self._shown.plain and content.spans == self._shown.spans:
            return
        self._shown = content
        self.update(content, layout=layout)


def _content(text: Content | str) -> Content:
    return text if isinstance(text, Content) else Content(text)
