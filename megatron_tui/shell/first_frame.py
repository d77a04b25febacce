"""What is on screen before anything else is ready: header, empty frames, keys.

Setting up the first screen takes longer than drawing this one. Keys typed meanwhile are kept and
handed on to the screen that comes.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.events import Key

from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.widgets.panel import Panel

MOST_KEYS = 200


class FirstFrame(WorkbenchScreen):
    """The frames of the Setup screen, with nothing in them."""

    MODE = "setup"
    # The frames of setup.tcss, without the cost of reading the whole of it.
    DEFAULT_CSS = """
    FirstFrame {
        #left { width: 46; }
        #corpus { height: 14; }
        #text { height: 1fr; }
        #preflight { height: 12; }
        #about { height: 6; }
        &.-high #about { height: 8; }
        #settings { height: 1fr; }
        &.-widest #left { width: 60; }
        &.-narrow #left { width: 39; }
        &.-narrow, &.-low { #corpus { height: 1fr; } #text { display: none; } }
    }
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)  # type: ignore[arg-type]
        self.typed: list[Key] = []

    def compose_body(self) -> ComposeResult:
        """Return the frames."""
        with Horizontal():
            yield Vertical(
                Panel("corpus", id="corpus"),
                Panel("text", id="text"),
                Panel("preflight", id="preflight"),
                id="left",
            )
            yield Vertical(Panel("run", id="about"), Panel("settings", id="settings"))

    def on_key(self, event: Key) -> None:
        """Keep what is typed ahead."""
        event.stop()
        event.prevent_default()
        if len(self.typed) < MOST_KEYS:
            self.typed.append(event)
