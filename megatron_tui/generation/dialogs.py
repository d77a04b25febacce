"""The dialogs of the Generation screen: earlier prompts, a text to be read, one character."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input, OptionList, TextArea
from textual.widgets.option_list import Option

from megatron_model.util.text import safe
from megatron_tui.generation.characters import character_name
from megatron_tui.generation.prompt_history import PromptHistory
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen, Options
from megatron_tui.ui.panel import Label


class SearchInput(Input):
    """Words to search for; enter acts on all that was typed before it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.take", "Take", tooltip="Take the prompt", id="history.take"),
    ]


class HistoryScreen(ModalScreen[str | None]):
    """Words narrow the list; enter takes a prompt, escape none."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority: an Input would take the arrows for itself.
        Binding("down,ctrl+n", "move(1)", "Older", tooltip="An older prompt", id="history.older",
                priority=True),
        Binding("up,ctrl+r", "move(-1)", "Newer", tooltip="A newer prompt", id="history.newer",
                priority=True),
        Binding("escape", "cancel", "Cancel", tooltip="Take none", id="history.cancel",
                priority=True),
    ]  # fmt: skip

    def __init__(self, history: PromptHistory) -> None:
        super().__init__()
        self._history = history
        self.found = history.search("")

    def compose(self) -> ComposeResult:
        """What is searched for, what was found, the whole prompt under the cursor, keys."""
        with Vertical(classes="dialog"):
            yield Label(Content.styled("Earlier prompts", "bold"))
            yield SearchInput(placeholder="words that are in it", compact=True)
            yield Options(markup=False)
            yield Label(classes="whole")
            yield KeyHints()

    def on_mount(self) -> None:
        """Show all of them."""
        self.query_one(OptionList).can_focus = False
        self._show()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        self.found = self._history.search(event.value)
        self._show()

    def _show(self) -> None:
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(Option(safe(one, one_line=True) or "↵") for one in self.found)
        options.highlighted = 0 if self.found else None
        self._show_whole()

    @on(OptionList.OptionHighlighted)
    def _show_whole(self) -> None:
        index = self.query_one(OptionList).highlighted
        whole = self.query_one(".whole", Label)
        if index is None or index >= len(self.found):
            whole.show("No prompt has all these words." if not self.found else "")
        else:
            whole.show(safe(self.found[index][:600]))

    @on(OptionList.OptionSelected)
    def _clicked(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self.found[event.option_index])

    def action_move(self, change: int) -> None:
        """Go to another prompt."""
        options = self.query_one(OptionList)
        if self.found:
            options.highlighted = max(
                0, min(len(self.found) - 1, (options.highlighted or 0) + change)
            )

    def action_take(self) -> None:
        """Take the prompt under the cursor."""
        # The message of the last letter may still be under way.
        found = self._history.search(self.query_one(Input).value)
        index = self.query_one(OptionList).highlighted if found == self.found else 0
        self.dismiss(found[index] if index is not None and found else None)

    def action_cancel(self) -> None:
        """Take none."""
        self.dismiss(None)


class AskText(ModalScreen[str | None]):
    """ctrl+s takes the text, escape leaves it."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "TextArea"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+s", "take", "Take", tooltip="Take the text", id="asktext.take",
                priority=True),
        Binding("escape", "cancel", "Cancel", tooltip="Take none", id="asktext.cancel",
                priority=True),
    ]  # fmt: skip

    def __init__(self, title: str, text: str = "") -> None:
        super().__init__()
        self._title, self._text = title, text

    def compose(self) -> ComposeResult:
        """Title, text, keys."""
        with Vertical(classes="dialog"):
            yield Label(Content.styled(safe(self._title, one_line=True), "bold"))
            area = TextArea(self._text, compact=True, soft_wrap=True, show_line_numbers=False)
            area.cursor_blink = False
            yield area
            yield KeyHints()

    def action_take(self) -> None:
        """Close with the text."""
        self.dismiss(self.query_one(TextArea).text)

    def action_cancel(self) -> None:
        """Close without."""
        self.dismiss(None)


class CharacterInput(Input):
    """Takes a single character; enter, which no field can hold, stands for the end of a line."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.line_end", "Line end", tooltip="Put the end of a line there",
                id="character.line_end"),
    ]  # fmt: skip


class AskCharacter(ModalScreen[str | None]):
    """The first character typed is the answer, if the model knows it."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", tooltip="Leave the character", id="character.cancel",
                priority=True),
    ]  # fmt: skip

    def __init__(self, title: str, vocabulary: str) -> None:
        super().__init__()
        self._title, self._vocabulary = title, vocabulary

    def compose(self) -> ComposeResult:
        """Title, field, what is wrong, keys."""
        with Vertical(classes="dialog"):
            yield Label(Content.styled(safe(self._title, one_line=True), "bold"))
            yield CharacterInput(compact=True)
            yield Label(classes="whole")
            yield KeyHints()

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        if event.value:
            self._take(event.value[-1])

    def action_line_end(self) -> None:
        """Take the end of a line."""
        self._take("\n")

    def _take(self, character: str) -> None:
        if character in self._vocabulary:
            self.dismiss(character)
            return
        name = character_name(character)
        self.query_one(".whole", Label).show(f"The model has never seen {name}; type another one.")

    def action_cancel(self) -> None:
        """Leave it as it is."""
        self.dismiss(None)
