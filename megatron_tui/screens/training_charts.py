"""What the keys of the Training screen do to its charts and panels; the run never notices."""

from __future__ import annotations

from dataclasses import replace

from textual.widget import Widget

from megatron_tui import chart_view
from megatron_tui.chart_view import SMOOTHING, UNITS, X_AXES, ChartView
from megatron_tui.curves import METRICS, Metric
from megatron_tui.film_strip import FilmStrip
from megatron_tui.line import Line
from megatron_tui.preferences import Preferences
from megatron_tui.screens.training_keys import PANELS
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.widgets.training_panels import LossPanel, TrainingPanel
from megatron_tui.workbench import Workbench

HIDDEN, SHOWN = "training.hidden_panels", "training.shown_panels"


class ChartScreen(WorkbenchScreen):
    """A screen with charts of the run on show, and how they are looked at."""

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.view = remembered_view(workbench.preferences)
        self.strip = FilmStrip()
        metric = workbench.preferences.get("training.metric", "memory")
        self.metric: Metric = metric if metric in METRICS else "memory"
        self._drawing_soon = False
        self.made = False
        """Whether all of its parts are there."""
        self.large: str = ""
        """The panel that has the screen for itself."""

    def update_run(self) -> None:
        """Show the present state, while there is something to show it on."""
        # The app polls while a screen is still being made, and while it is taken down.
        if self.made and self.is_attached and self.is_running:
            super().update_run()

    def look(self, view: ChartView) -> None:
        """Look at the curves in another way, and remember what of it is a matter of taste."""
        self.view = view
        preferences = self.workbench.preferences
        preferences.set("training.smoothing", view.smoothing)
        preferences.set("training.axis", view.x_axis)
        preferences.set("training.unit", view.unit)
        preferences.set("training.log", view.log_y)
        preferences.set("training.raw", view.raw)
        preferences.set("training.baselines", view.references)
        self.redraw()

    def redraw(self) -> None:
        """Draw soon: keys that are typed ahead, or repeat, cost one drawing together."""
        if not self._drawing_soon:
            self._drawing_soon = True
            self.call_later(self._draw)

    def _draw(self) -> None:
        self._drawing_soon = False
        self.update_run()

    @property
    def redrawing(self) -> str:
        """How often the run is drawn and what that sends, where that is of interest."""
        line = getattr(self.app, "line", None)
        return line.words() if isinstance(line, Line) else ""

    def action_redraw_rate(self) -> None:
        """Draw what the run does less often, or as often as the line allows."""
        line = getattr(self.app, "line", None)
        if isinstance(line, Line):
            line.next_rate()
            self.workbench.preferences.set("redraws", line.rate)
            words = f"{line.rate:g} a second" if line.rate else "as often as the line allows"
            self.notify(f"The run is drawn {words}", timeout=3, markup=False)
            self.redraw()

    def action_log_scale(self) -> None:
        """Switch between linear and logarithmic loss."""
        self.look(replace(self.view, log_y=not self.view.log_y))

    def action_x_axis(self) -> None:
        """Go on to the next axis."""
        self.look(self.view.next_axis())

    def action_unit(self) -> None:
        """Go on to the next unit."""
        self.look(self.view.next_unit())

    def action_raw(self) -> None:
        """Show or hide the raw reports."""
        self.look(replace(self.view, raw=not self.view.raw))

    def action_references(self) -> None:
        """Show or hide the baselines."""
        self.look(replace(self.view, references=not self.view.references))

    def action_smooth(self, change: int) -> None:
        """Smooth more or less."""
        self.look(self.view.smoother(change))

    def action_reset(self) -> None:
        """Undo the zoom; without one, the smoothing."""
        self.look(self.view.whole() if self.view.zoom else self.view.smoother(0))

    def action_zoom(self, change: int) -> None:
        """Look at half, or twice, the stretch."""
        self.look(self.view.zoomed(change))

    def action_cursor(self, direction: int) -> None:
        """Move the cursor by a cell."""
        run = self.workbench.training.shown
        if run is not None:
            columns = self.query_one(LossPanel).columns
            self.look(chart_view.moved_cursor(run.state, self.view, columns, direction))

    def action_pan(self, direction: int) -> None:
        """Move the stretch on show."""
        run = self.workbench.training.shown
        if run is not None:
            self.look(chart_view.panned(run.state, self.view, direction))

    def action_metric(self, change: int) -> None:
        """Show the next of the further measurements, where it can be seen."""
        panel = self.query_one("#metrics")
        if self.large != "metrics" and not panel.display:
            self.action_panel("metrics")
        else:
            self.metric = METRICS[(METRICS.index(self.metric) + change) % len(METRICS)]
            self.workbench.preferences.set("training.metric", self.metric)
        self.redraw()

    def action_scrub(self, change: int) -> None:
        """Go through the samples."""
        run = self.workbench.training.shown
        if run is not None:
            self.strip = self.strip.scrubbed(run.state.samples, change)
            self.redraw()

    def action_zoom_panel(self) -> None:
        """Give the panel with the focus the whole screen, or take that back."""
        if self.large:
            self._enlarge("")
            return
        focused: Widget | None = self.focused
        while focused is not None and not isinstance(focused, TrainingPanel):
            focused = focused.parent if isinstance(focused.parent, Widget) else None
        self._enlarge(focused.id or "" if focused is not None else "loss")

    def action_back(self) -> None:
        """From the large panel to all of them; from the cursor to none; from a focus to none."""
        if self.large:
            self._enlarge("")
        elif self.view.cursor is not None:
            self.look(replace(self.view, cursor=None))
        else:
            self.set_focus(None)

    def action_panel(self, name: str) -> None:
        """Show or hide a panel; while one is large, make this one large instead."""
        if self.large:
            self._enlarge("" if self.large == name else name)
            return
        panel = self.query_one(f"#{name}")
        visible = panel.display
        panel.set_class(visible, "-hidden")
        panel.set_class(not visible, "-shown")
        preferences = self.workbench.preferences
        for key, klass in ((HIDDEN, "-hidden"), (SHOWN, "-shown")):
            preferences.set(key, [p for p in PANELS if self.query_one(f"#{p}").has_class(klass)])
        self.call_after_refresh(self.settle_columns)

    def restore_panels(self) -> None:
        """Show and hide the panels as it was chosen before."""
        for key, klass in ((HIDDEN, "-hidden"), (SHOWN, "-shown")):
            for name in self.workbench.preferences.get(key, list[str]()):
                if name in PANELS:
                    self.query_one(f"#{name}").add_class(klass)

    def settle_columns(self) -> None:
        """Give the room of a column without panels to the other one, then draw."""
        columns = [self.query_one("#left"), self.query_one("#right")]
        empty = [not any(child.display for child in column.children) for column in columns]
        for column, other_empty, own_empty in zip(columns, empty[::-1], empty, strict=True):
            column.set_class(own_empty, "-empty")
            column.set_class(other_empty and not own_empty, "-alone")
        shown = self.query_one("#metrics").has_class("-shown") and not self.large
        columns[1].set_class(shown, "-metrics")
        # Sizes are known after the layout, and so are the legends and charts that fit.
        self.call_after_refresh(self.update_run)

    def _enlarge(self, name: str) -> None:
        self.large = name
        self.set_class(bool(name), "-zoomed")
        for panel in self.query(TrainingPanel):
            panel.set_class(panel.id == name, "-zoom")
            if panel.id == name:
                self.set_focus(panel, scroll_visible=False)
        self.call_after_refresh(self.settle_columns)


def remembered_view(preferences: Preferences) -> ChartView:
    """Return the view that was chosen last."""
    usual = ChartView()
    axis = preferences.get("training.axis", usual.x_axis)
    unit = preferences.get("training.unit", usual.unit)
    smoothing = preferences.get("training.smoothing", usual.smoothing)
    return ChartView(
        log_y=preferences.get("training.log", usual.log_y),
        x_axis=axis if axis in X_AXES else usual.x_axis,
        unit=unit if unit in UNITS else usual.unit,
        smoothing=smoothing if 0 <= smoothing < len(SMOOTHING) else usual.smoothing,
        raw=preferences.get("training.raw", usual.raw),
        references=preferences.get("training.baselines", usual.references),
    )
