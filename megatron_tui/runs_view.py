"""What the Runs screen says about each run, read from its folder. No widgets."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_model.errors import RequestError
from megatron_model.run_folder import RunFolder
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.training_service import OpenRun, Standing


@dataclass(frozen=True)
class RunRow:
    """One run in one line."""

    folder: RunFolder
    name: str
    standing: Standing
    step: int
    steps: int
    best_val_loss: float | None
    last_time: float
    corpus: str
    model: str
    """The model in a few words."""
    active: bool
    resumable: bool

    def age(self, now: float) -> str:
        """Return how long ago the run was last heard of."""
        return (
            formatting.age(max(0.0, now - self.last_time)) if self.last_time else formatting.MISSING
        )


def read_row(folder: RunFolder, trained_here: OpenRun | None = None) -> RunRow:
    """Read one run; the one trained by this process is taken as it is."""
    if trained_here is not None and trained_here.folder.path == folder.path:
        run = trained_here
    else:
        read = folder.state()
        run = OpenRun(folder, read, active=folder.is_alive(read))
    state = run.state
    try:
        config = folder.config
        model = config.model
        corpus, steps = config.data.corpus, config.training.steps
        words = (
            f"{model.architecture}, {model.layers} layers of {model.embed_dim}, "
            f"{model.heads} heads, block {model.block_size}"
        )
    except RequestError as error:
        corpus, steps, words = "", 0, safe(str(error), one_line=True)
    return RunRow(
        folder=folder,
        name=run.name,
        standing=run.standing,
        step=state.step,
        steps=steps,
        best_val_loss=state.best_val_loss,
        last_time=state.last_time,
        corpus=safe(corpus, one_line=True),
        model=words,
        active=run.active,
        resumable=run.resumable,
    )
