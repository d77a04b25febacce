"""What the four screens have in common: the header, the keys, and being told about the run."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.events import Resize, ScreenResume
from textual.geometry import Size
from textual.screen import Screen

from megatron_tui.open_run import OpenRun
from megatron_tui.sparing import SparingCompositor
from megatron_tui.widgets.header import RunSummary, WorkbenchHeader
from megatron_tui.widgets.key_bar import KeyBar
from megatron_tui.workbench import Workbench


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
        self._compositor = SparingCompositor()
        self._styled_for: object = None
        """What the styles of the screen rest on, as it was when another one came in front."""
        self.fitted: Size | None = None
        """The size it was made for, until the terminal says another one, or the same once more."""
        self.workbench = workbench

    def fit(self, size: Size) -> None:
        """Take the classes for a size beforehand, so as to be styled, laid out and painted once."""
        self.fitted = size
        wide = self._get_breakpoint_classes(size.width, self.HORIZONTAL_BREAKPOINTS)
        high = self._get_breakpoint_classes(size.height, self.VERTICAL_BREAKPOINTS)
        self.add_class(*wide, *high, update=False)

    async def _on_resize(self, event: Resize) -> None:
        # App, terminal and first layout each say the size that it was made for: painted thrice.
        if event.size == self.fitted == self.size:
            event.stop()
            event.prevent_default()
        else:
            self.fitted = None

    def compose(self) -> ComposeResult:
        """Header, the screen's own part, keys."""
        yield WorkbenchHeader(self.MODE)
        yield from self.compose_body()
        yield KeyBar()

    def compose_body(self) -> ComposeResult:
        """Return what is between header and keys."""
        raise NotImplementedError

    def on_screen_resume(self, event: ScreenResume | None = None) -> None:
        """Catch up with what happened while another screen was in front."""
        if event is not None:
            # Finding every style anew would be half of what changing the screen costs.
            event.refresh_styles = event.refresh_styles and self._styled_for != self._style_basis()
        self.update_run()

    def on_screen_suspend(self) -> None:
        """Remember what the styles rest on."""
        self._styled_for = self._style_basis()

    def _style_basis(self) -> object:
        app = self.app
        return app.theme, app.app_focus, app.size, frozenset(app.classes), self.focused

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

    def show_run(self, run: OpenRun | None) -> None:
        """Show what the screen has to say about the run on show."""

    def engine_loaded(self) -> None:
        """Take in that torch is there and the device is known, or why not."""
