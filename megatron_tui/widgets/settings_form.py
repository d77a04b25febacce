"""The form of settings, made from their declarations: the list, an editor over it, and the help."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.widgets import Input

from megatron_model.settings import Field
from megatron_model.text import safe
from megatron_tui.setup_draft import range_text
from megatron_tui.widgets.panel import Panel, Text
from megatron_tui.widgets.settings_list import VALUE_WIDTH, SettingsList

DIGITS = "0123456789"


class SettingsForm(Panel):
    """Values are shown by `show`; `SettingsList.Edited` says what a person made of them.

    The keys have priority: they act before the next key is handed out, so that a value typed fast
    or pasted arrives whole.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "edit", "Edit", tooltip="Type a value", id="settings.edit", priority=True),
        *(
            Binding(key, f"type('{text}')", show=False, priority=True)
            for key, text in [*zip(DIGITS, DIGITS, strict=True), ("full_stop", "0.")]
        ),
        Binding("enter", "leave(0)", show=False, priority=True),
        Binding("down,tab", "leave(1)", show=False, priority=True),
        Binding("up,shift+tab", "leave(-1)", show=False, priority=True),
        Binding(
            "escape", "revert", "Revert", tooltip="Forget it", id="settings.revert", priority=True
        ),
    ]

    DEFAULT_CSS = """
    SettingsForm {
        layers: base editor;
        #editor { layer: editor; display: none; position: absolute; }
        .about { height: 2; color: $quiet; }
    }
    """

    def __init__(self, title: str, fields: Mapping[str, Field], id: str | None = None) -> None:
        super().__init__(title, id=id)
        self._fields = fields
        self._texts: Mapping[str, str] = {}
        self._errors: Mapping[str, str] = {}
        self._before = ""

    def compose(self) -> ComposeResult:
        """List over help; the editor lies over the list while something is typed."""
        yield SettingsList(self._fields)
        yield Text(classes="about")
        editor = Input(compact=True, select_on_focus=False, id="editor")
        editor.cursor_blink = False
        yield editor

    def show(self, texts: Mapping[str, str], edited: Set[str], errors: Mapping[str, str]) -> None:
        """Fill in the rows."""
        self._texts, self._errors = texts, errors
        self.query_one(SettingsList).show(texts, edited, errors)
        self._show_help()

    def focus_error(self) -> None:
        """Put the cursor on the first row that is wrong."""
        settings = self.query_one(SettingsList)
        for key in self._fields:
            if key in self._errors:
                settings.go_to(key)
                settings.focus()
                return

    @on(SettingsList.Moved)
    def _show_help(self) -> None:
        about = self.query_one(".about", Text)
        found = self.query_one(SettingsList).field
        error = self._errors.get(found.key, "")
        if error:
            about.show(Content.styled(safe(error, one_line=True), "$error"))
            return
        scope = "" if found.choices else range_text(found)
        about.show(Content.assemble(found.description, (f"  {scope}" if scope else "", "$primary")))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Some keys belong to the list, some to the editor over it, and none to other widgets."""
        if action in ("edit", "type"):
            return self.query_one(SettingsList).has_focus
        if action in ("leave", "revert"):
            return self._editing
        return True

    def action_edit(self) -> None:
        """Type over the value under the cursor, or take the next of its choices."""
        settings = self.query_one(SettingsList)
        if settings.field.choices:
            settings.action_step(1)
        else:
            self._open_editor(self._texts.get(settings.field.key, ""))

    def action_type(self, text: str) -> None:
        """Begin a new value."""
        if not self.query_one(SettingsList).field.choices:
            self._open_editor(text)

    def action_leave(self, change: int) -> None:
        """Keep what was typed; go to another row."""
        # Taken from the editor: the message of the last key may still be under way.
        self._typed(self.query_one("#editor", Input).value)
        self._close_editor(change)

    def _close_editor(self, change: int = 0) -> None:
        settings = self.query_one(SettingsList)
        # First the focus: Textual looks for a place of its own for that of a widget that is hidden.
        self.screen.set_focus(settings)
        self.query_one("#editor").display = False
        if change:
            settings.action_move(change)

    def action_revert(self) -> None:
        """Forget what was typed."""
        self._typed(self._before)
        self._close_editor()

    @property
    def _editing(self) -> bool:
        return bool(self.query_one("#editor").display)

    def _open_editor(self, text: str) -> None:
        settings, editor = self.query_one(SettingsList), self.query_one("#editor", Input)
        self._before = self._texts.get(settings.field.key, "")
        editor.display = True  # at once: what is not displayed cannot take the focus
        editor.styles.offset = (settings.name_width, settings.cursor_row)
        editor.styles.width = VALUE_WIDTH
        with editor.prevent(Input.Changed):
            editor.value = text
        editor.cursor_position = len(text)
        self.screen.set_focus(editor)
        self._typed(text)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        event.stop()
        if self._editing:
            self._typed(event.value)

    @on(Input.Blurred)
    def _blurred(self) -> None:
        editor = self.query_one("#editor")
        if not editor.has_focus:
            editor.display = False

    def _typed(self, text: str) -> None:
        key = self.query_one(SettingsList).field.key
        self.post_message(SettingsList.Edited(key, text))
