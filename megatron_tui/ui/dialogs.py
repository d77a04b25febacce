"""The dialogs: yes or no, what becomes of a run, and "please wait" while the trainer saves."""

from __future__ import annotations

from typing import ClassVar, Literal, TypeAlias

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button

from megatron_model.util.text import safe
from megatron_tui.terminal.keyboard import irreversible
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label


class Confirm(ModalScreen[bool]):
    """Ask one question; the safe answer is one key away."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", tooltip="Do it", id="dialog.yes"),
        Binding("n,escape", "cancel", "No", tooltip="Do nothing", id="dialog.no"),
        Binding("left,right,up,down", "other", show=False),
    ]

    def __init__(self, title: str, text: str, *, yes: str, no: str, danger: bool = False) -> None:
        super().__init__()
        self._title = title
        self._text = text
        self._yes, self._no, self._danger = yes, no, danger

    def compose(self) -> ComposeResult:
        """Question, explanation, two buttons."""
        with Vertical(classes="dialog"):
            yield Label(Content.styled(safe(self._title, one_line=True), "bold"))
            yield Label(safe(self._text), classes="explanation")
            with Horizontal(classes="buttons"):
                yield Button(
                    Content.assemble(("y", "underline"), f"  {self._yes}"),
                    id="yes",
                    compact=True,
                )
                yield Button(
                    Content.assemble(("n", "underline"), f"  {self._no}"), id="no", compact=True
                )

    def on_mount(self) -> None:
        """What cannot be taken back is not what enter does."""
        self.query_one("#no" if self._danger else "#yes").focus()

    @on(Button.Pressed)
    def _press(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    @irreversible
    def action_answer(self, answer: bool) -> None:
        """Close with the answer."""
        self.dismiss(answer)

    def action_cancel(self) -> None:
        """Close, and do nothing."""
        self.dismiss(False)

    def action_other(self) -> None:
        """Go to the other button."""
        self.focus_next(Button)


Leaving: TypeAlias = Literal["leave", "stop", "stay"]
"""What becomes of a run when the workbench is left."""


class Leave(ModalScreen[Leaving]):
    """Ask what becomes of the run in training; that nothing is lost is one key away."""

    CSS_PATH = "dialogs.tcss"
    AUTO_FOCUS = "#leave"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "l",
            "answer('leave')",
            "Leave it running",
            tooltip="Let the run go on in a process of its own",
            id="leave.leave",
        ),
        Binding("s", "answer('stop')", "Stop", tooltip="Save and end the run", id="leave.stop"),
        Binding("c,escape", "cancel", "Cancel", tooltip="Do nothing", id="leave.stay"),
        Binding("left,up", "app.focus_previous", show=False),
        Binding("right,down", "app.focus_next", show=False),
    ]

    def __init__(self, name: str, step: int, *, apart: bool = False) -> None:
        """`apart` says that the run has processes of its own already."""
        super().__init__()
        self._run, self._step, self._apart = name, step, apart

    def compose(self) -> ComposeResult:
        """Question, explanation, three buttons."""
        with Vertical(classes="dialog"):
            yield Label(Content.styled("Quit while a run is in training?", "bold"))
            alone = (
                "It trains in processes of its own, which need no terminal and can go on;"
                if self._apart
                else "It can go on in a process of its own that needs no terminal;"
            )
            yield Label(
                f"{self._run} is at step {self._step:,}. {alone} a workbench opened later finds "
                "it. Or it saves a checkpoint and ends, and can be resumed.",
                classes="explanation",
            )
            with Horizontal(classes="buttons"):
                for answer, key, label in (
                    ("leave", "l", "Leave it running"),
                    ("stop", "s", "Stop and save"),
                    ("stay", "c", "Cancel"),
                ):
                    yield Button(
                        Content.assemble((key, "underline"), f"  {label}"), id=answer, compact=True
                    )

    @on(Button.Pressed)
    def _press(self, event: Button.Pressed) -> None:
        self.action_answer(event.button.id or "stay")

    def action_cancel(self) -> None:
        """Close, and do nothing."""
        self.dismiss("stay")

    @irreversible
    def action_answer(self, answer: str) -> None:
        """Close with the answer."""
        answers: dict[str, Leaving] = {"leave": "leave", "stop": "stop"}
        self.dismiss(answers.get(answer, "stay"))


class Saving(ModalScreen[None]):
    """Say that the trainer saves or hands over; it goes away with the program."""

    CSS_PATH = "dialogs.tcss"

    def __init__(self, name: str, *, leaving: bool = False) -> None:
        super().__init__()
        self._run = name
        self._leaving = leaving

    def compose(self) -> ComposeResult:
        """Two sentences."""
        with Vertical(classes="dialog"):
            yield Label(Content.styled("Handing over…" if self._leaving else "Saving…", "bold"))
            yield Label(
                f"{self._run} trains on while a process of its own gets ready and takes it over; "
                "then the workbench closes."
                if self._leaving
                else f"{self._run} finishes its step and saves a checkpoint; "
                "then the workbench closes.",
                classes="explanation",
            )
