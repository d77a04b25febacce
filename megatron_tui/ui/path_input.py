"""A field for a path, which tab completes as a shell does."""

from __future__ import annotations

import asyncio
import os
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.suggester import Suggester
from textual.widgets import Input

from megatron_model.util.text import safe
from megatron_model.util.user_folders import expanded


class PathSuggester(Suggester):
    """Completes the path that is being typed with the first name that fits."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Return the whole path, or None."""
        return await asyncio.to_thread(complete_path, value)


def complete_path(value: str) -> str | None:
    """Return `value` completed by the first entry of its folder that fits; folders get a slash."""
    folder, slash, beginning = value.rpartition("/")
    if not value:
        return None
    try:
        with os.scandir(expanded((folder + slash) or ".")) as entries:
            fitting = sorted(
                (entry.name, entry.is_dir())
                for entry in entries
                if entry.name.startswith(beginning)
                # What cannot be shown as it is cannot be put into a field either.
                and safe(entry.name, one_line=True) == entry.name
                and entry.name.startswith(".") <= beginning.startswith(".")
            )
    except (OSError, ValueError):
        return None
    if not fitting:
        return None
    name, is_folder = fitting[0]
    return f"{folder}{slash}{name}{'/' if is_folder else ''}"


class PathInput(Input):
    """A path that tab completes, as in a shell; without a completion tab goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "tab", "complete", "Complete", tooltip="Complete the path", id="path.complete",
            priority=True,
        ),
        Binding("down", "leave", "List", show=False, tooltip="Go to the list", id="path.list"),
        Binding("escape", "clear", "Clear", show=False, tooltip="Clear the path", id="path.clear"),
    ]  # fmt: skip

    def __init__(self, value: str = "", *, id: str, placeholder: str = "") -> None:
        super().__init__(
            value, placeholder=placeholder, compact=True, suggester=PathSuggester(), id=id
        )
        self.cursor_blink = False

    def action_complete(self) -> None:
        """Complete the path; looked up again, as keys may be ahead of the suggestion."""
        found = complete_path(self.value)
        if found is None or found == self.value:
            self.screen.focus_next()
        else:
            self.value = found
            self.cursor_position = len(found)

    def action_leave(self) -> None:
        """Go to what comes next."""
        self.screen.focus_next()

    def action_clear(self) -> None:
        """Forget what was typed, and go on."""
        self.value = ""
        self.screen.focus_next()
