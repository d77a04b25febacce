"""Text that grows at its end: soft-wrapped, following its tail, at a cost that does not grow."""

from __future__ import annotations

from typing import ClassVar

from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from megatron_model.util.text import safe
from megatron_tui.ui.wrapping import Row, Wrapping


class StreamView(ScrollView, can_focus=True):
    """Streamed text; its first characters may be a prompt, and some at its end differ as well."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {"stream-view--prompt", "stream-view--apart"}

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+d", "page_down", show=False, tooltip="Page down", id="stream.page_down"),
        Binding("ctrl+u", "page_up", show=False, tooltip="Page up", id="stream.page_up"),
        Binding("G", "scroll_end", show=False, tooltip="Follow the end", id="stream.end"),
    ]

    DEFAULT_CSS = """
    StreamView {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        .stream-view--prompt { color: $primary; }
        .stream-view--apart { background: $accent 25%; text-style: underline; }
    }
    """

    def __init__(self, *, follow: bool = True, id: str | None = None) -> None:
        """With `follow`, the view stays at the end unless it is scrolled up.

        Without, it stays at the beginning of what was written, with what there is room for of the
        prompt above it, until it is scrolled.
        """
        super().__init__(id=id)
        self._in_place = True
        """Whether the view is where it keeps itself, not where somebody scrolled it to."""
        self._placing = False
        self._follows = follow
        self._wrapped = Wrapping()
        self._prompt = 0
        self._apart: int | None = None

    @property
    def text(self) -> str:
        """Everything shown."""
        return self._wrapped.text

    @property
    def empty(self) -> bool:
        """Whether nothing is shown."""
        return not self._wrapped.length

    def restart(self, prompt: str = "") -> None:
        """Empty the view and begin with a prompt."""
        width = self._width
        self._wrapped = Wrapping()
        self._wrapped.lay_out(width)
        self._prompt, self._apart = 0, None
        self.append(prompt)
        self._prompt = self._wrapped.length
        self._in_place = True
        self._keep_place()
        self.refresh()

    def set_apart(self) -> None:
        """Show what follows as the place where the text leaves another one."""
        if self._apart is None:
            self._apart = self._wrapped.length

    def append(self, piece: str) -> None:
        """Add text."""
        if not piece:
            return
        changed = self._wrapped.append(safe(piece).replace("\t", "    "))
        if not self._width:
            return  # not laid out yet; the first resize wraps everything
        rows = len(self._wrapped.rows)
        if rows != self.virtual_size.height:
            self.virtual_size = Size(self._width, rows)
            self._keep_place()
        self.refresh_lines(changed, rows - changed)

    @property
    def _width(self) -> int:
        return self.scrollable_content_region.width

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        """Take note of where somebody scrolls it to."""
        super().watch_scroll_y(old_value, new_value)
        if not self._placing:
            self._in_place = self._follows and self.is_vertical_scroll_end

    def _keep_place(self) -> None:
        """Go on showing what is new, unless it was scrolled away from."""
        if not self._in_place:
            return
        row = len(self._wrapped.rows)
        if not self._follows:
            # Half of the view at least for what is written, however long the prompt is.
            above = self._wrapped.row_of(self._prompt - 1) + 1 if self._prompt else 0
            row = max(0, above - self.scrollable_content_region.height // 2)
        self._placing = True
        self.scroll_to(y=row, animate=False, immediate=True)
        self._placing = False

    def on_resize(self, _event: Resize) -> None:
        """Wrap anew when the width changed."""
        if self._width:
            self._wrapped.lay_out(self._width)
            self.virtual_size = Size(self._width, len(self._wrapped.rows))
            self._keep_place()
            self.refresh()

    def render_line(self, y: int) -> Strip:
        """Return one row."""
        index, width = self.scroll_offset.y + y, self.size.width
        if index >= len(self._wrapped.rows):
            return Strip.blank(width, self.rich_style)
        row = self._wrapped.rows[index]
        return Strip(self._segments(row)).adjust_cell_length(width, self.rich_style)

    def _segments(self, row: Row) -> list[Segment]:
        text, start = row
        cut = max(0, min(len(text), self._prompt - start))
        segments = [Segment(text[cut:], self.rich_style)]
        if self._apart is not None and start <= self._apart < start + len(text):
            here = self._apart - start
            style = self.get_component_rich_style("stream-view--apart")
            segments = [
                Segment(text[cut:here], self.rich_style),
                Segment(text[here : here + 1], style),
                Segment(text[here + 1 :], self.rich_style),
            ]
        if cut:
            style = self.get_component_rich_style("stream-view--prompt")
            segments.insert(0, Segment(text[:cut], style))
        return segments
