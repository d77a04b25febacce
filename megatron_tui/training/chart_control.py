"""How the charts of the Training screen are looked at, key by key; the run never notices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from megatron_model.events.state import RunState
from megatron_tui.services.preferences import Preferences
from megatron_tui.training import chart_view
from megatron_tui.training.chart_view import SMOOTHING, UNITS, X_AXES, ChartView
from megatron_tui.training.curves import METRICS, Metric


class ChartControl:
    """The view of the curves and the measurement on show; what is a matter of taste is remembered.

    Args:
        preferences: where it is remembered.
        changed: called after each change.
    """

    def __init__(self, preferences: Preferences, changed: Callable[[], object]) -> None:
        self._preferences = preferences
        self._changed = changed
        self.view = remembered_view(preferences)
        metric = preferences.get("training.metric", "memory")
        self.metric: Metric = metric if metric in METRICS else "memory"

    def look(self, view: ChartView) -> None:
        """Look at the curves in another way."""
        self.view = view
        self._preferences.set("training.smoothing", view.smoothing)
        self._preferences.set("training.axis", view.x_axis)
        self._preferences.set("training.unit", view.unit)
        self._preferences.set("training.log", view.log_y)
        self._preferences.set("training.raw", view.raw)
        self._preferences.set("training.baselines", view.references)
        self._changed()

    def begin(self) -> None:
        """Look at another run: the whole of it, without a cursor."""
        self.view = self.view.whole()

    def toggle_log_scale(self) -> None:
        """Switch between linear and logarithmic loss."""
        self.look(replace(self.view, log_y=not self.view.log_y))

    def toggle_raw(self) -> None:
        """Show or hide the raw reports."""
        self.look(replace(self.view, raw=not self.view.raw))

    def toggle_references(self) -> None:
        """Show or hide the baselines."""
        self.look(replace(self.view, references=not self.view.references))

    def next_axis(self) -> None:
        """Go on to the next axis."""
        self.look(self.view.next_axis())

    def next_unit(self) -> None:
        """Go on to the next unit."""
        self.look(self.view.next_unit())

    def smooth(self, change: int) -> None:
        """Smooth more or less."""
        self.look(self.view.smoother(change))

    def reset(self) -> None:
        """Undo the zoom; without one, the smoothing."""
        self.look(self.view.whole() if self.view.zoom else self.view.smoother(0))

    def zoom(self, change: int) -> None:
        """Look at half, or twice, the stretch."""
        self.look(self.view.zoomed(change))

    def pan(self, state: RunState, direction: int) -> None:
        """Move the stretch on show."""
        self.look(chart_view.panned(state, self.view, direction))

    def move_cursor(self, state: RunState, columns: int, direction: int) -> None:
        """Move the cursor by a cell of a chart that is `columns` cells wide."""
        self.look(chart_view.moved_cursor(state, self.view, columns, direction))

    def put_cursor(self, state: RunState, step: int) -> None:
        """Put the cursor at a step, in sight."""
        self.look(chart_view.looking_at(state, self.view, step))

    def remove_cursor(self) -> None:
        """Stop reading values out."""
        self.look(replace(self.view, cursor=None))

    def next_metric(self, change: int) -> None:
        """Show the next of the further measurements."""
        self.metric = METRICS[(METRICS.index(self.metric) + change) % len(METRICS)]
        self._preferences.set("training.metric", self.metric)
        self._changed()


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
