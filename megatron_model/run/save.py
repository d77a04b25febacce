"""Writing checkpoints: at once, or, where they are large, by a thread beside training.

What is written beside is a copy of the state on the host, so that the next steps cannot reach it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

from megatron_model import events
from megatron_model.checkpoint import (
    Snapshot,
    load_weights,
    save_plain_weights,
    write_checkpoint,
)
from megatron_model.config import RunConfig
from megatron_model.errors import RequestError
from megatron_model.events import Event
from megatron_model.run_folder import FINAL_WEIGHTS_FILE, RunFolder
from megatron_model.trainer import Trainer

BESIDE_FROM_BYTES = 64 << 20
"""Size of a checkpoint from which it is worth a thread; a smaller one is written in no time."""

Patience: TypeAlias = Callable[[OSError, Callable[[], None]], Iterator[Event]]
"""What to do when a write failed: tries again until it succeeds, or raises."""

_logger = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one session."""

    def __init__(self, folder: RunFolder, trainer: Trainer, patience: Patience) -> None:
        self._folder = folder
        self._trainer = trainer
        self._patience = patience
        self._saved_best = trainer.best_val_loss
        self._writing: _Writing | None = None

    @property
    def improved(self) -> bool:
        """Whether the weights as they are now are better than every saved checkpoint."""
        loss = self._trainer.val_loss
        return loss is not None and loss < self._saved_best

    def saved_step(self) -> int | None:
        """Return the step of the newest checkpoint if it knows all that the trainer knows now."""
        newest = self._folder.latest_checkpoint()
        if newest is None or newest.val_loss != self._trainer.val_loss:
            return None
        return newest.step

    def save(self, config: RunConfig, *, beside: bool = False) -> Iterator[Event]:
        """Write a checkpoint of the present state; `beside` training, where that is worth it.

        Raises:
            DivergedError: the state is not worth keeping.
            OSError: it cannot be written, and the run was told to end.
        """
        trainer = self._trainer
        yield from self.collect(wait=True)
        yield events.PhaseChanged(step=trainer.step, phase="saving")
        path = self._folder.checkpoint_path(trainer.step)
        weights, state = trainer.learner.weights(), trainer.state()
        snapshot = Snapshot(weights, trainer.tokenizer, config, state)
        if trainer.val_loss is not None:
            self._saved_best = min(self._saved_best, trainer.val_loss)
        if beside and snapshot.size >= BESIDE_FROM_BYTES:
            self._writing = _Writing(path, snapshot.copy())
            return
        try:
            write_checkpoint(path, snapshot)
        except OSError as error:
            yield from self._patience(error, partial(write_checkpoint, path, snapshot))
        yield self._saved(path, snapshot)

    def collect(self, *, wait: bool = False) -> Iterator[Event]:
        """Say that what was written beside training is there, once it is; `wait` for that."""
        writing = self._writing
        if writing is None or not (wait or writing.done):
            return
        self.join()
        self._writing = None
        if isinstance(writing.error, OSError):
            write = partial(write_checkpoint, writing.path, writing.snapshot)
            yield from self._patience(writing.error, write)
        elif writing.error is not None:
            raise writing.error
        yield self._saved(writing.path, writing.snapshot)

    def join(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None:
            self._writing.join()

    def _saved(self, path: Path, snapshot: Snapshot) -> Event:
        self._folder.prune_checkpoints(snapshot.config.training.keep_checkpoints)
        return events.CheckpointSaved(
            step=int(snapshot.training.numbers["step"]),
            path=str(path.relative_to(self._folder.path)),
            val_loss=snapshot.training.numbers["val_loss"],
        )

    def export_best(self) -> None:
        """Write the plain weights of the best checkpoint that can be read."""
        for checkpoint in (self._folder.best_checkpoint(), self._folder.latest_checkpoint()):
            if checkpoint is None:
                continue
            try:
                weights = load_weights(checkpoint.path)
            except RequestError as error:
                _logger.warning("checkpoint not exported: %s", error)
                continue
            save_plain_weights(self._folder.path / FINAL_WEIGHTS_FILE, weights)
            return


class _Writing:
    """A thread that writes one checkpoint."""

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self.path, self.snapshot = path, snapshot
        self.error: Exception | None = None
        # No daemon: the interpreter waits for it, as it would for a save in line.
        self._thread = threading.Thread(target=self._write, name="checkpoint writer")
        self._thread.start()

    def _write(self) -> None:
        try:
            write_checkpoint(self.path, self.snapshot)
        except Exception as error:
            self.error = error

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()
