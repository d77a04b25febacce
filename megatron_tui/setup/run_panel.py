"""The planned run: its preset, its name, and the command that starts it without a screen."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.widgets import Button, Input

from megatron_model.config.presets import AUTO, PRESETS
from megatron_model.util.text import safe
from megatron_tui.ui.choice import Choice
from megatron_tui.ui.panel import Label, Panel


class RunPanel(Panel):
    """Preset, name and command; changes arrive as `Choice.Changed` and `Input.Changed`."""

    EXPLANATION: ClassVar[str] = (
        "The preset is a named set of settings to start from; left and right step through them, p "
        "lists them with what they cost on this machine. The name is that of the run's folder; an "
        "existing run is never overwritten. The command below starts the same run without a "
        "screen, and y copies it."
    )

    def __init__(self, preset: str) -> None:
        super().__init__("run", id="about")
        self._preset = preset

    def compose(self) -> ComposeResult:
        """Four rows."""
        with Horizontal(classes="row"):
            yield Label("preset", classes="name")
            yield Choice([*PRESETS, AUTO], self._preset, id="preset")
            yield Button("Start", id="start", variant="primary", compact=True)
        yield Label(classes="description")
        with Horizontal(classes="row"):
            yield Label("name", classes="name")
            name = Input(id="name", compact=True, select_on_focus=False)
            name.cursor_blink = False
            yield name
        yield Label(classes="command")

    @property
    def run_name(self) -> str:
        """What is typed."""
        return self.query_one("#name", Input).value.strip()

    def show(self, preset: str, about: str, command: str, name_error: str) -> None:
        """Show the preset, what is said of it, and the command or what is wrong with the name."""
        self.query_one("#preset", Choice).value = preset
        self.query_one(".description", Label).show(about)
        line = self.query_one(".command", Label)
        if name_error:
            line.show(Content.styled(f"✗ {safe(name_error, one_line=True)}", "$error"))
        else:
            line.show(Content.assemble(("$ ", "$primary"), safe(command, one_line=True)))
