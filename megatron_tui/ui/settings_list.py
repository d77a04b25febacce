"""A list of settings drawn by one widget: a cursor goes from row to row, values step or are edited.

Thirty fields as thirty inputs would cost half a second of start-up and every single-letter key.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import set_cell_size
from rich.segment import Segment
from textual.binding import Binding, BindingType
from textual.events import Resize
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from megatron_model.config.schema import Field
from megatron_model.util.text import safe
from megatron_tui.ui.draft import stepped

VALUE_WIDTH = 12
DIGITS = "0123456789"

LEAST_ERROR = 16
"""Cells that an error needs behind its value."""


class SettingsList(ScrollView, can_focus=True):
    """Rows of name, value and unit, in groups; a wrong value has its error in place of the unit."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "edit", "Edit", tooltip="Type a value", id="settings.edit", priority=True),
        Binding(
            "left,h", "step(-1)", "Step", tooltip="Take the next smaller value", id="settings.less"
        ),
        Binding(
            "right,l", "step(1)", "Step", tooltip="Take the next larger value", id="settings.more"
        ),
        Binding(
            "space", "next_choice", "Toggle", show=False, tooltip="Take the next of a few choices",
            id="settings.toggle",
        ),
        Binding(
            "backspace,delete", "reset", "Reset", show=False,
            tooltip="Put the preset's value back", id="settings.reset",
        ),
        Binding("up,k", "move(-1)", "Up", show=False, tooltip="Setting above", id="settings.up"),
        Binding(
            "down,j", "move(1)", "Down", show=False, tooltip="Setting below", id="settings.down"
        ),
        Binding(
            "home", "move(-1000)", "First", show=False, tooltip="First setting",
            id="settings.first",
        ),
        Binding(
            "end,G", "move(1000)", "Last", show=False, tooltip="Last setting", id="settings.last"
        ),
        Binding(
            "pageup,ctrl+u", "move(-10)", "Page up", show=False, tooltip="Ten settings up",
            id="settings.page_up",
        ),
        Binding(
            "pagedown,ctrl+d", "move(10)", "Page down", show=False, tooltip="Ten settings down",
            id="settings.page_down",
        ),
        # Priority: a value typed fast or pasted arrives whole.
        *(
            Binding(key, f"type('{text}')", show=False, priority=True)
            for key, text in [*zip(DIGITS, DIGITS, strict=True), ("full_stop", "0.")]
        ),
    ]  # fmt: skip

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "settings--group",
        "settings--name",
        "settings--edited",
        "settings--value",
        "settings--hint",
        "settings--error",
        "settings--cursor",
    }

    DEFAULT_CSS = """
    SettingsList {
        height: 1fr;
        overflow-x: hidden;
        scrollbar-size-vertical: 1;
        .settings--group { color: $primary; text-style: bold; }
        .settings--name { color: $quiet; }
        .settings--edited { color: $foreground; text-style: bold; }
        .settings--value { background: $panel; }
        .settings--hint { color: $quiet; }
        .settings--error { color: $error; }
        .settings--cursor { background: $panel; }
        &:focus .settings--cursor {
            background: $chosen-background; color: $chosen; text-style: bold;
        }
    }
    """

    cursor: reactive[int] = reactive(0, repaint=False)
    """Index of the field under the cursor."""

    @dataclass
    class Edited(Message):
        """A value was changed."""

        key: str
        text: str

    @dataclass
    class Moved(Message):
        """The cursor is on another field."""

        field: Field

    def __init__(
        self, fields: Mapping[str, Field], open_editor: Callable[[str | None], None]
    ) -> None:
        """`open_editor` is called at once, not told later: the next key already goes to it.

        It gets what was typed already, or None to begin with the present value.
        """
        super().__init__()
        self._open_editor = open_editor
        self._all = list(fields.values())
        self._fields = self._all
        self._rows = _lay_out(self._fields)
        self._texts: Mapping[str, str] = {}
        self._preset: Mapping[str, str] = {}
        self._edited: Set[str] = frozenset()
        self._errors: Mapping[str, str] = {}
        self.name_width = max(len(label(field)) for field in self._fields) + 1

    @property
    def field(self) -> Field:
        """The field under the cursor."""
        return self._fields[self.cursor]

    @property
    def keys(self) -> list[str]:
        """The fields that are listed, by their keys."""
        return [field.key for field in self._fields]

    def list_only(self, keys: Collection[str] | None) -> None:
        """List some fields, or all; the cursor stays on its field if that is still there."""
        fields = [field for field in self._all if keys is None or field.key in keys] or self._all
        if fields == self._fields:
            return
        here = self.field
        self._fields, self._rows = fields, _lay_out(fields)
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._rows))
        self.scroll_to(y=0, animate=False)
        self.set_reactive(SettingsList.cursor, fields.index(here) if here in fields else 0)
        self.watch_cursor()
        # Only then is it known how far a longer list can be scrolled.
        self.call_after_refresh(self._follow)

    @property
    def cursor_row(self) -> int:
        """The row of the cursor, counted from the first one on screen."""
        return self._rows.index(self.field) - self.scroll_offset.y

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """Return the height of all rows, for a list that is as high as it is long."""
        return len(self._rows)

    def show(
        self,
        texts: Mapping[str, str],
        edited: Set[str],
        errors: Mapping[str, str],
        preset: Mapping[str, str] | None = None,
    ) -> None:
        """Show other values; `preset` has those that the edited ones stand in place of."""
        new = (texts, edited, errors, preset or {})
        if new != (self._texts, self._edited, self._errors, self._preset):
            self._texts, self._edited, self._errors, self._preset = new
            self.refresh()

    def go_to(self, key: str) -> None:
        """Put the cursor on a field."""
        for index, field in enumerate(self._fields):
            if field.key == key:
                self.cursor = index

    def on_resize(self, _event: Resize) -> None:
        """The rows fill the width, and the cursor stays in view."""
        self.virtual_size = Size(self.scrollable_content_region.width, len(self._rows))
        self.call_after_refresh(self._follow)

    def watch_cursor(self) -> None:
        """Follow the cursor and say where it is."""
        self._follow()
        self.refresh()
        self.post_message(self.Moved(self.field))

    def _follow(self) -> None:
        row = self._rows.index(self.field)
        height = self.scrollable_content_region.height
        # With the first field of a group its title comes into view.
        top = row - 1 if row and isinstance(self._rows[row - 1], str) else row
        if top < self.scroll_offset.y:
            self.scroll_to(y=top, animate=False)
        elif height and row >= self.scroll_offset.y + height:
            self.scroll_to(y=row - height + 1, animate=False)

    def action_move(self, change: int) -> None:
        """Move the cursor."""
        self.cursor = min(len(self._fields) - 1, max(0, self.cursor + change))

    def action_edit(self) -> None:
        """Type over the value under the cursor, or take the next of its choices."""
        if self.field.choices:
            self.action_step(1)
        else:
            self._open_editor(None)

    def action_type(self, text: str) -> None:
        """Begin a new value."""
        if not self.field.choices:
            self._open_editor(text)

    def action_next_choice(self) -> None:
        """Take the next choice."""
        if self.field.choices:
            self.action_step(1)

    def action_reset(self) -> None:
        """Put the preset's value back."""
        key = self.field.key
        if key in self._edited and key in self._preset:
            self.post_message(self.Edited(key, self._preset[key]))

    def action_step(self, direction: int) -> None:
        """Take the next smaller or larger value, or the next choice."""
        key = self.field.key
        text = stepped(self.field, self._texts.get(key, ""), direction)
        if text != self._texts.get(key):
            self.post_message(self.Edited(key, text))

    def render_line(self, y: int) -> Strip:
        """Return one row."""
        width = self.size.width
        index = self.scroll_offset.y + y
        base = self.rich_style
        if index >= len(self._rows) or not self._rows[index]:
            return Strip.blank(width, base)
        row = self._rows[index]
        if isinstance(row, str):
            style = self.get_component_rich_style("settings--group")
            return Strip([Segment(row, style)]).adjust_cell_length(width, base)
        edited, error = row.key in self._edited, self._errors.get(row.key, "")
        component = self.get_component_rich_style
        name = component("settings--edited" if edited else "settings--name")
        value = component("settings--cursor" if row is self.field else "settings--value")
        hint = component("settings--error" if error else "settings--hint")
        text = safe(self._texts.get(row.key, ""), one_line=True)
        shown = f"◂{text:^{VALUE_WIDTH - 2}}▸" if row.choices else " " + text
        mark = "✗" if error else "*" if edited else " "
        space = width - self.name_width - VALUE_WIDTH - 2
        segments = [
            Segment(mark, component("settings--error") if error else name),
            Segment(label(row).ljust(self.name_width), name),
            Segment(set_cell_size(shown, VALUE_WIDTH), value),
            Segment(" " + _shorten(self._hint(row, error, edited, space), space), hint),
        ]
        return Strip(segments).adjust_cell_length(width, base)

    def _hint(self, field: Field, error: str, edited: bool, space: int) -> str:
        """Return what stands behind a value: what is wrong, or the preset's value, or the unit."""
        if error:
            # A syllable tells nothing; the sentence stands below the list in any case.
            return safe(error, one_line=True) if space >= LEAST_ERROR else ""
        if edited:
            if field.key not in self._preset:
                return field.unit if len(field.unit) <= space else ""
            before = safe(self._preset[field.key], one_line=True) or "empty"
            long = f"{field.unit}  preset {before}".strip()
            hints = (long, f"preset {before}", f"({before})")
            return next((hint for hint in hints if len(hint) <= space), "")
        # Half a word tells nothing; the help below the list names the unit as well.
        return field.unit if len(field.unit) <= space else ""


def _shorten(text: str, space: int) -> str:
    return text if len(text) <= space else text[: max(0, space - 1)] + "…"


def label(field: Field) -> str:
    """Return the name of a setting as it is read."""
    return field.name.replace("_", " ")


def _lay_out(fields: list[Field]) -> list[Field | str]:
    """Return fields under the titles of their groups, which are kept apart by an empty row."""
    rows: list[Field | str] = []
    group = ""
    for field in fields:
        own, _, _ = field.key.rpartition(".")
        if own != group:
            rows += ["", own] if rows else [own]
            group = own
        rows.append(field)
    return rows
