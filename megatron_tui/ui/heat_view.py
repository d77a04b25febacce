"""A text whose characters are tinted one by one, with a cursor that goes from one to the next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.events import Click, Resize
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from megatron_model.util.text import safe
from megatron_tui.ui.wrapping import Wrapping

SURPRISE_BITS = (0.5, 1.5, 3.0, 5.0, 8.0)
"""Where one tint of the surprise view ends and the next begins, in bits."""
SURPRISE_TINTS = tuple(f"heat--surprise-{level}" for level in range(len(SURPRISE_BITS) + 1))
SHARE_TINTS = tuple(f"heat--share-{level}" for level in range(6))
LEAD_TINTS = ("heat--first-2", "heat--first-1", "heat--even", "heat--second-1", "heat--second-2")
"""Who knew a character better: clearly the first, slightly, neither, the second."""
PLAIN = "heat--plain"


class HeatView(ScrollView, can_focus=True):
    """Characters with tints; ``Moved`` says where the cursor is."""

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        *SURPRISE_TINTS, *SHARE_TINTS, *LEAD_TINTS, PLAIN, "heat--cursor",
    }  # fmt: skip

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("h,left", "move(-1)", "Cursor", tooltip="Character before", id="heat.left"),
        Binding("l,right", "move(1)", "Cursor", tooltip="Character after", id="heat.right"),
        Binding("k,up", "row(-1)", show=False, tooltip="Row above", id="heat.up"),
        Binding("j,down", "row(1)", show=False, tooltip="Row below", id="heat.down"),
        Binding("home", "move(-10000000)", show=False, tooltip="First character", id="heat.top"),
        Binding("end,G", "move(10000000)", show=False, tooltip="Last character", id="heat.end"),
        Binding("pagedown,ctrl+d", "row(10)", show=False, tooltip="Ten rows down", id="heat.page"),
        Binding("pageup,ctrl+u", "row(-10)", show=False, tooltip="Ten rows up", id="heat.back"),
    ]

    # Each step differs from its neighbours by more than its hue: 16 colours, or none, are enough.
    DEFAULT_CSS = """
    HeatView {
        height: 1fr;
        overflow-x: hidden;
        overflow-y: scroll;
        scrollbar-size-vertical: 1;
        .heat--plain { color: $quiet; }
        .heat--surprise-0 { color: $quiet; }
        .heat--surprise-1 { color: $foreground; background: $warning 12%; }
        .heat--surprise-2 { color: $heat-ink; background: $warning 32%; text-style: bold; }
        .heat--surprise-3 { color: $heat-ink; background: $warning 60%; text-style: underline; }
        .heat--surprise-4 {
            color: $heat-ink; background: $error 60%; text-style: bold underline;
        }
        .heat--surprise-5 { color: $background; background: $error; text-style: bold underline; }
        .heat--share-0 { color: $quiet; }
        .heat--share-1 { color: $foreground; background: $primary 15%; }
        .heat--share-2 { color: $heat-ink; background: $primary 30%; text-style: bold; }
        .heat--share-3 { color: $heat-ink; background: $primary 50%; text-style: underline; }
        .heat--share-4 {
            color: $heat-ink; background: $primary 75%; text-style: bold underline;
        }
        .heat--share-5 { color: $background; background: $primary; text-style: bold underline; }
        .heat--first-2 { color: $background; background: $primary; text-style: bold; }
        .heat--first-1 { color: $heat-ink; background: $primary 30%; text-style: bold; }
        .heat--even { color: $quiet; }
        .heat--second-1 { color: $heat-ink; background: $accent 30%; text-style: underline; }
        .heat--second-2 { color: $background; background: $accent; text-style: underline; }
        .heat--cursor { text-style: reverse bold; }
    }
    """

    cursor: reactive[int] = reactive(0, repaint=False)
    """Index of the character under the cursor."""

    @dataclass
    class Moved(Message):
        """The cursor is on another character."""

        index: int

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._wrapped = Wrapping(breaks=True)
        self._tints: list[str] = []

    @property
    def length(self) -> int:
        """How many characters there are."""
        return self._wrapped.length

    @property
    def text(self) -> str:
        """The characters, harmless to show."""
        return self._wrapped.text

    def restart(self) -> None:
        """Show nothing."""
        self._wrapped = Wrapping(breaks=True)
        self._wrapped.lay_out(self._width)
        self._tints = []
        self.set_reactive(HeatView.cursor, 0)
        self.virtual_size = Size(self._width, 0)
        self.scroll_home(animate=False)
        self.refresh()

    def append(self, text: str, tints: Sequence[str]) -> None:
        """Add characters, each with the name of its tint."""
        self._wrapped.append(safe(text).replace("\t", "⇥"))
        self._tints += tints
        self.virtual_size = Size(self._width, len(self._wrapped.rows))
        self.refresh()

    def tint(self, tints: Sequence[str]) -> None:
        """Tint the characters otherwise; what is left over is plain."""
        self._tints = [*tints, *[PLAIN] * (self.length - len(tints))]
        self.refresh()

    def tints(self) -> list[str]:
        """Return the name of the tint of every character."""
        return list(self._tints)

    @property
    def _width(self) -> int:
        return self.scrollable_content_region.width

    def on_resize(self, _event: Resize) -> None:
        """Wrap anew when the width changed."""
        if self._width:
            self._wrapped.lay_out(self._width)
            self.virtual_size = Size(self._width, len(self._wrapped.rows))
            self._follow()
            self.refresh()

    def watch_cursor(self) -> None:
        """Follow the cursor and say where it is."""
        self._follow()
        self.refresh()
        self.post_message(self.Moved(self.cursor))

    def on_click(self, event: Click) -> None:
        """Put the cursor where the mouse points."""
        rows = self._wrapped.rows
        place = event.get_content_offset(self)
        if place is not None and place.y + self.scroll_offset.y < len(rows):
            row = rows[place.y + self.scroll_offset.y]
            self.go_to(row.start + min(place.x, max(0, len(row.text) - 1)))

    def go_to(self, index: int) -> None:
        """Put the cursor on a character."""
        self.cursor = max(0, min(self.length - 1, index))

    def action_move(self, change: int) -> None:
        """Move the cursor along the text."""
        self.go_to(self.cursor + change)

    def action_row(self, change: int) -> None:
        """Move the cursor to another row."""
        rows = self._wrapped.rows
        if rows:
            here = self._wrapped.row_of(self.cursor)
            row = rows[max(0, min(len(rows) - 1, here + change))]
            column = self.cursor - rows[here].start
            self.go_to(row.start + min(column, max(0, len(row.text) - 1)))

    def _follow(self) -> None:
        row, height = self._wrapped.row_of(self.cursor), self.scrollable_content_region.height
        if row < self.scroll_offset.y:
            self.scroll_to(y=row, animate=False)
        elif height and row >= self.scroll_offset.y + height:
            self.scroll_to(y=row - height + 1, animate=False)

    def render_line(self, y: int) -> Strip:
        """Return one row."""
        index, width = self.scroll_offset.y + y, self.size.width
        if index >= len(self._wrapped.rows):
            return Strip.blank(width, self.rich_style)
        text, start = self._wrapped.rows[index]
        names = self._tints[start : start + len(text)]
        names += [PLAIN] * (len(text) - len(names))
        segments, at = [], 0
        for name, group in groupby(names):
            count = len(list(group))
            segments.append(Segment(text[at : at + count], self._style(name)))
            at += count
        strip = Strip(segments)
        here = self.cursor - start
        if 0 <= here < len(text):
            strip = self._with_cursor(text, names, here)
        return strip.adjust_cell_length(width, self.rich_style)

    def _with_cursor(self, text: str, names: list[str], here: int) -> Strip:
        cursor = self._style("heat--cursor")
        return Strip(
            [
                Segment(character, cursor if place == here else self._style(name))
                for place, (character, name) in enumerate(zip(text, names, strict=True))
            ]
        )

    def _style(self, name: str) -> Style:
        return self.get_component_rich_style(name)


def surprise_tint(bits: float) -> str:
    """Return the tint of a character that took so many bits."""
    level = sum(bits >= border for border in SURPRISE_BITS)
    return SURPRISE_TINTS[level]


def share_tint(share: float, highest: float) -> str:
    """Return the tint of a share of attention, measured by the highest one."""
    if highest <= 0:
        return SHARE_TINTS[0]
    relative = share / highest
    level = sum(relative >= border for border in (0.05, 0.15, 0.35, 0.6, 0.9))
    return SHARE_TINTS[level]


def lead_tint(difference: float) -> str:
    """Return the tint of how many bits fewer a character cost the second of two models."""
    if abs(difference) < 0.5:
        return "heat--even"
    side = "second" if difference > 0 else "first"
    return f"heat--{side}-{2 if abs(difference) >= 2 else 1}"
