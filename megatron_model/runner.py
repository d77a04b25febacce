"""A run: the trainer together with its folder. Prepares, resumes, records, saves, and obeys.

`run_training` is the one way a run is trained, with a screen or without.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path

import torch

from megatron_model import events
from megatron_model.allocator import keep_freed_memory
from megatron_model.checkpoint import (
    load_training,
    load_weights,
    save_checkpoint,
    save_plain_weights,
)
from megatron_model.config import RunConfig, differences
from megatron_model.control import Command, Control
from megatron_model.corpus import find_corpus
from megatron_model.device import MemoryMeter, available_cores
from megatron_model.errors import RequestError, RunFailedError
from megatron_model.events import RECORDED, Event
from megatron_model.files import clear_leftovers
from megatron_model.run_folder import (
    CHECKPOINTS,
    FINAL_WEIGHTS_FILE,
    Checkpoint,
    EventLog,
    RunFolder,
)
from megatron_model.text import safe
from megatron_model.token_cache import PreparedCorpus, prepare_corpus, split
from megatron_model.tokenizer import CharTokenizer
from megatron_model.trainer import Trainer

MEMORY_SECONDS = 2.0

_FIXED = ("model.", "data.encoding", "data.validation_fraction", "training.optimizer")
"""Beginnings of the settings that a run's checkpoints depend on."""

_logger = logging.getLogger(__name__)


def run_training(
    folder: RunFolder, control: Control, *, config: RunConfig | None = None
) -> Iterator[Event]:
    """Train the run in `folder` from its latest checkpoint, or from the start, to its end.

    Every event is yielded; those of lasting interest are in the folder's log by then. What
    `control` brings is done between two steps. `config` is what to go on with instead of the
    folder's own settings; it is written there once it is known to work.

    Raises:
        RequestError: before `RunStarted`, when what was asked cannot be done. The folder of a run
            that never began is removed.
    """
    with folder.lock():
        fresh = not folder.events_path.exists() and folder.latest_checkpoint() is None
        try:
            session = yield from _prepare(folder, control, config)
        except RequestError:
            if fresh:
                shutil.rmtree(folder.path)
            raise
        log = EventLog(folder)
        try:
            for event in session.run():
                if isinstance(event, RECORDED):
                    try:
                        log.append(
                            event, sync=isinstance(event, (events.RunFinished, events.RunFailed))
                        )
                    except OSError as error:
                        yield session.cannot_write(error)
                        return
                yield event
        finally:
            log.close()


def _prepare(
    folder: RunFolder, control: Control, changed: RunConfig | None
) -> Generator[Event, None, _Session]:
    """Read the corpus, build the trainer and bring it to the latest checkpoint that is whole."""
    config = changed or folder.config
    _check_changes(folder, config)
    yield events.PhaseChanged(step=0, phase="preparing")
    source = find_corpus(config.data.corpus)
    prepared = yield from prepare_corpus(source, config.data.encoding)
    known = folder.corpus_fingerprint
    if known and known != prepared.fingerprint:
        raise RequestError(
            f"The corpus {safe(config.data.corpus)} has changed since this run began; "
            "bring the old text back, or start a new run."
        )
    train, validation = split(prepared, config.data.validation_fraction, config.model.block_size)
    yield events.PhaseChanged(step=0, phase="loading")
    keep_freed_memory()
    torch.set_num_threads(config.training.threads or available_cores())
    try:
        trainer = Trainer(
            config, CharTokenizer.from_vocabulary(prepared.vocabulary), train, validation
        )
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise RequestError(_memory_advice(config)) from error
    clear_leftovers(folder.path / CHECKPOINTS)
    _restore(folder, trainer)
    if changed or not known:
        folder.write_config(config, fingerprint=prepared.fingerprint)
    return _Session(folder, control, trainer, prepared)


