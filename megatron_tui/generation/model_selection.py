"""Which run and which of its weights write: what there is to choose from, and what is chosen."""

from __future__ import annotations

from megatron_model.run.folder import RunFolder
from megatron_model.util.text import safe
from megatron_tui.services.model_choice import (
    LIVE,
    ModelChoice,
    cost_of_copying,
    list_writing_runs,
    model_choices,
    why_not_live,
)
from megatron_tui.services.workbench import Workbench


class ModelSelection:
    """Chooses by name, and has the generation service load what is chosen."""

    def __init__(self, workbench: Workbench) -> None:
        self._workbench = workbench
        self._runs: list[RunFolder] = []
        self.run = ""
        """Name of the chosen run, harmless to show."""
        self.weights = "best"
        """Name of the chosen weights."""
        self.weight_names: list[str] = []
        """The weights that are chosen by name; the single steps are too many for that."""
        self.chosen: ModelChoice | None = None

    @property
    def run_names(self) -> list[str]:
        """Every run that can write, newest first."""
        return [safe(folder.name, one_line=True) for folder in self._runs]

    @property
    def choices(self) -> list[ModelChoice]:
        """All weights of the chosen run."""
        folder = self._folder(self.run)
        return model_choices(folder, self._workbench.training) if folder is not None else []

    def list_runs(self) -> None:
        """Look for runs again; a run that another screen asked for is then chosen."""
        workbench = self._workbench
        self._runs = list_writing_runs(workbench.training, workbench.runs_dir)
        names, wanted = self.run_names, workbench.chosen_run
        name = safe(wanted.name, one_line=True) if wanted is not None else ""
        if name in names:
            self.run = name
        elif self.run not in names:
            self.run = names[0] if names else ""

    def choose_run(self, name: str) -> None:
        """Write with a run, here and wherever a run to write with is asked for."""
        folder = self._folder(name)
        if folder is not None:
            self.run, self._workbench.chosen_run = name, folder

    def update(self, *, load: bool = True) -> None:
        """Find the weights of the chosen name, else the best; load them for their vocabulary."""
        choices = self.choices
        self.weight_names = [one.name for one in choices if not one.name.startswith("step")]
        named = [one for one in choices if one.name == self.weights]
        self.chosen = next(iter(named or choices), None)
        if self.chosen is None:
            return
        self.weights = self.chosen.name
        generation = self._workbench.generation
        if load and generation.status.weights != self.chosen.weights:
            generation.load(self.chosen.weights)

    @property
    def is_damaged(self) -> bool:
        """Whether loading the chosen weights found them damaged: they can be chosen no longer."""
        return self.chosen is not None and self.chosen.is_damaged

    @property
    def copying_cost(self) -> str:
        """What it cost the run in training to copy the chosen live weights; else empty."""
        seconds = self._workbench.generation.status.pause_seconds
        if seconds is None or self.chosen is None or self.chosen.name != LIVE:
            return ""
        return cost_of_copying(seconds, self._workbench.training)

    @property
    def why_not_live(self) -> str:
        """Why there are no live weights of the chosen run, where one might expect them."""
        folder = self._folder(self.run)
        return why_not_live(folder, self._workbench.training) if folder is not None else ""

    def _folder(self, name: str) -> RunFolder | None:
        named = (folder for folder in self._runs if safe(folder.name, one_line=True) == name)
        return next(named, None)
