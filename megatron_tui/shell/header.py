"""The one line at the top: the program, the four screens, and the run that is going on."""

from __future__ import annotations

from dataclasses import dataclass

from textual.content import Content
from textual.reactive import reactive

from megatron_model.util.text import plural
from megatron_tui.services.run_handle import RunHandle, Standing
from megatron_tui.ui import formatting
from megatron_tui.ui.panel import Label

MODES = {"setup": "Setup", "training": "Training", "generation": "Generation", "runs": "Runs"}
"""The screens by their mode, in the order of their keys."""

SIGNS: dict[Standing, tuple[str, str]] = {
    "new": ("○", "$quiet"),
    "starting": ("◌", "$accent"),
    "running": ("●", "$success"),
    "paused": ("‖", "$accent"),
    "stopping": ("◌", "$accent"),
    "detaching": ("◌", "$accent"),
    "stopped": ("■", "$accent"),
    "finished": ("✓", "$success"),
    "failed": ("✗", "$error"),
    "interrupted": ("!", "$warning"),
    "unreadable": ("?", "$error"),
    "reading": ("…", "$quiet"),
}
"""How each standing of a run looks, beside its word."""

NAME_WIDTH = 24
"""A longer name is cut to so many cells before it is left out."""


@dataclass(frozen=True)
class RunSummary:
    """A run in one line."""

    name: str
    standing: Standing
    step: int
    steps: int
    """Of the whole run; 0 where they are not known, or a time budget ends it."""
    remaining: str = ""
    budget: str = ""
    """The time budget that ended the run, if that was so."""

    @classmethod
    def of(cls, run: RunHandle) -> RunSummary:
        """Summarize an open run."""
        state = run.state
        # Rounded, so that the line is repainted when it says something new.
        remaining = formatting.duration(state.remaining_seconds) if run.active else ""
        seconds = state.started.max_seconds if state.started else 0.0
        steps = state.started.steps if state.started and not seconds else 0
        spent = run.standing == "finished" and state.finish_reason == "budget"
        budget = formatting.duration(seconds) if spent and seconds else ""
        return cls(run.name, run.standing, state.step, steps, remaining, budget)

    def places(self) -> list[str]:
        """Return where the run is, in more and in fewer words."""
        step, word = f"{self.step:,}", "" if self.standing == "running" else f"{self.standing} "
        if self.budget:
            done = f"{self.standing}: {plural(self.step, 'step')}"
            return [f"{done} ({self.budget} budget)", done, f"{word}{step}"]
        of = f" of {self.steps:,}" if self.steps else ""
        known = self.remaining not in ("", formatting.MISSING)
        left = f"  {self.remaining}" if known else ""
        long = f"{word}step {step}{of}{left and f'  ETA {self.remaining}'}"
        short = f"{word}{step}/{formatting.count(self.steps)}{left}" if self.steps else long
        return [long, short, f"{word}{step}"]


class WorkbenchHeader(Label):
    """Name, screens, run."""

    DEFAULT_CSS = """
    WorkbenchHeader { dock: top; height: 1; width: 1fr; }
    """

    summary: reactive[RunSummary | None] = reactive(None, repaint=False)
    """The run to speak of."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode

    def on_resize(self) -> None:
        """Another width has room for other words."""
        self.show(self._line())

    def watch_summary(self) -> None:
        """Say it, cell by cell."""
        self.show(self._line())

    def _line(self) -> Content:
        """Return the line, cut to what fits."""
        left = [("  megatron ", "bold $primary"), (" ", "")]
        for mode, title in MODES.items():
            style = "bold $background on $primary" if mode == self._mode else "$quiet"
            left.append((f" {title} ", style))
        tabs = Content.assemble(*left)
        space = self.size.width - tabs.cell_length
        run = self._run(space - 2)
        return Content.assemble(tabs, " " * max(0, space - run.cell_length - 1), run)

    def _run(self, space: int) -> Content:
        if self.summary is None:
            return Content("")
        run = self.summary
        sign, colour = SIGNS[run.standing]
        long, short, shortest = run.places()
        for name, place in (
            (f"{run.name}  ", long),
            (f"{formatting.shortened(run.name, NAME_WIDTH)}  ", long),
            ("", long),
            ("", short),
            ("", shortest),
        ):
            line = Content.assemble((name, "bold"), (f"{sign} ", colour), place)
            if line.cell_length <= space:
                return line
        return Content.assemble((sign, colour))
