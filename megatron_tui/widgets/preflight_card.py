"""What the run will cost, before it starts."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.content import Content

from megatron_model.preflight import Preflight
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.widgets.panel import Panel, Text


class PreflightCard(Panel):
    """Figures, then problems in red and warnings; `note` says what is not known yet."""

    def __init__(self) -> None:
        super().__init__("preflight", id="preflight")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Text()

    def show(self, result: Preflight | None, note: str = "") -> None:
        """Write the card; without a result, the note alone."""
        self.set_class(result is not None and bool(result.problems), "-problem")
        text = self.query_one(Text)
        if result is None:
            text.show(Content.styled(note, "$quiet"), layout=True)
            return
        # What stands in the way comes first: on a small terminal the end of the card is cut off.
        lines = [Content.styled(f"✗ {safe(problem)}", "$error") for problem in result.problems]
        lines += [
            Content.assemble((f"{label:<11}", "$quiet"), (value, style))
            for label, value, style in preflight_rows(result)
        ]
        lines += [Content.styled(f"! {safe(warning)}", "$warning") for warning in result.warnings]
        if note:
            lines.append(Content.styled(note, "$quiet"))
        text.show(Content("\n").join(lines), layout=True)


def preflight_rows(result: Preflight) -> list[tuple[str, str, str]]:
    """Return (label, value, style) of each figure."""
    memory = formatting.size(result.total_bytes)
    if result.memory_free is not None:
        memory += f" of {formatting.size(result.memory_free)}"
    # The words of the problem say it too: colour alone means nothing.
    style = {True: "bold $success", False: "bold $error", None: "bold"}[result.fits]
    seconds = result.seconds
    time = formatting.MISSING if seconds is None else f"about {formatting.duration(seconds)}"
    return [
        ("parameters", formatting.count(result.parameters), "bold"),
        ("memory", memory, style),
        ("a step", f"{result.characters_per_step:,} characters", "bold"),
        ("the run", f"{formatting.count(result.total_characters)} characters", "bold"),
        ("epochs", formatting.times(result.epochs), "bold"),
        ("time", time, "bold"),
        ("on disk", formatting.size(result.checkpoint_bytes), "bold"),
    ]
