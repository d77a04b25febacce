"""The form of settings, made from their declarations: the list, an editor over it, and the help."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass
from textwrap import wrap
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.widgets import Input

from megatron_model.config.schema import Field
from megatron_model.util.text import safe
from megatron_tui.ui.draft import range_text
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.settings_list import VALUE_WIDTH, SettingsList, label


class ValueEditor(Input):
    """Lies over the value under the cursor while it is typed.

    The keys have priority: they act before the next key is handed out, so that a value typed fast
    or pasted arrives whole.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "leave(0)", "Keep", tooltip="Keep it", id="editor.keep", priority=True),
        Binding(
            "down,tab", "leave(1)", "Next", show=False, tooltip="Keep it, go to the setting below",
            id="editor.next", priority=True,
        ),
        Binding(
            "up,shift+tab", "leave(-1)", "Previous", show=False,
            tooltip="Keep it, go to the setting above", id="editor.previous", priority=True,
        ),
        Binding(
            "escape", "revert", "Revert", tooltip="Forget what was typed", id="editor.revert",
            priority=True,
        ),
    ]  # fmt: skip

    def __init__(self, close: Callable[[int, bool], None]) -> None:
        """`close` is called at once with how many rows to go on, and whether to revert."""
        super().__init__(compact=True, select_on_focus=False, id="editor")
        self.cursor_blink = False
        self._close = close

    def action_leave(self, change: int) -> None:
        """Keep what was typed; go to another row."""
        self._close(change, False)

    def action_revert(self) -> None:
        """Forget what was typed."""
        self._close(0, True)


