"""The characters of a corpus as a table that draws only the rows in view."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.cells import set_cell_size
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Size
from textual.scroll_view import ScrollView
from textual.strip import Strip

from megatron_model.util.text import safe

if TYPE_CHECKING:
    from megatron_model.data.report import CharacterCount

VISIBLE = {"\n": "↵", "\t": "⇥", " ": "␣", "\u00a0": "␣"}
"""What is shown of characters that are nothing to see."""

RARE = 10


class CharacterTable(ScrollView, can_focus=True):
    """Character, code, count, share and name; rare and control characters are marked in words."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down,j", "scroll_down", "Scroll", tooltip="Scroll down", id="table.down"),
        Binding("up,k", "scroll_up", "Scroll", tooltip="Scroll up", id="table.up"),
        Binding("home", "scroll_home", "Top", show=False, tooltip="To the top", id="table.top"),
        Binding("G", "scroll_end", "End", show=False, tooltip="To the end", id="table.end"),
    ]

    COMPONENT_CLASSES: ClassVar[set[str]] = {"table--head", "table--quiet", "table--rare"}

    DEFAULT_CSS = """
    CharacterTable {
        height: 1fr;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        .table--head { color: $primary; text-style: bold; }
        .table--quiet { color: $quiet; }
        .table--rare { color: $warning; }
    }
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: Sequence[CharacterCount] = ()

    def show(self, rows: Sequence[CharacterCount]) -> None:
        """Show other rows."""
        if rows is not self._rows:
            self._rows = rows
            self._measure()
            self.refresh()

    def on_resize(self, _event: Resize) -> None:
        """The rows fill the width."""
        self._measure()

    def _measure(self) -> None:
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._rows))

    def render_line(self, y: int) -> Strip:
        """Return one row."""
        width, base = self.size.width, self.rich_style
        index = self.scroll_offset.y + y
        if index >= len(self._rows):
            return Strip.blank(width, base)
        row = self._rows[index]
        quiet = self.get_component_rich_style("table--quiet")
        rare = self.get_component_rich_style("table--rare")
        # A cell of its own for what may be two cells wide, or none.
        glyph = set_cell_size(" " + VISIBLE.get(row.character, safe(row.character)), 4)
        name = row.name.capitalize() if row.name.isupper() else row.name
        segments = [
            Segment(glyph, base),
            Segment(f"U+{ord(row.character):04X} ".ljust(8), quiet),
            Segment(f"{row.count:>11,} ", rare if row.count < RARE else base),
            Segment(f"{row.share * 100:>7.3f}% ", quiet),
            Segment("rare  " if row.count < RARE else "      ", rare),
            Segment(safe(name, one_line=True), quiet),
        ]
        return Strip(segments).adjust_cell_length(width, base)
