"""Look at the trainer some times a second; draw what it did as often as the terminal allows."""

from __future__ import annotations

from collections.abc import Callable

from megatron_tui.services.run_handle import RunHandle
from megatron_tui.services.training import TrainingService

POLL_SECONDS = 0.25


class RunPoll:
    """One look at the trainer at a time.

    Args:
        training: what is looked at.
        due: whether the terminal can take a picture again; if so, it is taken to get one.
        draw: shows the present state; returns whether there is a screen to show it on.
    """

    def __init__(
        self, training: TrainingService, due: Callable[[], bool], draw: Callable[[], bool]
    ) -> None:
        self._training, self._due, self._draw = training, due, draw
        self._behind = False
        """Whether the run went on since it was drawn."""
        self._odd = False

    def look(self) -> list[RunHandle]:
        """Take in what happened, draw it if it is time to, and return the runs that ended."""
        training = self._training
        before = (training.training, training.launched)
        self._behind = training.poll() or self._behind
        # A count that goes up is drawn every other time; what is new, at once.
        self._odd = not self._odd and training.only_steps
        soon = not self._odd and self._due()
        if self._behind and (soon or not training.busy) and self._draw():
            self._behind = False
        after = (training.training, training.launched)
        return [run for run in before if run is not None and run not in after]
