"""What the views into a model have around their text: a problem above it, facts beside it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content

from megatron_tui.ui.panel import Label, Panel


class ProblemLabel(Label):
    """Why there is no text; takes no room while there is one."""

    def __init__(self) -> None:
        super().__init__(id="problem")

    def show_problem(self, problem: Content) -> None:
        """Show what is wrong; nothing hides the label."""
        self.show(problem, layout=True)
        self.display = bool(problem.plain)


class FactsPanel(Panel):
    """What is known of the character under the cursor: itself, a list, and a summary."""

    def __init__(self, title: str) -> None:
        super().__init__(title, id="facts")

    def compose(self) -> ComposeResult:
        """One label for each of the three."""
        yield Label(id="character")
        yield Label(id="candidates")
        yield Label(id="totals")

    def show(
        self, character: Content | str, candidates: Content | str, totals: Content | str
    ) -> None:
        """Show all three."""
        self.query_one("#character", Label).show(character)
        self.query_one("#candidates", Label).show(candidates, layout=True)
        self.query_one("#totals", Label).show(totals, layout=True)
