"""Saving checkpoints: in line, or, where they are large, in a thread while training continues.

The thread writes a copy of the state on the host, which the next steps cannot change.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

from megatron_model.config.fields import RunConfig
from megatron_model.events import schema as events
from megatron_model.events.schema import Event
from megatron_model.run.checkpoint import (
    Snapshot,
    load_weights,
    save_plain_weights,
    write_checkpoint,
)
from megatron_model.run.folder import FINAL_WEIGHTS_FILE, RunFolder
from megatron_model.training.trainer import Trainer

BACKGROUND_FROM_BYTES = 64 << 20
"""Size of a checkpoint from which it is worth a thread; a smaller one is written at once."""

FIRST_BYTES_PER_SECOND = 1e8
"""How fast a disk is thought to be before anything was written to it."""

RetryPolicy: TypeAlias = Callable[[OSError, Callable[[], None]], Iterator[Event]]
"""What to do when a write failed: tries again until it succeeds, or raises."""

_logger = logging.getLogger(__name__)


class Saver:
    """The checkpoints of one session."""

    def __init__(self, folder: RunFolder, trainer: Trainer, retry: RetryPolicy) -> None:
        self._folder = folder
        self._trainer = trainer
        self._retry = retry
        self._identity = folder.read_identity()
        self._saved_best = trainer.best_val_loss
        self._writing: _Writing | None = None
        parameters = sum(4 * value.numel() for value in trainer.model.parameters())
        # Weights and the optimizer's two numbers for each; then the weights once more.
        self._writing_seconds = 3 * parameters / FIRST_BYTES_PER_SECOND
        self._export_seconds = parameters / FIRST_BYTES_PER_SECOND
        self._tell_seconds()

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

    def save(self, config: RunConfig, *, in_background: bool = False) -> Iterator[Event]:
        """Write a checkpoint of the present state; `in_background` where that is worth it.

        Raises:
            DivergedError: the state is not worth keeping.
            OSError: it cannot be written, and the run was told to end.
        """
        trainer = self._trainer
        yield from self.collect(wait=True)
        yield events.PhaseChanged(step=trainer.step, phase="saving")
        path = self._folder.checkpoint_path(trainer.step)
        weights, state = trainer.learner.weights(), trainer.state()
        snapshot = Snapshot(weights, trainer.tokenizer, config, state, self._identity)
        if trainer.val_loss is not None:
            self._saved_best = min(self._saved_best, trainer.val_loss)
        if in_background and snapshot.size >= BACKGROUND_FROM_BYTES:
            self._writing = _Writing(path, snapshot.copy())
            return
        start = time.perf_counter()
        try:
            write_checkpoint(path, snapshot)
        except OSError as error:
            yield from self._retry(error, partial(write_checkpoint, path, snapshot))
        else:
            self._writing_seconds = time.perf_counter() - start
            self._tell_seconds()
        yield self._saved(path, snapshot)

    def _tell_seconds(self) -> None:
        """Let the trainer leave time for what is written at the end of a time budget."""
        self._trainer.saving_seconds = self._writing_seconds + self._export_seconds

    def collect(self, *, wait: bool = False) -> Iterator[Event]:
        """Report the checkpoint written in the background once it is there; `wait` for it."""
        writing = self._writing
        if writing is None or not (wait or writing.done):
            return
        self.join()
        self._writing = None
        if isinstance(writing.error, OSError):
            write = partial(write_checkpoint, writing.path, writing.snapshot)
            yield from self._retry(writing.error, write)
        elif writing.error is not None:
            raise writing.error
        else:
            self._writing_seconds = writing.seconds
            self._tell_seconds()
        yield self._saved(writing.path, writing.snapshot)

    def join(self) -> None:
        """Wait until nothing is being written."""
        if self._writing is not None:
            self._writing.join()

    def _saved(self, path: Path, snapshot: Snapshot) -> Event:
        self._folder.prune_checkpoints(snapshot.config.training.keep_checkpoints)
        return events.CheckpointSaved(
            step=snapshot.training.scalars.step,
            path=str(path.relative_to(self._folder.path)),
            val_loss=snapshot.training.scalars.val_loss,
        )

    def export_best(self) -> None:
        """Write the plain weights of the best checkpoint that can be read."""
        checkpoint = self._folder.sound_checkpoint("best", _logger.warning)
        if checkpoint is not None:
            weights = load_weights(checkpoint.path)
            save_plain_weights(self._folder.path / FINAL_WEIGHTS_FILE, weights)


class _Writing:
    """A thread that writes one checkpoint."""

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self.path, self.snapshot = path, snapshot
        self.error: Exception | None = None
        self.seconds = 0.0
        # No daemon: the interpreter waits for it, as it would for a save in line.
        self._thread = threading.Thread(target=self._write, name="checkpoint writer")
        self._thread.start()

    def _write(self) -> None:
        start = time.perf_counter()
        try:
            write_checkpoint(self.path, self.snapshot)
            self.seconds = time.perf_counter() - start
        except Exception as error:
            self.error = error

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()
