"""The panel of the devices that train together: memory, how busy, and which the others wait for."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from textual.app import ComposeResult

from megatron_model.events.schema import RanksMeasured
from megatron_model.events.state import RunState
from megatron_tui.services.run_handle import device_count
from megatron_tui.training import rank_lines
from megatron_tui.training.panels import TrainingPanel
from megatron_tui.training.rank_lines import RankLayout
from megatron_tui.ui.panel import Label

ROWS, ROWS_WHERE_LOW, LOW = 8, 4, 30
"""Rows for the devices beside other panels, on a terminal that is lower than so many rows."""


class RanksPanel(TrainingPanel[tuple[RanksMeasured | None, RankLayout]]):
    """One line for each device; none for a run on one."""

    DEFAULT_CSS = """
    RanksPanel { height: auto; }
    RanksPanel Label { height: auto; text-wrap: nowrap; }
    """
    EXPLANATION: ClassVar[str] = (
        "Each process that trains: its memory, how busy its device is (of a process on the CPU, "
        "its cores), and what a step takes of its own time, without waiting for the others. All "
        f"wait for the one with the {rank_lines.SLOWEST} sign; below is by how much it is "
        "behind the fastest."
    )

    def __init__(self) -> None:
        super().__init__("devices", id="ranks")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Label()

    def show(self, state: RunState) -> None:
        """Write the lines."""
        self.again = partial(self.show, state)
        width, height = self.size
        if not self.has_class("-zoom"):
            height = 1 + (ROWS if self.app.size.height >= LOW else ROWS_WHERE_LOW)
        count = device_count(state)
        layout = rank_lines.rank_layout(count, width, height - 1)
        if count > 1 and self.is_new((state.ranks, layout)):
            self.set_title(rank_lines.ranks_title(state))
            self.set_subtitle(rank_lines.ranks_note(state))
            lines = rank_lines.rank_lines(state, layout)
            self.query_one(Label).show(lines, layout=True)