def _check_changes(folder: RunFolder, config: RunConfig) -> None:
    """Refuse a change of what the checkpoints were made with."""
    if folder.latest_checkpoint() is None:
        return
    for key in differences(config, folder.config):
        if key.startswith(_FIXED) and key != "model.dropout":
            raise RequestError(
                f"{key} cannot change in a run that has begun; start a new run with it."
            )


def _restore(folder: RunFolder, trainer: Trainer) -> None:
    """Load the newest checkpoint that can be read; unreadable ones after it are set aside."""
    unreadable: list[Checkpoint] = []
    first_error = ""
    for checkpoint in reversed(folder.checkpoints()):
        try:
            trainer.load(load_weights(checkpoint.path), load_training(checkpoint.path))
        except (RequestError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = f"{checkpoint.path.name}: {safe(str(error), one_line=True)}"
            first_error = first_error or reason
            _logger.warning("checkpoint passed over: %s", reason)
            unreadable.append(checkpoint)
            continue
        for damaged in unreadable:
            # Left under its name it would pass for the newest, or the best.
            damaged.path.rename(_free_path(damaged.path.with_name(f"damaged-{damaged.path.name}")))
        return
    if unreadable:
        raise RequestError(f"No checkpoint of this run can be read ({first_error}).")


def _free_path(path: Path) -> Path:
    number, free = 2, path
    while free.exists():
        number, free = number + 1, path.with_name(f"{path.name}-{number}")
    return free


class _Session:
    """One stretch of training in one process, from `RunStarted` to `RunFinished` or `RunFailed`."""

    def __init__(
        self, folder: RunFolder, control: Control, trainer: Trainer, prepared: PreparedCorpus
    ) -> None:
        self._folder = folder
        self._control = control
        self._trainer = trainer
        self._prepared = prepared
        self._config = trainer.config
        self._meter = MemoryMeter(trainer.device)
        self._next_memory = 0.0
        self._saved_best = trainer.best_val_loss
        self._stopping = False
        self._waiting: deque[Command] = deque()
        """Commands that were taken, but not yet obeyed."""

    def run(self) -> Iterator[Event]:
        """Yield everything that happens; a failure is an event, not an exception."""
        yield self._started()
        try:
            yield from self._train()
        except RunFailedError as error:
            yield self._failed(str(error))
        except OSError as error:
            yield self.cannot_write(error)
        except Exception as error:
            if _is_out_of_memory(error):
                yield self._failed(_memory_advice(self._config))
                return
            # A defect of ours: the run says so in its log, and the traceback goes to the logger.
            _logger.exception("training ended by an unexpected error")
            yield self._failed(
                f"Unexpected {type(error).__name__}: {safe(str(error), one_line=True)}"
            )

    def _started(self) -> Event:
        trainer, config = self._trainer, self._config
        return events.RunStarted(
            step=trainer.step,
            name=self._folder.name,
            corpus=config.data.corpus,
            characters=self._prepared.characters,
            vocabulary_size=trainer.tokenizer.vocab_size,
            parameters=sum(p.numel() for p in trainer.model.parameters()),
            steps=config.training.steps,
            device=str(trainer.device),
            precision=str(trainer.dtype).removeprefix("torch."),
            max_seconds=config.training.max_seconds,
            batch_size=config.training.batch_size,
            block_size=config.model.block_size,
            unigram_entropy=self._prepared.unigram_entropy,
            elapsed_seconds=trainer.elapsed_seconds,
        )

    def cannot_write(self, error: OSError) -> Event:
        """Return the end of a run whose folder cannot be written."""
        return self._failed(
            f"Cannot write {safe(str(error.filename or self._folder.path))}: {error.strerror}. "
            "Make room or give permission, then resume."
        )

    def _failed(self, error: str) -> Event:
        return events.RunFailed(step=self._trainer.step, error=error)

    def _train(self) -> Iterator[Event]:
        trainer = self._trainer
        for event in trainer.run():
            yield event
            if isinstance(event, events.StepTaken):
                yield from self._between_steps()
            elif isinstance(event, events.WorkProgress):
                yield from self._obey(in_validation=True)
            if self._stopping:
                break
        if self._saved_step() != trainer.step:
            yield from self._save()
        self._export_best()
        budget = bool(self._config.training.max_seconds)
        yield events.RunFinished(
            step=trainer.step,
            reason="stopped" if self._stopping else "budget" if budget else "completed",
            elapsed_seconds=trainer.elapsed_seconds,
        )

    def _between_steps(self) -> Iterator[Event]:
        trainer = self._trainer
        now = time.monotonic()
        if now >= self._next_memory:
            self._next_memory = now + MEMORY_SECONDS
            sample = self._meter.sample(trainer.step)
            if sample is not None:
                yield sample
        if self._improved or trainer.step % self._config.training.checkpoint_every == 0:
            yield from self._save()
            if trainer.progress < 1.0:
                yield events.PhaseChanged(step=trainer.step, phase="training")
        yield from self._obey()

    @property
    def _improved(self) -> bool:
        """Whether the weights as they are now are better than every saved checkpoint."""
        loss = self._trainer.val_loss
        return loss is not None and loss < self._saved_best

    def _obey(self, *, in_validation: bool = False) -> Iterator[Event]:
        """Do what was asked; a pause lasts until it is taken back.

        In the middle of a validation that is a pause or a stop; the rest waits for its end.
        """
        paused = False
        later: list[Command] = []
        while not self._stopping:
            command = self._waiting.popleft() if self._waiting else self._control.take()
            if command == "stop":
                self._stopping = True
            elif command == "pause" and not paused:
                paused = True
                self._trainer.stopwatch.pause()
                yield events.RunPaused(step=self._trainer.step)
            elif command == "resume" and paused:
                paused = False
                self._trainer.stopwatch.resume()
                yield events.RunResumed(step=self._trainer.step)
            elif command in ("save", "evaluate", "sample"):
                if in_validation:
                    later.append(command)
                    continue
                yield from self._do(command)
                back: events.Phase = "paused" if paused else "training"
                yield events.PhaseChanged(step=self._trainer.step, phase=back)
            elif command is None:
                if not paused:
                    break
                self._control.wait()
        self._waiting.extend(later)

    def _do(self, command: Command) -> Iterator[Event]:
        if command == "save":
            yield from self._save()
        elif command == "sample":
            yield from self._trainer.sample()
        else:
            for event in self._trainer.evaluate():
                yield event
                if isinstance(event, events.WorkProgress) and self._stop_is_asked():
                    return
            if self._improved:
                yield from self._save()

    def _stop_is_asked(self) -> bool:
        while (command := self._control.take()) is not None:
            self._waiting.append(command)
        return "stop" in self._waiting

    def _save(self) -> Iterator[Event]:
        trainer = self._trainer
        yield events.PhaseChanged(step=trainer.step, phase="saving")
        path = self._folder.checkpoint_path(trainer.step)
        save_checkpoint(
            path,
            model=trainer.model,
            tokenizer=trainer.tokenizer,
            config=self._config,
            training=trainer.state(),
        )
        if trainer.val_loss is not None:
            self._saved_best = min(self._saved_best, trainer.val_loss)
        self._folder.prune_checkpoints(self._config.training.keep_checkpoints)
        yield events.CheckpointSaved(
            step=trainer.step,
            path=str(path.relative_to(self._folder.path)),
            val_loss=trainer.val_loss,
        )

    def _saved_step(self) -> int | None:
        """Return the step of the newest checkpoint if it knows all that the trainer knows now."""
        newest: Checkpoint | None = self._folder.latest_checkpoint()
        if newest is None or newest.val_loss != self._trainer.val_loss:
            return None
        return newest.step

    def _export_best(self) -> None:
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


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU torch reports it as any other RuntimeError.
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _memory_advice(config: RunConfig) -> str:
    training, model = config.training, config.model
    smaller = f"training.batch_size {max(1, training.batch_size // 2)} (now {training.batch_size})"
    return (
        f"The device is out of memory; try {smaller} or a smaller model.embed_dim "
        f"({model.embed_dim})."
    )
