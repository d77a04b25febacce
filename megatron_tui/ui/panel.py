"""A titled frame around one part of a screen; its title may hold text from outside."""

from __future__ import annotations

import os
from typing import ClassVar

from textual.app import RenderResult
from textual.containers import Vertical
from textual.content import Content
from textual.geometry import Region
from textual.widget import Widget

from megatron_model.util.text import safe


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
        &:focus-within { border: round $focus-line; }
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


class Label(Widget):
    """Text that repaints only what changed of it; it is never parsed as markup."""

    DEFAULT_CSS = """
    Label { height: auto; }
    """

    def __init__(
        self, text: Content | str = "", *, id: str | None = None, classes: str | None = None
    ) -> None:
        super().__init__(id=id, classes=classes, markup=False)
        self._shown = _content(text)

    @property
    def plain(self) -> str:
        """The characters on show."""
        return self._shown.plain

    def render(self) -> RenderResult:
        """Return the text."""
        return self._shown

    def show(self, text: Content | str, *, layout: bool = False) -> None:
        """Show `text`; with `layout`, its height may change."""
        content = _content(text)
        old, self._shown = self._shown, content
        if _same(content, old):
            return
        width, styles = self.size.width, self.styles
        plain = styles.text_align in ("start", "left") and not (layout and styles.is_auto_width)
        regions = changed_regions(old, content, width) if width and plain else None
        if regions is None:
            self.refresh(layout=layout)
        else:
            self.refresh(*regions)


def changed_regions(old: Content, new: Content, width: int) -> list[Region] | None:
    """Return the cells in which two texts differ; None if one of them has lines to be wrapped."""
    before, after = old.split(allow_blank=True), new.split(allow_blank=True)
    if len(before) != len(after):
        return None
    regions = []
    for y, (one, other) in enumerate(zip(before, after, strict=True)):
        if _same(one, other):
            continue
        longest = max(one.cell_length, other.cell_length)
        if longest > width:
            return None
        start, end = 0, longest
        pair = (one.plain, other.plain)
        if one.spans == other.spans and [len(text) for text in pair] == [longest, longest]:
            start = len(os.path.commonprefix(pair))
            end -= len(os.path.commonprefix([text[::-1] for text in pair]))
        regions.append(Region(start, y, max(1, end - start), 1))
    return regions


def _same(one: Content, other: Content) -> bool:
    return one.plain == other.plain and one.spans == other.spans


def _content(text: Content | str) -> Content:
    return text if isinstance(text, Content) else Content(text)
