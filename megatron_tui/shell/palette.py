"""The command palette: every binding of the screen beneath, so that a key is declared only once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from textual.app import App, SystemCommand
from textual.screen import Screen

from megatron_tui.ui.key_bar import shown_key


def screen_commands(app: App[Any], screen: Screen[Any]) -> Iterator[SystemCommand]:
    """Yield what the keys of `screen` do, with the key in the explanation."""
    seen = set()
    for node, binding, enabled, tooltip in screen.active_bindings.values():
        if not binding.id or not enabled or binding.action in seen:
            continue
        seen.add(binding.action)
        key = shown_key(binding, app.get_key_display(binding))
        run: Callable[[], Any] = partial(app.run_action, binding.action, node)
        yield SystemCommand(tooltip or binding.description, f"key: {key}", run)
