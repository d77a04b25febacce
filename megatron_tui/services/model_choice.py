"""Which weights a text can be written with: best, latest, those in training now, or any saved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_model.run.folder import MODEL_FILE, Checkpoint, RunFolder, list_runs
from megatron_model.util.errors import RequestError
from megatron_model.util.files import seen_harmed
from megatron_model.util.text import safe
from megatron_tui.services.model_cache import Live, Weights
from megatron_tui.services.training import TrainingService
from megatron_tui.ui import formatting

LIVE = "live"


@dataclass(frozen=True)
class ModelChoice:
    """Some weights of a run, and their names."""

    folder: RunFolder
    name: str
    """``best``, ``latest``, ``live`` or ``step 400``."""
    weights: Weights
    checkpoint: Checkpoint | None = None

    @property
    def run(self) -> str:
        """Name of the run, harmless to show."""
        return safe(self.folder.name, one_line=True)

    @property
    def is_damaged(self) -> bool:
        """Whether loading them found that they are not what was saved."""
        return isinstance(self.weights, Path) and seen_harmed(self.weights)

    @property
    def words(self) -> str:
        """The weights in words, such as ``best, step 400``."""
        if self.checkpoint is None or self.name.startswith("step"):
            return self.name
        return f"{self.name}, step {self.checkpoint.step:,}"

    @property
    def title(self) -> str:
        """Run and weights, such as ``tale, best, step 400``."""
        return f"{self.run}, {self.words}"

    @property
    def about(self) -> str:
        """What is known of them before they are loaded."""
        if self.checkpoint is None:
            return "the weights of the run in training, as they are now"
        loss = self.checkpoint.val_loss
        known = f", validation {loss:.3f}" if loss is not None else ""
        return f"step {self.checkpoint.step:,}{known}"


def runs_with_weights(training: TrainingService, runs: list[RunFolder]) -> list[RunFolder]:
    """Return the runs that can write: with a checkpoint, or in training here."""
    trained = training.training.folder.path if training.training is not None else None
    return [run for run in runs if run.path == trained or run.latest_checkpoint() is not None]


def list_writing_runs(training: TrainingService, runs_dir: Path) -> list[RunFolder]:
    """Return every run that can write, newest first; none where the folder cannot be read."""
    try:
        return runs_with_weights(training, list_runs(runs_dir))
    except RequestError:
        return []


def model_choices(folder: RunFolder, training: TrainingService) -> list[ModelChoice]:
    """Return the weights of a run: best, latest, live while it is trained here, then each step."""
    found: list[ModelChoice] = []
    # One that could not be loaded because it is damaged is left out from then on.
    for name in ("best", "latest"):
        found += [_saved(folder, name, c) for c in folder.readable_checkpoints(name)[:1]]
    run = training.training
    if run is not None and run.folder.path == folder.path:
        live = Live(folder.path, training.ask_for_weights, lambda: training.training is not run)
        found.append(ModelChoice(folder, LIVE, live))
    return found + [_saved(folder, f"step {c.step:,}", c) for c in folder.readable_checkpoints()]


def why_not_live(folder: RunFolder, training: TrainingService) -> str:
    """Return why there are no live weights of a run that is trained, but not here."""
    run = training.training
    if (run is not None and run.folder.path == folder.path) or not folder.is_active():
        return ""
    return (
        "The run trains in processes of its own, so its live weights cannot be copied; s on the "
        "Training screen saves them, and latest is then those."
    )


def _saved(folder: RunFolder, name: str, checkpoint: Checkpoint) -> ModelChoice:
    return ModelChoice(folder, name, checkpoint.path / MODEL_FILE, checkpoint)


def cost_of_copying(seconds: float, training: TrainingService) -> str:
    """Return what it cost the run in training that its weights were copied."""
    run = training.training
    paused = f"training paused {_milliseconds(seconds)}"
    if run is None or not run.state.speed.values:
        return paused
    return f"{paused}, {formatting.count(seconds * run.state.speed.values[-1])} characters"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"
