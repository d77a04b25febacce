"""The help: what the panel with the focus is for, and every key that acts now."""

from __future__ import annotations

from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.dom import DOMNode
from textual.screen import Screen

from megatron_tui.ui.key_bar import shown_key
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label, Panel

KEYS_WIDTH = 12


class HelpScreen(ModalScreen[None]):
    """An explanation and lists of keys."""

    CSS_PATH = "help.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,question_mark,f1,q", "close", "Close", tooltip="Close", id="help.close"),
        Binding("down,j", "scroll(1)", "Scroll", tooltip="Scroll down", id="help.down"),
        Binding("up,k", "scroll(-1)", "Scroll", tooltip="Scroll up", id="help.up"),
        Binding(
            "pagedown,ctrl+d,space", "scroll(10)", "Page down", show=False, tooltip="Page down",
            id="help.page_down",
        ),
        Binding(
            "pageup,ctrl+u", "scroll(-10)", "Page up", show=False, tooltip="Page up",
            id="help.page_up",
        ),
    ]  # fmt: skip

    def __init__(self, title: str, beneath: Screen[Any]) -> None:
        super().__init__()
        self._title = title
        self._beneath = beneath

    def compose(self) -> ComposeResult:
        """Panel, screen, everywhere."""
        with Vertical(classes="help"):
            with VerticalScroll(can_focus=False):
                yield Label(self._everything())
            yield KeyHints(note="keys.toml changes keys")

    def action_close(self) -> None:
        """Close the help."""
        self.dismiss()

    def action_scroll(self, lines: int) -> None:
        """Scroll."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def _everything(self) -> Content:
        panel = panel_of(self._beneath.focused)
        of_panel: dict[str, tuple[list[str], str]] = {}
        of_screen: dict[str, tuple[list[str], str]] = {}
        everywhere: dict[str, tuple[list[str], str]] = {}
        for node, binding, _enabled, tooltip in self._beneath.active_bindings.values():
            if not binding.id:
                continue
            group = of_panel
            if node is self.app:
                group = everywhere
            elif node is self._beneath:
                group = of_screen
            keys, _ = group.setdefault(binding.id, ([], tooltip or binding.description))
            key = shown_key(binding, self.app.get_key_display(binding))
            if key not in keys:
                keys.append(key)
        declared = [getattr(binding, "id", "") for binding in self.app.BINDINGS]
        everywhere = dict(sorted(everywhere.items(), key=lambda item: declared.index(item[0])))
        lines: list[Content] = []
        if panel is not None and (panel.EXPLANATION or of_panel):
            lines.append(Content.styled(f"{panel.title} panel", "bold"))
            if panel.EXPLANATION:
                lines.append(Content.styled(panel.EXPLANATION, "$quiet"))
        elif of_panel:
            lines.append(Content.styled("Here", "bold"))
        lines += [_line(keys, words) for keys, words in of_panel.values()]
        if lines:
            lines.append(Content(""))
        lines.append(Content.styled(f"{self._title} screen", "bold"))
        lines += [_line(keys, words) for keys, words in of_screen.values()]
        lines += [Content(""), Content.styled("Everywhere", "bold")]
        lines += [_line(keys, words) for keys, words in everywhere.values()]
        return Content("\n").join(lines)


def panel_of(node: DOMNode | None) -> Panel | None:
    """Return the panel that a widget is in."""
    while node is not None and not isinstance(node, Panel):
        node = node.parent
    return node


def _line(keys: list[str], words: str) -> Content:
    return Content.assemble((" ".join(keys).ljust(KEYS_WIDTH), "bold $primary"), " ", words)
