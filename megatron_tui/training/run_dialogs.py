"""The questions behind the keys that stop, change or fork a run, and what the answers do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from textual.message import Message

from megatron_model.run.fork import fork_name, nearest_checkpoint
from megatron_model.util.errors import RequestError
from megatron_tui.messages import CommandGiven, ForkRequested
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.training import fork_form
from megatron_tui.training.stop_dialog import Ending, StopRun
from megatron_tui.ui.ask_values import AskValues, Question
from megatron_tui.ui.modal import ModalScreen

T = TypeVar("T")


class Ask(Protocol):
    """Shows a dialog; its answer, if there is one, is handed to `take`."""

    def __call__(self, dialog: ModalScreen[T], take: Callable[[T], None], /) -> None:
        """Show the dialog."""


class RunDialogs:
    """Asks what a command needs to know, then sends it.

    Args:
        ask: shows a dialog.
        send: sends what was asked for to the app.
    """

    def __init__(self, ask: Ask, send: Callable[[Message], object]) -> None:
        self._ask = ask
        self._send = send

    def stop(self, run: RunHandle) -> None:
        """Ask how the run is to end."""

        def stop(ending: Ending) -> None:
            if ending:
                self._send(CommandGiven(ending))

        state = run.state
        self._ask(StopRun(run.name, state.step, state.last_checkpoint_step), stop)

    def change(self, run: RunHandle) -> None:
        """Ask for another learning rate or number of steps.

        Raises:
            RequestError: the run's settings cannot be read.
        """
        config = run.folder.read_config()
        form = AskValues(
            "Change settings live",
            "Takes effect at the next step; a checkpoint is saved first so the run stays "
            "reproducible.",
            _questions(fork_form.ask_texts(config, fork_form.live_keys(config))),
            lambda texts: fork_form.live_changes(config, run.state, texts),
            yes="Change it",
        )

        def change(texts: dict[str, str]) -> None:
            for change in fork_form.live_changes(config, run.state, texts):
                self._send(CommandGiven(change))

        self._ask(form, change)

    def fork(self, run: RunHandle, near: int | None) -> None:
        """Ask for the settings of a new run from the checkpoint nearest to the step `near`.

        Raises:
            RequestError: the run has no checkpoint, or its settings cannot be read.
        """
        folder = run.folder
        config = folder.read_config()
        checkpoint = nearest_checkpoint(folder, near)
        if checkpoint is None:
            raise RequestError("This run has no checkpoint on disk to start from.")
        nearest = f", the nearest to step {near:,}" if near else ""
        name = fork_name(folder, checkpoint.step)
        form = AskValues(
            f"Fork at step {checkpoint.step:,}",
            f"A new run from {run.name}'s checkpoint of step {checkpoint.step:,}{nearest}: its "
            "weights and optimizer, these settings.",
            [
                Question("name", "name", name),
                *_questions(fork_form.ask_texts(config, fork_form.fork_keys(config))),
            ],
            lambda texts: fork_form.fork_config(folder, config, checkpoint, texts),
            yes="Start it",
        )

        def fork(texts: dict[str, str]) -> None:
            child, changed = fork_form.fork_config(folder, config, checkpoint, texts)
            self._send(ForkRequested(folder, checkpoint, child, changed))

        self._ask(form, fork)


def _questions(rows: list[tuple[str, str, str]]) -> list[Question]:
    return [Question(*row) for row in rows]
