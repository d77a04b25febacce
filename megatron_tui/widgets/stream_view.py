"""Text that grows at its end: soft-wrapped, following its tail, at a cost that does not grow."""

from __future__ import annotations

from typing import ClassVar

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from textual.events import Resize
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from megatron_model.text import safe


class StreamView(ScrollView, can_focus=True):
    """Streamed text; its first characters may be a prompt, which looks different."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"stream-view--prompt"}

    DEFAULT_CSS = """
    StreamView {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        .stream-view--prompt { color: $primary; }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._lines = [""]
        self._rows: list[tuple[str, int]] = []
        """What is shown, row by row, each with the number of characters before it."""
        self._tail_row = 0
        self._tail_start = 0
        self._width = 0
        self._prompt = 0

    @property
    def text(self) -> str:
        """Everything shown."""
        return "\n".join(self._lines)

    def restart(self, prompt: str = "") -> None:
        """Empty the view and begin with a prompt."""
        self._lines, self._rows = [""], []
        self._tail_row = self._tail_start = 0
        self.append(prompt)
        self._prompt = len(self.text)
        self.scroll_home(animate=False)
        self.refresh()

    def append(self, piece: str) -> None:
        """Add text; the view follows unless it was scrolled up."""
        first, *rest = safe(piece).expandtabs(4).split("\n")
        self._lines[-1] += first
        self._lines += rest
        if not self._width:
            return  # not laid out yet; the first resize wraps everything
        changed = self._tail_row
        follow = self.is_vertical_scroll_end
        self._wrap_from(len(self._lines) - 1 - len(rest))
        self.virtual_size = Size(self._width, len(self._rows))
        if follow:
            self.scroll_end(animate=False, immediate=True, x_axis=False)
        self.refresh_lines(changed, len(self._rows) - changed)

    def on_resize(self, _event: Resize) -> None:
        """Wrap anew when the width changed."""
        width = self.scrollable_content_region.width
        if width and width != self._width:
            self._width = width
            self._rows = []
            self._tail_row = self._tail_start = 0
            self._wrap_from(0)
            self.virtual_size = Size(width, len(self._rows))
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one row."""
        index, width = self.scroll_offset.y + y, self.size.width
        if index >= len(self._rows):
            return Strip.blank(width, self.rich_style)
        text, start = self._rows[index]
        cut = max(0, min(len(text), self._prompt - start))
        segments = [Segment(text[cut:], self.rich_style)]
        if cut:
            style = self.get_component_rich_style("stream-view--prompt")
            segments.insert(0, Segment(text[:cut], style))
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _wrap_from(self, line: int) -> None:
        """Wrap the lines from `line` on, which is the one that the tail row begins."""
        del self._rows[self._tail_row :]
        start = self._tail_start
        for text in self._lines[line:]:
            self._tail_row, self._tail_start = len(self._rows), start
            for row in self._wrap(text):
                self._rows.append((row, start))
                start += len(row)
            start += 1  # the line feed

    def _wrap(self, line: str) -> list[str]:
        width = self._width
        if cell_len(line) != len(line):
            return chop_cells(line, width) or [""]
        rows = []
        while len(line) > width:
            # A row ends after a blank where there is one; the blank itself may hang over the edge.
            cut = line.rfind(" ", 0, width + 1) + 1 or width
            rows.append(line[:cut])
            line = line[cut:]
        return [*rows, line]
