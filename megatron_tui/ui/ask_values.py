"""A small form over a screen: a few values with their names, checked as they are typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Input

from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_tui.terminal.keyboard import answers
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label

Check: TypeAlias = Callable[[Mapping[str, str]], object]
"""Raises `RequestError` when something cannot be; the error names the key."""


@dataclass(frozen=True)
class Question:
    """One value that is asked for."""

    key: str
    label: str
    text: str
    """What stands there at first."""


class ValueInput(Input):
    """One value; enter acts on all that was typed before it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.take", "Take", tooltip="Take the values", id="values.take"),
    ]


class AskValues(ModalScreen[dict[str, str]]):
    """Ask for some values; enter takes them when they can be, escape leaves all as it is."""

    CSS_PATH = ["dialogs.tcss", "ask_values.tcss"]
    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Leave", tooltip="Change nothing", id="values.leave"),
        # Priority: what is typed next is for the other field.
        Binding("up", "app.focus_previous", "Field", tooltip="Field above", id="values.up",
                priority=True),
        Binding("down", "app.focus_next", "Field", tooltip="Field below", id="values.down",
                priority=True),
    ]  # fmt: skip

    def __init__(
        self, title: str, text: str, questions: Sequence[Question], check: Check, *, yes: str
    ) -> None:
        super().__init__()
        self._title, self._text, self._yes = title, text, yes
        self._questions = questions
        self._check = check

    def compose(self) -> ComposeResult:
        """Title, explanation, a row for each value, what is wrong."""
        width = max(len(question.label) for question in self._questions) + 2
        with Vertical(classes="dialog"):
            yield Label(Content.styled(safe(self._title, one_line=True), "bold"))
            yield Label(safe(self._text), classes="explanation")
            with VerticalScroll(can_focus=False, classes="values"):
                for number, question in enumerate(self._questions):
                    with Horizontal(classes="value"):
                        label = Label(question.label, classes="label")
                        label.styles.width = width
                        yield label
                        yield ValueInput(
                            safe(question.text, one_line=True), compact=True, id=f"value-{number}"
                        )
            yield Label(classes="error")
            yield KeyHints({"values.take": self._yes})

    @property
    def values(self) -> dict[str, str]:
        """What stands in the form."""
        return {
            question.key: self.query_one(f"#value-{number}", Input).value.strip()
            for number, question in enumerate(self._questions)
        }

    @on(Input.Changed)
    def _typed(self) -> None:
        self._refused()

    @answers
    def action_take(self) -> None:
        """Close with the values, if they can be."""
        if not self._refused():
            self.dismiss(self.values)

    def action_leave(self) -> None:
        """Close without."""
        self.dismiss(None)

    def _refused(self) -> bool:
        error = ""
        try:
            self._check(self.values)
        except RequestError as refusal:
            error = str(refusal)
        self.query_one(".error", Label).show(
            Content.styled(safe(error, one_line=True), "$error"), layout=True
        )
        return bool(error)