class FindField(Input):
    """What is typed here narrows the list."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter,down", "take", "Take", tooltip="Go to the first one", id="find.take",
            priority=True,
        ),
        Binding(
            "escape", "clear", "Clear", tooltip="List every setting", id="find.clear",
            priority=True,
        ),
    ]  # fmt: skip

    def __init__(self, close: Callable[[], None]) -> None:
        super().__init__(placeholder="find a setting", compact=True, id="find")
        self.cursor_blink = False
        self._close = close

    def action_take(self) -> None:
        """Go to the first of what was found."""
        self._close()

    def action_clear(self) -> None:
        """Go back to where the search began."""
        self.value = ""
        self._close()


class SettingsForm(Panel):
    """Values are shown by `show`; `SettingsList.Edited` says what a person made of them."""

    EXPLANATION: ClassVar[str] = (
        "Every setting of a run. Left and right step the value, enter or a digit types one, space "
        "goes through choices, backspace puts the preset's value back. What differs from the "
        "preset has a star and the preset's value behind it; = lists only those, / finds one."
    )

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "list_all", "All", tooltip="List every setting again", id="settings.all"),
    ]

    DEFAULT_CSS = """
    SettingsForm {
        layers: base editor;
        #editor { layer: editor; display: none; position: absolute; }
        #find { display: none; }
        .about { height: 2; color: $quiet; }
        .about.-error { height: auto; min-height: 2; max-height: 4; }
    }
    """

    @dataclass
    class Paused(Message):
        """A value was typed to its end: what comes next is another change."""

    def __init__(self, title: str, fields: Mapping[str, Field], id: str | None = None) -> None:
        super().__init__(title, id=id)
        self._plain_title = title
        self._fields = fields
        self._texts: Mapping[str, str] = {}
        self._edited: Set[str] = frozenset()
        self._errors: Mapping[str, str] = {}
        self._preset: Mapping[str, str] = {}
        self._before = self._search_from = ""
        self.only_changed = False
        """Whether only what differs from the preset is listed."""

    def compose(self) -> ComposeResult:
        """List over help; the editor lies over the list while something is typed."""
        yield FindField(self._end_search)
        yield SettingsList(self._fields, self._open_editor)
        yield Label(classes="about")
        yield ValueEditor(self._close_editor)

    @property
    def settings(self) -> SettingsList:
        """The list."""
        return self.query_one(SettingsList)

    def show(
        self,
        texts: Mapping[str, str],
        edited: Set[str],
        errors: Mapping[str, str],
        preset: Mapping[str, str] | None = None,
    ) -> None:
        """Fill in the rows."""
        self._texts, self._edited, self._errors = texts, edited, errors
        self._preset = preset or {}
        self.settings.show(texts, edited, errors, preset)
        self._narrow()
        self._show_help()

    def focus_error(self) -> None:
        """Put the cursor on the first row that is wrong."""
        self.list_all()
        for key in self._fields:
            if key in self._errors:
                self.go_to(key)
                return

    def go_to(self, key: str) -> None:
        """Put cursor and focus on a setting."""
        self.settings.go_to(key)
        self.settings.focus()

    def find(self) -> None:
        """Let a name be typed."""
        field = self.query_one(FindField)
        self.only_changed = False
        self._search_from = self.settings.field.key
        field.value = ""
        field.display = True
        field.focus()

    def list_changed(self) -> None:
        """List only what differs from the preset, or everything again."""
        self.only_changed = not self.only_changed and bool(self._edited)
        self._narrow()
        self.settings.focus()

    def list_all(self) -> None:
        """List every setting."""
        self.only_changed = False
        self._close_find()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """What is whole cannot be made whole."""
        if action == "list_all":
            return self.only_changed
        return True

    def action_list_all(self) -> None:
        """List every setting."""
        self.list_all()

    def on_resize(self) -> None:
        """Another width has room for other words."""
        self.call_after_refresh(self._show_help)

    @on(SettingsList.Moved)
    def _show_help(self) -> None:
        about = self.query_one(".about", Label)
        found = self.settings.field
        error = self._errors.get(found.key, "")
        about.set_class(bool(error), "-error")
        if error:
            about.show(Content.styled(f"✗ {safe(error, one_line=True)}", "$error"), layout=True)
            return
        scope = "" if found.choices else range_text(found)
        if found.unit and not scope.endswith(found.unit):
            scope = f"{scope} {found.unit}".strip()
        if found.key in self._edited and found.key in self._preset:
            preset = safe(self._preset[found.key], one_line=True) or "empty"
            scope = f"{scope}  preset {preset}".strip()
        description = shortened_to_rows(found.description, scope, *about.size)
        about.show(Content.assemble(description, (f"  {scope}" if scope else "", "$primary")))

    @on(Input.Changed, "#find")
    def _search(self, event: Input.Changed) -> None:
        event.stop()
        self._narrow()

    def _end_search(self) -> None:
        self._narrow()  # the last key may still be under way
        searched = bool(self.query_one(FindField).value)
        found = self.settings.field.key if searched else self._search_from
        self.screen.set_focus(self.settings)
        self._close_find()
        self.settings.go_to(found)

    def _close_find(self) -> None:
        field = self.query_one(FindField)
        field.display = False
        with field.prevent(Input.Changed):
            field.value = ""
        self._narrow()

    def _narrow(self) -> None:
        """List what was asked for: what differs, what was searched, or everything."""
        words = self.query_one(FindField).value.lower().split()
        keys: list[str] | None = None
        if words:
            keys = find_settings(self._fields, words)
        elif self.only_changed and self._edited:
            keys = [key for key in self._fields if key in self._edited]
        else:
            self.only_changed = False
        self.settings.list_only(keys)
        none = words and not keys
        self.query_one(FindField).set_class(bool(none), "-none")
        self.set_title(
            f"{self._plain_title} that differ" if self.only_changed else self._plain_title
        )
        self.set_subtitle(
            "no setting is called that" if none
            else f"{len(self._edited)} changed" if self._edited else ""
        )  # fmt: skip

    def _open_editor(self, typed: str | None) -> None:
        settings, editor = self.settings, self.query_one(ValueEditor)
        self._before = self._texts.get(settings.field.key, "")
        text = self._before if typed is None else typed
        editor.display = True  # at once: what is not displayed cannot take the focus
        editor.styles.offset = (settings.name_width + 1, settings.cursor_row)
        editor.styles.width = VALUE_WIDTH
        with editor.prevent(Input.Changed):
            editor.value = text
        editor.cursor_position = len(text)
        self.screen.set_focus(editor)
        if typed is not None:
            self._typed(text)

    def _close_editor(self, change: int, revert: bool) -> None:
        # Taken from the editor: the message of the last key may still be under way.
        self._typed(self._before if revert else self.query_one(ValueEditor).value)
        # First the focus: Textual looks for a place of its own for that of a widget that is hidden.
        self.screen.set_focus(self.settings)
        self.query_one(ValueEditor).display = False
        self.post_message(self.Paused())
        if change:
            self.settings.action_move(change)

    @on(Input.Changed, "#editor")
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        if self.query_one(ValueEditor).display:
            self._typed(event.value)

    @on(Input.Blurred, "#editor")
    def _blurred(self) -> None:
        editor = self.query_one(ValueEditor)
        if not editor.has_focus:
            editor.display = False

    def _typed(self, text: str) -> None:
        self.post_message(SettingsList.Edited(self.settings.field.key, text))


def shortened_to_rows(description: str, scope: str, width: int, rows: int) -> str:
    """Return as much of a description as fits with the whole of `scope` behind it."""
    words = description.split()
    kept = description
    while words and width and rows and len(wrap(f"{kept}  {scope}".strip(), width)) > rows:
        words.pop()
        kept = f"{' '.join(words)}…"
    return kept


def find_settings(fields: Mapping[str, Field], words: list[str]) -> list[str]:
    """Return the settings whose names have all the words, or else those whose help has them."""
    by_name = [
        key
        for key, field in fields.items()
        if all(word in f"{key} {label(field)}".lower() for word in words)
    ]
    return by_name or [
        key
        for key, field in fields.items()
        if all(word in f"{key} {field.description}".lower() for word in words)
    ]
