"""Dialogs that close once, and lists that do not break.

Textual's own pop whatever screen is in front when they are dismissed a second time, and two quick
escapes or enters do that: the message of the second is on its way when the first closes the dialog.
"""

from __future__ import annotations

import contextlib
from typing import ClassVar

from textual import screen
from textual.await_complete import AwaitComplete
from textual.binding import Binding, BindingType
from textual.command import CommandList, CommandPalette
from textual.screen import ScreenResultType
from textual.widgets import OptionList

from megatron_tui.terminal.keyboard import Keyboard


class ModalScreen(screen.ModalScreen[ScreenResultType]):
    """A dialog that answers once."""

    opened_in: int | None = None
    """The burst of keys that opened it, as the keyboard counts them."""

    def on_mount(self) -> None:
        """Remember what opened it: what a paste asks, it must not answer."""
        keyboard: Keyboard | None = getattr(self.app, "keyboard", None)
        self.opened_in = keyboard.burst if keyboard is not None else None

    def dismiss(self, result: ScreenResultType | None = None) -> AwaitComplete:
        """Close, if that has not happened yet."""
        return super().dismiss(result) if self.is_active else _nothing()


def _nothing() -> AwaitComplete:
    done: AwaitComplete = AwaitComplete.nothing()  # type: ignore[no-untyped-call]
    return done


class Options(OptionList):
    """A list that can be paged before it was laid out."""

    def action_page_down(self) -> None:
        """Go a page down."""
        # Textual looks up a row that is known only after the first layout.
        with contextlib.suppress(KeyError):
            super().action_page_down()  # type: ignore[no-untyped-call]

    def action_page_up(self) -> None:
        """Go a page up."""
        with contextlib.suppress(KeyError):
            super().action_page_up()  # type: ignore[no-untyped-call]


class Palette(CommandPalette):
    """The command palette, which closes once too."""

    BINDINGS: ClassVar[list[BindingType]] = [
        # In place of Textual's, which fail before the list was laid out.
        Binding("pagedown", "page('page_down')", show=False),
        Binding("pageup", "page('page_up')", show=False),
    ]

    def dismiss(self, result: None = None) -> AwaitComplete:
        """Close, if that has not happened yet."""
        return super().dismiss(result) if self.is_active else _nothing()

    async def action_page(self, action: str) -> None:
        """Go a page up or down the commands."""
        with contextlib.suppress(KeyError):  # as in `Options`
            await self.query_one(CommandList).run_action(action)
