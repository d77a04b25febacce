"""What stands in place of the workbench in a terminal too small for it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.geometry import Size

from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label

MINIMUM = Size(80, 24)


def fits(size: Size) -> bool:
    """Whether the screens can be laid out in `size`."""
    return size.width >= MINIMUM.width and size.height >= MINIMUM.height


class TooSmall(ModalScreen[None]):
    """One sentence with both sizes; goes away when the terminal grows."""

    CSS_PATH = "too_small.tcss"

    def compose(self) -> ComposeResult:
        """One sentence."""
        yield Label()

    def show(self, size: Size) -> None:
        """Name the sizes."""
        self.query_one(Label).show(
            f"This terminal is {size.width} x {size.height}; "
            f"the workbench needs {MINIMUM.width} x {MINIMUM.height}. "
            "Enlarge it and everything comes back; training goes on meanwhile. ctrl+q quits.",
            layout=True,
        )

    def on_mount(self) -> None:
        """Name the present size."""
        self.show(self.app.size)
