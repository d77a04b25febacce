"""The help: what the keys of the screen beneath do, read from its bindings."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen, Screen

from megatron_tui.widgets.key_bar import shown_key
from megatron_tui.widgets.panel import Text


class HelpScreen(ModalScreen[None]):
    """A list of keys."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q", "close", "Close", tooltip="Close", id="help.close"),
    ]

    def __init__(self, title: str, beneath: Screen[Any]) -> None:
        super().__init__()
        self._title = title
        self._beneath = beneath

    def compose(self) -> ComposeResult:
        """Title and list."""
        with Vertical(classes="help"):
            yield Text(Content.styled(f"Keys of the {self._title} screen", "bold"))
            with VerticalScroll():
                yield Text(self._keys())
            yield Text(Content.assemble(("esc", "bold $primary"), " closes"), classes="hint")

    def action_close(self) -> None:
        """Close the help."""
        self.dismiss()

    def _keys(self) -> Content:
        own: dict[str, tuple[list[str], str]] = {}
        everywhere: dict[str, tuple[list[str], str]] = {}
        for node, binding, _enabled, tooltip in self._beneath.active_bindings.values():
            if not binding.id:
                continue
            group = everywhere if node is self.app else own
            keys, _ = group.setdefault(binding.id, ([], tooltip or binding.description))
            key = shown_key(binding, self.app.get_key_display(binding))
            if key not in keys:
                keys.append(key)
        declared = [getattr(binding, "id", "") for binding in self.app.BINDINGS]
        everywhere = dict(sorted(everywhere.items(), key=lambda item: declared.index(item[0])))
        lines = [_line(keys, words) for keys, words in own.values()]
        lines += [Content(""), Content.styled("Everywhere", "bold")]
        lines += [_line(keys, words) for keys, words in everywhere.values()]
        return Content("\n").join(lines)


def _line(keys: list[str], words: str) -> Content:
    return Content.assemble((" ".join(keys).ljust(10), "bold $primary"), " ", words)
