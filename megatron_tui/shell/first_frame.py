"""What is on screen before anything else is ready: header, empty frames, keys.

Setting up the first screen takes longer than drawing this one. Keys typed meanwhile wait for the
screen that comes.
"""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical

from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.ui.panel import Panel


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
