"""What the Runs screen says about each run, read from its folder. No widgets."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from megatron_model.errors import RequestError
from megatron_model.run_folder import RunFolder
from megatron_model.run_state import RunState
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.open_run import OpenRun, Standing


@dataclass(frozen=True)
class RunRow:
    """One run in one line."""

    folder: RunFolder
    name: str
    standing: Standing
    step: int
    steps: int
    """Of the whole run; 0 where they are not known, or a time budget ends it."""
    budget: float
    """Seconds that the run was given, if it used them up."""
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


class KnownRuns:
    """The states of the runs that were read before: of their logs only what is new is read."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[int, RunState, int]] = {}
        self._lock = threading.Lock()

    def state(self, folder: RunFolder) -> RunState:
        """Return the present state of a run."""
        try:
            found = folder.events_path.stat()
        except OSError:
            return folder.state()
        with self._lock:
            number, state, offset = self._known.get(folder.path, (0, RunState(), 0))
            if number != found.st_ino or found.st_size < offset:
                state, offset = folder.fold()  # another file than before
            else:
                events, offset = folder.read_events(offset)
                for event in events:
                    state.apply(event)
            self._known[folder.path] = (found.st_ino, state, offset)
            return state


def read_row(
    folder: RunFolder, own: OpenRun | None = None, known: KnownRuns | None = None
) -> RunRow:
    """Read one run; `own`, where it was started by this process, is taken as it is."""
    if own is not None:
        run = own
    else:
        read = (known or KnownRuns()).state(folder)
        run = OpenRun(folder, read, active=folder.is_alive(read))
    state = run.state
    try:
        config = folder.config
        model = config.model
        corpus, budget = config.data.corpus, config.training.max_seconds
        steps = 0 if budget else config.training.steps
        words = (
            f"{model.architecture}, {model.layers} layers of {model.embed_dim}, "
            f"{model.heads} heads, block {model.block_size}"
        )
    except RequestError as error:
        corpus, steps, budget, words = "", 0, 0.0, safe(str(error), one_line=True)
    return RunRow(
        folder=folder,
        name=run.name,
        standing=run.standing,
        step=state.step,
        steps=steps,
        budget=budget if run.state.finish_reason == "budget" else 0.0,
        best_val_loss=state.best_val_loss,
        last_time=state.last_time,
        corpus=safe(corpus, one_line=True),
        model=words,
        active=run.active,
        resumable=run.resumable,
    )
