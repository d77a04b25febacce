"""Browse for a corpus: a tree of folders and files."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from rich.text import Text as RichText
from rich.text import TextType
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import DirectoryTree

from megatron_model.util.text import safe
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label


class SafeDirectoryTree(DirectoryTree):
    """A directory tree whose names are text: no markup, no escapes."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "enter",
            "select_cursor",
            "Open or take",
            tooltip="Choose the file, or open the folder",
            id="browser.open",
        ),
    ]

    ICON_NODE = "▸ "
    ICON_NODE_EXPANDED = "▾ "
    ICON_FILE = "  "

    def process_label(self, label: TextType) -> RichText:
        """Take names literally."""
        return RichText(safe(label, one_line=True)) if isinstance(label, str) else label


class FileBrowser(ModalScreen[Path | None]):
    """Enter chooses a file; `f` chooses the folder under the cursor."""

    CSS_PATH = "file_browser.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("f", "folder", "Take folder", tooltip="Choose the folder", id="browser.folder"),
        Binding("backspace", "up", "Up", tooltip="Go to the folder above", id="browser.up"),
        Binding("escape", "cancel", "Cancel", tooltip="Choose nothing", id="browser.cancel"),
    ]

    def __init__(self, start: Path) -> None:
        super().__init__()
        self._start = start

    def compose(self) -> ComposeResult:
        """Folder, tree, keys."""
        with Vertical(classes="browser"):
            yield Label(safe(str(self._start), one_line=True), classes="where")
            yield SafeDirectoryTree(self._start)
            yield KeyHints()

    @on(DirectoryTree.FileSelected)
    def _choose(self, event: DirectoryTree.FileSelected) -> None:
        self.dismiss(event.path)

    def action_folder(self) -> None:
        """Choose the folder under the cursor, or that of the file under it."""
        tree = self.query_one(DirectoryTree)
        node = tree.cursor_node
        path = node.data.path if node is not None and node.data is not None else self._start
        self.dismiss(path if path.is_dir() else path.parent)

    def action_up(self) -> None:
        """Go to the folder above."""
        self._start = self._start.parent
        self.query_one(".where", Label).show(safe(str(self._start), one_line=True))
        self.query_one(DirectoryTree).path = self._start

    def action_cancel(self) -> None:
        """Choose nothing."""
        self.dismiss(None)
