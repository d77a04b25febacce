"""What a run came to, below the list: its curves, and the text that it wrote last."""

from __future__ import annotations

from dataclasses import dataclass

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content

from megatron_model.events.smoothing import smooth
from megatron_model.events.state import RunState
from megatron_model.run.comparison import KEPT
from megatron_model.util.text import safe
from megatron_tui.plot.chart import Chart
from megatron_tui.plot.painter import Curve, Plot
from megatron_tui.ui import formatting
from megatron_tui.ui.panel import Label, Panel

LONGEST = 2_000
"""Characters of a sample that are shown."""


@dataclass(frozen=True)
class Preview:
    """What is shown of one run."""

    plot: Plot
    sample: Content
    title: str


def preview_of(state: RunState) -> Preview:
    """Return what to show of a run."""
    train, validation = state.train_loss, state.val_loss
    plot = Plot(
        curves=(
            Curve(tuple(train.steps), tuple(smooth(train.values, KEPT)), "chart-train", "."),
            Curve(tuple(validation.steps), tuple(validation.values), "chart-validation", "o"),
        ),
        x_limits=(0.0, float(max(1, state.step))),
        x_label=formatting.exact,
        y_label=formatting.loss,
    )
    if not state.samples:
        return Preview(plot, Content.styled("It has written nothing yet.", "$quiet"), "sample")
    last = state.samples[-1]
    text = Content.assemble((safe(last.prompt), "bold"), safe(last.text[:LONGEST]))
    return Preview(plot, text, f"sample at step {last.step:,}")


class RunPreview(Horizontal):
    """Chart and sample side by side."""

    def compose(self) -> ComposeResult:
        """Two panels."""
        with Panel("loss", id="preview-curve"):
            yield Chart("No loss was reported yet.")
        with Panel("sample", id="preview-sample"):
            yield Label()

    def show(self, preview: Preview | None) -> None:
        """Show a run's, or nothing while it is read."""
        self.query_one(Chart).show(preview.plot if preview else Plot(), empty="")
        self.query_one(Label).show(preview.sample if preview else "", layout=True)
        if preview:
            self.query_one("#preview-sample", Panel).set_title(preview.title)
