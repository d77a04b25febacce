"""The panel of the devices that train together: memory, how busy, and which the others wait for."""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from textual.app import ComposeResult

from megatron_model.run_state import RunState
from megatron_tui import several_devices
from megatron_tui.widgets.panel import Text
from megatron_tui.widgets.training_panels import TrainingPanel

ROWS, ROWS_WHERE_LOW, LOW = 8, 4, 30
"""Rows for the devices beside other panels, on a terminal that is lower than so many rows."""


class RanksPanel(TrainingPanel):
    """One line for each device; none for a run on one."""

    DEFAULT_CSS = """
    RanksPanel { height: auto; }
    RanksPanel Text { height: auto; text-wrap: nowrap; }
    """
    EXPLANATION: ClassVar[str] = (
        "Each process that trains: its memory, how busy its device is (of a process on the CPU, "
        "its cores), and what a step takes of its own time, without waiting for the others. All "
        f"wait for the one with the {several_devices.SLOWEST} sign; below is by how much it is "
        "behind the fastest."
    )

    def __init__(self) -> None:
        super().__init__("devices", id="ranks")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Text()

    def show(self, state: RunState) -> None:
        """Write the lines."""
        self.again = partial(self.show, state)
        width, height = self.size
        if not self.has_class("-zoom"):
            height = 1 + (ROWS if self.app.size.height >= LOW else ROWS_WHERE_LOW)
        count = several_devices.rank_count(state)
        layout = several_devices.rank_layout(count, width, height - 1)
        if count > 1 and self.news(state.ranks, layout):
            self.set_title(several_devices.ranks_title(state))
            self.set_subtitle(several_devices.ranks_note(state))
            lines = several_devices.rank_lines(state, layout)
            self.query_one(Text).show(lines, layout=True)
