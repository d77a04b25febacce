"""What the run will cost, before it starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.content import Content

from megatron_model.planning.device_cost import DeviceCost
from megatron_model.planning.preflight import MUCH_REPETITION, Preflight
from megatron_model.util.text import safe
from megatron_tui.services.past_speed import Pace
from megatron_tui.setup.device_rows import Part, several_rows
from megatron_tui.ui import formatting
from megatron_tui.ui.panel import Label, Panel

LABEL_WIDTH = 8


class PreflightCard(Panel):
    """Problems in red, figures, warnings; and a note on what is not known yet."""

    EXPLANATION: ClassVar[str] = (
        "What the run will cost, recalculated with every change. Memory is weights, gradients, "
        "optimizer and the activations of one pass; time is an estimate until it is measured with "
        "real steps. Of several devices the card tells what each needs, and what it sends to the "
        "others in a step: with the whole model (DDP), and with a part of it (FSDP2). A red card "
        "does not fit: it says what to change, and ! changes it."
    )

    def __init__(self) -> None:
        super().__init__("preflight", id="preflight")

    def compose(self) -> ComposeResult:
        """One text."""
        yield Label()

    def show(
        self,
        result: Preflight,
        note: str = "",
        *,
        problems: Sequence[str] = (),
        device: str = "",
        fixable: bool = False,
        each: Sequence[DeviceCost] = (),
        pace: Pace | None = None,
        compiles: bool = False,
        notes: Sequence[str] = (),
    ) -> None:
        """Write the card; `device` is where the run would compute.

        `each` is what every one of several devices needs: with the whole model, and with a part.
        `pace` is that of an earlier run; with `compiles` the run will be faster than the estimate
        of time, which is for uncompiled steps; `notes` are about the text.
        """
        self.set_class(bool(problems), "-problem")
        self.set_title("preflight: problems" if problems else "preflight")
        self.set_subtitle(device)
        # What stands in the way comes first: on a small terminal the end of the card is cut off.
        lines = [Content.styled(f"✗ {safe(problem)}", "$error") for problem in problems]
        if problems and fixable:
            lines.append(Content.assemble(("!", "bold $primary"), " makes the changes needed"))
        if note:
            lines.append(Content.styled(note, "$accent"))
        lines += [
            Content.assemble(("" if label is None else f"{label:<{LABEL_WIDTH}}", "$quiet"), *parts)
            for label, parts in preflight_rows(result, each, pace, compiles=compiles)
        ]
        for warning in result.warnings:
            lines.append(Content.styled(f"! {safe(warning)}", "$warning"))
        if result.warnings and fixable and not problems:
            lines.append(Content.assemble(("!", "bold $primary"), " takes fewer steps"))
        lines += [Content.styled(safe(note, one_line=True), "$quiet") for note in notes]
        self.query_one(Label).show(Content("\n").join(lines), layout=True)


def preflight_rows(
    result: Preflight,
    each: Sequence[DeviceCost] = (),
    pace: Pace | None = None,
    *,
    compiles: bool = False,
) -> list[tuple[str | None, list[Part]]]:
    """Return the label and the styled parts of each figure."""
    # The problem says it in words, too: colour alone is not enough.
    style = {True: "bold $success", False: "bold $error", None: "bold"}[result.fits]
    memory = [(formatting.size(result.total_bytes), style)]
    if result.memory_free is not None:
        memory.append((f" of {formatting.size(result.memory_free)} free", "$quiet"))
    step = [(f"{result.characters_per_step:,}", "bold"), (" characters", "$quiet")]
    if result.total_characters is not None:
        step = [
            (f"{result.characters_per_step:,}", "bold"), (" chars, in all ", "$quiet"),
            (formatting.count(result.total_characters), "bold"),
        ]  # fmt: skip
    over = result.epochs is not None and result.epochs > MUCH_REPETITION
    epochs = [(formatting.times(result.epochs), "bold $warning" if over else "bold")]
    held = formatting.count(result.validation_characters)
    split = [(formatting.count(result.training_characters), "bold"), (", held back ", "$quiet"),
             (held, "bold")]  # fmt: skip
    disk = [(formatting.size(result.checkpoint_bytes), "bold")]
    if result.disk_free is not None:
        disk.append((f" of {formatting.size(result.disk_free)} free", "$quiet"))
    return [
        ("model", [(formatting.count(result.parameters), "bold"), (" parameters", "$quiet")]),
        *(several_rows(result, each) if each else [("memory", memory), *_memory_parts(result)]),
        ("a step", step),
        ("split", split),
        ("epochs", epochs),
        *_time(result, pace, compiles=compiles),
        ("on disk", disk),
    ]


def _memory_parts(result: Preflight) -> list[tuple[str | None, list[Part]]]:
    """Return what the estimate is made of, or that it was measured as a whole."""
    if result.measured:
        return [("", [("measured, all parts together", "$quiet")])]
    parts = [
        ("weights", result.weights_bytes),
        ("gradients", result.gradients_bytes),
        ("optimizer", result.optimizer_bytes),
        ("activations", result.activations_bytes),
    ]
    shown = [[(f"{name} ", "$quiet"), (_short_size(number), "")] for name, number in parts]
    gap = ("  ", "")
    # Under the label, not beside it: two lines of two have room on the narrowest card.
    return [(None, [*shown[0], gap, *shown[1]]), (None, [*shown[2], gap, *shown[3]])]


def _time(
    result: Preflight, pace: Pace | None, *, compiles: bool
) -> list[tuple[str | None, list[Part]]]:
    """Return how long the run will take, and what that rests on."""
    about: Part = ("about ", "$quiet")
    if result.seconds is None:
        return [("time", [(formatting.MISSING, "bold")])]
    if result.measured:
        words = ", from measured steps"
        return [("time", [(formatting.duration(result.seconds), "bold"), (words, "$quiet")])]
    if pace is not None and result.total_characters is not None:
        steps = result.total_characters / result.characters_per_step
        seconds = formatting.duration(steps * pace.seconds_per_step)
        rows: list[tuple[str | None, list[Part]]] = [
            ("time", [about, (seconds, "bold"), (", as before", "$quiet")])
        ]
        if pace.compile_seconds is not None:
            took = formatting.duration(pace.compile_seconds)
            rows.append((None, [(f"compiling took {took} the first time", "$quiet")]))
        return rows
    estimate = [about, (formatting.duration(result.seconds), "bold")]
    # A budget is no estimate.
    if compiles and result.total_characters is not None:
        estimate.append((" uncompiled", "$quiet"))
    return [("time", estimate)]


def _short_size(number: int) -> str:
    """Return ``430M``: the unit in full stands in the line above."""
    return formatting.size(number).replace(" ", "").removesuffix("iB")
