"""Quitting while a run is in training: ask what becomes of it, and close once that has happened."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from textual.app import App

from megatron_model.util.errors import RequestError
from megatron_tui.services.training import TrainingService
from megatron_tui.ui.dialogs import Leave, Leaving, Saving


class Quitting:
    """The way out of an app that may have a run in training.

    Args:
        app: what is to be closed.
        training: what may be at work.
        complain: tells the person why it cannot be done.
    """

    def __init__(
        self,
        app: App[Any],
        training: TrainingService,
        complain: Callable[[RequestError], None],
    ) -> None:
        self._app, self._training, self._complain = app, training, complain
        self.under_way = False
        """Whether an answer was given, and the trainer saves or hands over."""

    def begin(self) -> None:
        """Close; ask first if a run is in training."""
        run = self._training.own
        if run is None:
            self._app.exit()
        elif not self.under_way and not isinstance(self._app.screen, Leave):
            self._app.push_screen(Leave(run.name, run.state.step, apart=run.detached), self._obey)

    def _obey(self, answer: Leaving | None) -> None:
        run = self._training.own
        if answer not in ("leave", "stop"):
            return
        if run is None or (answer == "leave" and run.detached):
            self._app.exit()  # it has processes of its own already
            return
        try:
            if answer == "leave":
                self._training.hand_over()
            else:
                run.command("stop")
        except RequestError as error:
            self._complain(error)
            return
        self.under_way = True
        self._app.push_screen(Saving(run.name, leaving=answer == "leave"))

    def trainer_ended(self) -> None:
        """Close now, if that is what was waited for."""
        if self.under_way and self._training.training is None:
            self._app.exit()

    def trainer_stays(self) -> None:
        """Stay: no process took the run over, and it trains on here."""
        if self.under_way and self._training.training is not None:
            self.under_way = False
            if isinstance(self._app.screen, Saving):
                self._app.screen.dismiss()
