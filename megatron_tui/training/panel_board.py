"""The panels of the Training screen in two columns: which are shown, and which one is large."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from textual.app import ComposeResult
from textual.containers import Container, Vertical
from textual.widget import Widget

from megatron_tui.services.preferences import Preferences
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.training.chart_control import ChartControl
from megatron_tui.training.film_strip import FilmStrip
from megatron_tui.training.keys import PANELS
from megatron_tui.training.other_runs import OtherRun
from megatron_tui.training.panels import (
    FiguresPanel,
    LogPanel,
    LossPanel,
    MetricsPanel,
    SamplePanel,
    TrainingPanel,
)
from megatron_tui.training.ranks_panel import RanksPanel

HIDDEN, SHOWN = "training.hidden_panels", "training.shown_panels"
FEW = 4
"""Devices whose lines leave the other panels as they are."""


class PanelBoard(Container):
    """Two columns of panels; what was shown and hidden is remembered.

    Args:
        preferences: where it is remembered.
        settled: called when the panels have their places, and so it is known what fits.
    """

    def __init__(self, preferences: Preferences, settled: Callable[[], object]) -> None:
        super().__init__(id="panels")
        self._preferences = preferences
        self._settled = settled
        self.large = ""
        """The panel that has the board for itself."""
        # Kept, not looked up: the app may end, and a run be shown, while they are being mounted.
        self._loss, self._sample = LossPanel(), SamplePanel()
        self._figures, self._ranks = FiguresPanel(), RanksPanel()
        self._metrics, self._log = MetricsPanel(), LogPanel()

    def compose(self) -> ComposeResult:
        """Curves and samples on the left, figures and log on the right."""
        with Vertical(id="left"):
            yield self._loss
            yield self._sample
        with Vertical(id="right"):
            yield self._figures
            yield self._ranks
            yield self._metrics
            yield self._log

    def on_mount(self) -> None:
        """Show and hide the panels as it was chosen before; the rest needs a first layout."""
        for key, klass in ((HIDDEN, "-hidden"), (SHOWN, "-shown")):
            for name in self._preferences.get(key, list[str]()):
                if name in PANELS:
                    self.query_one(f"#{name}").add_class(klass)
        self.call_after_refresh(self.settle)

    def on_resize(self) -> None:
        """Legends and columns depend on the width."""
        self.call_after_refresh(self.settle)

    @property
    def chart_columns(self) -> int:
        """About how many cells the loss curves are wide."""
        return self._loss.columns

    def show_run(
        self, run: RunHandle, charts: ChartControl, strip: FilmStrip, others: Sequence[OtherRun]
    ) -> None:
        """Hand each panel what it shows of the run."""
        state, view = run.state, charts.view
        self._loss.show(state, view, others)
        self._figures.show(state)
        self._make_room_for_ranks(run.device_count)
        self._ranks.show(state)
        self._metrics.show(state, view, charts.metric)
        self._sample.show(state, strip, view.unit)
        self._log.show(run)

    def can_be_seen(self, name: str) -> bool:
        """Whether a panel is on screen."""
        return self.large == name or bool(self.query_one(f"#{name}").display)

    def toggle(self, name: str) -> None:
        """Show or hide a panel; while one is large, make this one large instead."""
        if self.large:
            self.enlarge("" if self.large == name else name)
            return
        panel = self.query_one(f"#{name}")
        visible = panel.display
        panel.set_class(visible, "-hidden")
        panel.set_class(not visible, "-shown")
        for key, klass in ((HIDDEN, "-hidden"), (SHOWN, "-shown")):
            chosen = [panel for panel in PANELS if self.query_one(f"#{panel}").has_class(klass)]
            self._preferences.set(key, chosen)
        self.call_after_refresh(self.settle)

    def enlarge(self, name: str) -> None:
        """Give one panel the whole board, or with "" all of them their places again."""
        self.large = name
        self.set_class(bool(name), "-zoomed")
        for panel in self.query(TrainingPanel):
            panel.set_class(panel.id == name, "-zoom")
            if panel.id == name:
                self.screen.set_focus(panel, scroll_visible=False)
        self.call_after_refresh(self.settle)

    def enlarge_around(self, focused: Widget | None) -> None:
        """Give the panel around a widget the whole board, or take that back."""
        if self.large:
            self.enlarge("")
            return
        while focused is not None and not isinstance(focused, TrainingPanel):
            focused = focused.parent if isinstance(focused.parent, Widget) else None
        self.enlarge(focused.id or "" if focused is not None else "loss")

    def settle(self) -> None:
        """Give the room of a column without panels to the other one."""
        columns = [self.query_one("#left"), self.query_one("#right")]
        empty = [not any(child.display for child in column.children) for column in columns]
        for column, other_empty, own_empty in zip(columns, empty[::-1], empty, strict=True):
            column.set_class(own_empty, "-empty")
            column.set_class(other_empty and not own_empty, "-alone")
        shown = self.query_one("#metrics").has_class("-shown") and not self.large
        columns[1].set_class(shown, "-metrics")
        # Sizes are known after the layout, and so are the legends and charts that fit.
        self.call_after_refresh(self._settled)

    def _make_room_for_ranks(self, count: int) -> None:
        """The panel of the devices has a place where there are several."""
        several = count > 1
        if several != self.has_class("-several"):
            self.set_class(several, "-several")
            self.set_class(count > FEW, "-many")
            if self.large == "ranks":
                self.enlarge("")
            self.call_after_refresh(self.settle)
