"""Small dialogs: choose one of a list, or type a path."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_model.util.user_folders import expanded
from megatron_tui.terminal.keyboard import answers, irreversible
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen, Options
from megatron_tui.ui.panel import Label
from megatron_tui.ui.path_input import PathInput


@dataclass(frozen=True)
class Entry:
    """One line to choose: its value, its name, what is said beside it, and below the list."""

    value: str
    name: str
    detail: str = ""
    more: str = ""


class PickList(Options):
    """The entries; enter is bound here, so that it acts after the keys typed before it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.take", "Take", tooltip="Choose the entry", id="pick.take"),
    ]


class AskedPath(PathInput):
    """The path; enter acts on all that was typed before it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "screen.take", "Do it", tooltip="Take the path", id="ask.take"),
    ]


class Pick(ModalScreen[str | None]):
    """Choose one of a few entries; escape chooses none."""

    CSS_PATH = "pick.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j", "cursor(1)", "Down", show=False, tooltip="Entry below", id="pick.down"),
        Binding("k", "cursor(-1)", "Up", show=False, tooltip="Entry above", id="pick.up"),
        Binding("escape,q", "cancel", "Cancel", tooltip="Choose nothing", id="pick.cancel"),
    ]

    def __init__(
        self, title: str, entries: Sequence[Entry], chosen: str = "", verb: str = "Take"
    ) -> None:
        super().__init__()
        self._title = title
        self._entries = list(entries)
        self._chosen = chosen
        self._verb = verb

    def compose(self) -> ComposeResult:
        """Title, list, what the entry under the cursor is, keys."""
        width = max((len(safe(entry.name, one_line=True)) for entry in self._entries), default=0)
        with Vertical(classes="pick"):
            yield Label(Content.styled(safe(self._title, one_line=True), "bold"))
            yield PickList(*(self._option(entry, width) for entry in self._entries), markup=False)
            yield Label(classes="more")
            yield KeyHints({"pick.take": self._verb})

    def on_mount(self) -> None:
        """Begin at what is chosen now."""
        options = self.query_one(OptionList)
        values = [entry.value for entry in self._entries]
        if values:
            options.highlighted = values.index(self._chosen) if self._chosen in values else 0
        options.focus()

    @property
    def entry(self) -> Entry | None:
        """The entry under the cursor."""
        index = self.query_one(OptionList).highlighted
        return self._entries[index] if index is not None else None

    def set_entries(self, entries: Sequence[Entry]) -> None:
        """Show other entries: what was looked up in the background."""
        if not self.query(OptionList):
            self._entries = list(entries)  # it is not composed yet, and will list these
            return
        present = self.entry.value if self.entry is not None else self._chosen
        self._entries = list(entries)
        width = max((len(safe(entry.name, one_line=True)) for entry in entries), default=0)
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(self._option(entry, width) for entry in entries)
        values = [entry.value for entry in entries]
        if values:
            options.highlighted = values.index(present) if present in values else 0

    def action_cursor(self, change: int) -> None:
        """Go up or down, as the arrows do."""
        options = self.query_one(OptionList)
        options.action_cursor_down() if change > 0 else options.action_cursor_up()

    def action_take(self) -> None:
        """Choose the entry under the cursor."""
        if self.entry is not None:
            self.dismiss(self.entry.value)

    def action_cancel(self) -> None:
        """Choose nothing."""
        self.dismiss(None)

    @on(OptionList.OptionHighlighted)
    def _moved(self) -> None:
        self.query_one(".more", Label).show(safe(self.entry.more) if self.entry else "")

    @on(OptionList.OptionSelected)
    def _take(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._entries[event.option_index].value)

    def _option(self, entry: Entry, width: int) -> Option:
        mark = "● " if entry.value == self._chosen else "  "
        name = safe(entry.name, one_line=True).ljust(width)
        detail = safe(entry.detail, one_line=False).replace("\n", " ")
        return Option(Content.assemble((mark, "$primary"), (name, "bold"), f"  {detail}"))


class RunPick(Pick):
    """Choose a recorded run: enter takes its settings, r goes on with it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "r", "resume", "Train it further", tooltip="Train that run further", id="pick.resume"
        ),
    ]
    RESUME = "resume:"
    """Beginning of the answer that asks for a run to be resumed."""

    def __init__(self, title: str, entries: Sequence[Entry]) -> None:
        super().__init__(title, entries, verb="Take its settings")

    @irreversible
    def action_resume(self) -> None:
        """Choose to go on with the run under the cursor."""
        if self.entry is not None:
            self.dismiss(self.RESUME + self.entry.value)


class AskPath(ModalScreen[str | None]):
    """Type a path; what is wrong with it is said at once, and enter waits until nothing is."""

    CSS_PATH = "pick.tcss"
    AUTO_FOCUS = "#asked"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "cancel", "Cancel", tooltip="Do nothing", id="ask.cancel", priority=True),
    ]

    def __init__(self, title: str, value: str, take: Callable[[str, bool], str]) -> None:
        """`take` does it and returns why not; its flag says that enter was pressed again."""
        super().__init__()
        self._title = title
        self._value = value
        self._take = take
        self._refused = ""

    def compose(self) -> ComposeResult:
        """Title, path, what is wrong, keys."""
        with Vertical(classes="pick"):
            yield Label(Content.styled(self._title, "bold"))
            yield AskedPath(self._value, id="asked")
            yield Label(classes="more")
            yield KeyHints()

    def action_cancel(self) -> None:
        """Do nothing."""
        self.dismiss(None)

    @answers
    async def action_take(self) -> None:
        """Do it, or say why not; a second time does it all the same, where that can be."""
        typed = self.query_one(PathInput).value
        if typed == self._refused:
            await self.run_action("insist")
        else:
            self._try(typed, again=False)

    @irreversible
    def action_insist(self) -> None:
        """Do what was refused."""
        self._try(self.query_one(PathInput).value, again=True)

    def _try(self, typed: str, *, again: bool) -> None:
        problem = self._take(typed, again)
        if not problem:
            self.dismiss(typed)
            return
        self._refused = typed
        self.query_one(".more", Label).show(
            Content.styled("✗ " + safe(problem, one_line=True), "$error"), layout=True
        )


def write_where(typed: str, again: bool, write: Callable[[Path], object]) -> str:
    """Write a file that a person named; return why not, and once also where there is one already.

    Args:
        typed: its name.
        again: whether enter was pressed once more.
        write: does it; what it raises as `RequestError` is the reason.
    """
    path = expanded(typed.strip())
    if not typed.strip() or os.path.isdir(path):
        return "Give the name of a file."
    if os.path.lexists(path) and not again:
        return f"{path} already exists; press enter again to overwrite it, or type another name."
    try:
        write(path)
    except RequestError as error:
        return str(error)
    return ""
