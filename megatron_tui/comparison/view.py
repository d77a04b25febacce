"""From ranked runs to a chart and to the rows of its legend. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import TypeAlias

from megatron_model.config.fields import get_setting
from megatron_model.run.comparison import AXES, KEPT, Along, Ranked, smoothed
from megatron_model.util.text import safe
from megatron_tui.comparison.lines import colour_of, sign_of
from megatron_tui.plot.overlays import Mark
from megatron_tui.plot.painter import Curve, Plot
from megatron_tui.ui import formatting
from megatron_tui.ui.draft import value_text

SMOOTHING = (0.0, KEPT, 0.8, 0.9, 0.95, 0.98)
AXIS_TITLES: dict[Along, str] = {
    "step": "steps",
    "time": "time trained",
    "characters": "characters read",
    "flops": "operations done",
}
_LABELS: dict[Along, Callable[[float], str]] = {
    "step": formatting.exact,
    "time": formatting.clock,
    "characters": formatting.count,
    "flops": formatting.count,
}
CHOSEN = "chart-cursor"
"""The colour of the curve that the cursor is on."""


@dataclass(frozen=True)
class ComparisonView:
    """How a person wants to see the curves."""

    by: Along = "step"
    smoothing: int = 1
    log_y: bool = False

    @property
    def kept(self) -> float:
        """How much of its past a smoothed value keeps."""
        return SMOOTHING[self.smoothing]

    def next_axis(self) -> ComparisonView:
        """Return the view along the next axis."""
        return replace(self, by=AXES[(AXES.index(self.by) + 1) % len(AXES)])

    def smoother(self, change: int) -> ComparisonView:
        """Return the view with smoothing changed by so many levels."""
        return replace(self, smoothing=min(len(SMOOTHING) - 1, max(0, self.smoothing + change)))


Points: TypeAlias = tuple[list[float], list[float]]
"""Places and values of a curve."""


def comparison_curves(runs: Sequence[Ranked], view: ComparisonView) -> list[Points]:
    """Return the smoothed curve of each run: made once, while the cursor goes through them."""
    return [smoothed(each.run.state, view.by, view.kept) for each in runs]


def comparison_plot(found: Sequence[Points], view: ComparisonView, chosen: int) -> Plot:
    """Return the curves, the best on top of the others, the chosen one on top of all."""
    curves: list[Curve] = []
    marks: list[Mark] = []
    top: list[Curve] = []
    for place, (xs, ys) in reversed(list(enumerate(found))):
        colour = CHOSEN if place == chosen else colour_of(place)
        (top if place == chosen else curves).append(Curve(xs, ys, colour, sign_of(place).lower()))
        if xs and (place < len(ascii_uppercase) or place == chosen):
            marks.append(Mark(xs[-1], ys[-1], colour, sign_of(place)))
    drawn = [*curves, *top]
    farthest = max((curve.xs[-1] for curve in drawn if curve.xs), default=1.0)
    return Plot(
        curves=tuple(drawn),
        marks=tuple(marks),
        x_limits=(0.0, max(farthest, 1e-9)),
        log_y=view.log_y,
        x_label=_LABELS[view.by],
        y_label=lambda value: formatting.loss(value),
    )


TITLES = ("", "run", "smoothed", "level", "best", "at", "steps", "time")
"""The columns of the legend; those of the settings that differ follow."""


def legend_row(each: Ranked, place: int, keys: Sequence[str]) -> list[str]:
    """Return a run's line of the legend."""
    state, config = each.run.state, each.run.config
    values = [
        formatting.MISSING
        if config is None
        else safe(value_text(get_setting(config, key)), one_line=True)
        for key in keys
    ]
    return [
        sign_of(place),
        each.run.name,
        formatting.loss(each.value),
        formatting.loss(each.level),
        formatting.loss(state.best_val_loss),
        formatting.exact(state.best_step),
        formatting.exact(state.step),
        formatting.duration(state.elapsed_seconds or None),
        *values,
    ]


def title_of(key: str) -> str:
    """Return the title of a setting's column."""
    return key.rpartition(".")[2].replace("_", " ")
