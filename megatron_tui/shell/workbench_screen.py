"""What the four screens have in common: the header, the keys, and being told about the run."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

from textual.app import ComposeResult
from textual.events import ScreenResume
from textual.geometry import Size
from textual.screen import Screen
from textual.widget import Widget

from megatron_tui.services.run_handle import RunHandle
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.header import RunSummary, WorkbenchHeader
from megatron_tui.ui.key_bar import KeyBar


class StyleBasis(NamedTuple):
    """What the styles of a screen rest on."""

    theme: str
    app_focus: bool
    size: Size
    app_classes: frozenset[str]
    focused: Widget | None


class WorkbenchScreen(Screen[None]):
    """One of the four modes; the app calls `show_run` when something changed and it is in front."""

    AUTO_FOCUS = ""
    HORIZONTAL_BREAKPOINTS = [
        (0, "-narrow"),
        (100, "-wide"),
        (150, "-widest"),
    ]
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]
    MODE: ClassVar[str]
    """Name of the mode, as the header and the app know it."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__()
        self.workbench = workbench
        self._styled_for: StyleBasis | None = None
        """What its styles rested on when another screen came in front."""

    def compose(self) -> ComposeResult:
        """Header, the screen's own part, keys."""
        yield WorkbenchHeader(self.MODE)
        yield from self.compose_body()
        yield KeyBar()

    def compose_body(self) -> ComposeResult:
        """Return what is between header and keys."""
        return ()

    def on_screen_resume(self, event: ScreenResume | None = None) -> None:
        """Catch up with what happened while another screen was in front."""
        if event is not None:
            # Textual hands an event to the class that is derived first. Looking every style up
            # again is half of what changing the screen costs.
            event.refresh_styles = event.refresh_styles and self._styled_for != self._style_basis()
        self.update_run()

    def on_screen_suspend(self) -> None:
        """Remember what the styles rest on."""
        self._styled_for = self._style_basis()

    def _style_basis(self) -> StyleBasis:
        app = self.app
        return StyleBasis(app.theme, app.app_focus, app.size, frozenset(app.classes), self.focused)

    def update_run(self) -> None:
        """Show the present state of the run."""
        headers = self.query(WorkbenchHeader)
        if not self.is_mounted or not headers:
            # It will, once it is there: the run can be quicker than its screen. Or it is leaving.
            return
        training = self.workbench.training
        spoken_of = training.training or training.shown
        header = headers.first()
        header.summary = RunSummary.of(spoken_of) if spoken_of else None
        self.show_run(training.shown)

    def show_run(self, run: RunHandle | None) -> None:
        """Show what the screen has to say about the run on show."""

    def torch_loaded(self) -> None:
        """Take in that torch is there and the device is known, or why not."""
