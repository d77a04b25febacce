"""A run: the trainer together with its folder. Prepares, resumes, records, saves, and obeys.

`run_training` is the one way a run is trained, with a screen or without.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Generator, Iterator

import torch

from megatron_model import events
from megatron_model.checkpoint import (
    load_training,
    load_weights,
    save_checkpoint,
    save_plain_weights,
)
from megatron_model.config import RunConfig
from megatron_model.control import Command, Control
from megatron_model.corpus import find_corpus
from megatron_model.device import MemoryMeter, available_cores
from megatron_model.errors import RequestError, RunFailedError
from megatron_model.events import RECORDED, Event
from megatron_model.run_folder import FINAL_WEIGHTS_FILE, Checkpoint, EventLog, RunFolder
from megatron_model.text import safe
from megatron_model.token_cache import PreparedCorpus, prepare_corpus, split
from megatron_model.tokenizer import CharTokenizer
from megatron_model.trainer import Trainer

MEMORY_SECONDS = 2.0

_logger = logging.getLogger(__name__)


def run_training(folder: RunFolder, control: Control) -> Iterator[Event]:
    """Train the run in `folder` from its latest checkpoint, or from the start, to its end.

    Every event is yielded; those of lasting interest are in the folder's log by then. What
    `control` brings is done between two steps.

    Raises:
        RequestError: before `RunStarted`, when what was asked cannot be done. The folder of a run
            that never began is removed.
    """
    with folder.lock():
        fresh = not folder.events_path.exists() and folder.latest_checkpoint() is None
        try:
            session = yield from _prepare(folder, control)
        except RequestError:
            if fresh:
                shutil.rmtree(folder.path)
            raise
        log = EventLog(folder)
        try:
            for event in session.run():
                if isinstance(event, RECORDED):
                    log.append(
                        event, sync=isinstance(event, (events.RunFinished, events.RunFailed))
                    )
                yield event
        finally:
            log.close()


def _prepare(folder: RunFolder, control: Control) -> Generator[Event, None, _Session]:
    """Read the corpus, build the trainer and bring it to the latest checkpoint that is whole."""
    config = folder.config
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
    torch.set_num_threads(config.training.threads or available_cores())
    try:
        trainer = Trainer(
            config, CharTokenizer.from_vocabulary(prepared.vocabulary), train, validation
        )
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RequestError(_memory_advice(config)) from error
    for leftover in folder.path.glob("checkpoints/.*"):
        shutil.rmtree(leftover, ignore_errors=True)
    _restore(folder, trainer)
    if not known:
        folder.write_config(config, fingerprint=prepared.fingerprint)
    return _Session(folder, control, trainer, prepared)


def _restore(folder: RunFolder, trainer: Trainer) -> None:
    """Load the newest checkpoint that can be read; an unreadable one is passed over."""
    errors = []
    for checkpoint in reversed(folder.checkpoints()):
        try:
            trainer.load(load_weights(checkpoint.path), load_training(checkpoint.path))
        except (RequestError, KeyError, RuntimeError, TypeError, ValueError) as error:
            errors.append(f"{checkpoint.path.name}: {safe(str(error), one_line=True)}")
            _logger.warning("checkpoint passed over: %s", errors[-1])
            continue
        return
    if errors:
        raise RequestError(f"No checkpoint of this run can be read ({errors[0]}).")


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

    def run(self) -> Iterator[Event]:
        """Yield everything that happens; a failure is an event, not an exception."""
        yield self._started()
        try:
            yield from self._train()
        except RunFailedError as error:
            yield self._failed(str(error))
        except (torch.OutOfMemoryError, MemoryError):
            yield self._failed(_memory_advice(self._config))
        except OSError as error:
            yield self._failed(
                f"Cannot write {safe(str(error.filename or self._folder.path))}: {error.strerror}. "
                "Make room or give permission, then resume."
            )
        except Exception as error:
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

    def _failed(self, error: str) -> Event:
        return events.RunFailed(step=self._trainer.step, error=error)

    def _train(self) -> Iterator[Event]:
        trainer = self._trainer
        for event in trainer.run():
            yield event
            if isinstance(event, events.StepTaken):
                yield from self._between_steps()
            elif isinstance(event, events.WorkProgress):
                yield from self._obey(("pause", "stop"))
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
        improved = trainer.val_loss is not None and trainer.val_loss < self._saved_best
        if improved or trainer.step % self._config.training.checkpoint_every == 0:
            yield from self._save()
            if trainer.progress < 1.0:
                yield events.PhaseChanged(step=trainer.step, phase="training")
        yield from self._obey(("pause", "save", "evaluate", "sample", "stop"))

    def _obey(self, commands: tuple[Command, ...]) -> Iterator[Event]:
        """Do what was asked, if it is among `commands`; a pause lasts until it is taken back."""
        paused = False
        while True:
            command = self._control.take()
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
            elif command in ("save", "evaluate", "sample") and command in commands:
                yield from self._do(command)
                back: events.Phase = "paused" if paused else "training"
                yield events.PhaseChanged(step=self._trainer.step, phase=back)
            if self._stopping or (command is None and not paused):
                return
            if command is None:
                self._control.wait()

    def _do(self, command: Command) -> Iterator[Event]:
        if command == "save":
            yield from self._save()
        elif command == "evaluate":
            yield from self._trainer.evaluate()
        else:
            yield from self._trainer.sample()

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
        best = self._folder.best_checkpoint()
        if best is not None:
            save_plain_weights(self._folder.path / FINAL_WEIGHTS_FILE, load_weights(best.path))


def _memory_advice(config: RunConfig) -> str:
    training, model = config.training, config.model
    smaller = f"training.batch_size {max(1, training.batch_size // 2)} (now {training.batch_size})"
    return (
        f"The device is out of memory; try {smaller} or a smaller model.embed_dim "
        f"({model.embed_dim})."
    )
