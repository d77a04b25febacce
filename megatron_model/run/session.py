"""One session of training in one process: does, between two steps, what is due and what is asked.

Whatever happens is an event; so is a failure. A disk that cannot be written pauses the run.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator

import torch

from megatron_model.config.fields import RunConfig, get_setting
from megatron_model.config.live import changed
from megatron_model.data.token_cache import PreparedCorpus
from megatron_model.device import MemoryMeter, available_cores, measure_matrix_rate
from megatron_model.events import schema as events
from megatron_model.events.log import EventLog
from megatron_model.events.schema import Event
from megatron_model.planning.preflight import flops_per_character
from megatron_model.run.command_folder import POLL_SECONDS, CommandFolder
from megatron_model.run.control import Change, Command, Control, Ending, is_ending
from megatron_model.run.folder import RunFolder
from megatron_model.run.restore import restore
from megatron_model.run.save import Saver
from megatron_model.training.nonfinite import is_out_of_memory
from megatron_model.training.threads import ThreadKeeper
from megatron_model.training.trainer import Trainer
from megatron_model.util.errors import DivergedError, RequestError, RunFailedError
from megatron_model.util.fallback import take_missing
from megatron_model.util.text import safe

MEMORY_SECONDS = 2.0
LOWEST_RATE_FACTOR = 0.05
"""Share of the learning rate below which a run that diverges again is given up."""
RETRY_SECONDS = 60.0
"""How often a run that waits for its disk tries again by itself: there may be no one to ask."""

_logger = logging.getLogger(__name__)


def _keeper(trainer: Trainer) -> ThreadKeeper | None:
    """Return what keeps the number of threads; None where it is the user's, or of no account."""
    alone = trainer.device.type == "cpu" and trainer.learner.ranks == 1
    if not alone or trainer.config.training.threads or available_cores() == 1:
        return None
    return ThreadKeeper(available_cores(), clock=time.monotonic)


class Session:
    """Training in one process, from `RunStarted` to `RunFinished` or `RunFailed`."""

    def __init__(
        self,
        folder: RunFolder,
        control: Control,
        trainer: Trainer,
        prepared: PreparedCorpus,
        trigram_entropy: float | None,
        skipped: list[str],
    ) -> None:
        self._folder = folder
        self._control = control
        self._trainer = trainer
        self._prepared = prepared
        self._trigram_entropy = trigram_entropy
        self._config = trainer.config
        self._meter = MemoryMeter(trainer.device)
        self._threads = _keeper(trainer)
        self._next_memory = 0.0
        self._saver = Saver(folder, trainer, self._until_written)
        self._skipped = skipped
        """A sentence for each checkpoint that could not be read."""
        self._folder_commands = CommandFolder(folder.path)
        self._next_look = 0.0
        self._paused = False
        self._ending: Ending | None = None
        self._waiting: deque[Command] = deque()
        """Commands that were taken, but not yet obeyed."""
        self._said: set[str] = set()
        """What this run does without, as far as it was reported."""

    @property
    def writes_curves(self) -> bool:
        """Whether event files for TensorBoard are to be written along."""
        return self._config.training.tensorboard == "on"

    def run(self, log: EventLog) -> Iterator[Event]:
        """Yield everything that happens; a failure is an event, not an exception."""
        self._log = log
        try:
            yield self._started()
            if self._trainer.step == 0 and (origin := self._folder.read_origin()) is not None:
                yield events.WeightsTakenOver(
                    step=0,
                    model=origin.model,
                    model_step=origin.step,
                    model_val_loss=origin.val_loss,
                    known_characters=origin.known,
                    new_characters=origin.new,
                )
            for text in self._skipped:
                yield events.Notice(step=self._trainer.step, text=text)
            yield from self._say_fallbacks()
            # Requests made during the hand-over come before the first step.
            yield from self._obey()
            yield from self._train()
        except RunFailedError as error:
            yield self._failed(str(error))
        except OSError as error:
            yield self._failed(f"{self._cannot_write(error)} Then resume.")
        except Exception as error:
            if is_out_of_memory(error):
                yield self._failed(memory_advice(self._config))
                return
            # A bug: the run says so in its log, and the traceback goes to the logger.
            _logger.exception("training ended by an unexpected error")
            yield self._failed(
                f"Unexpected {type(error).__name__}: {safe(str(error), one_line=True)}"
            )
        finally:
            # No other process may have the run while a checkpoint is written.
            self._saver.join()

    def _started(self) -> Event:
        trainer, config = self._trainer, self._config
        vocabulary = trainer.tokenizer.vocab_size
        parent, parent_step = self._folder.read_parent() or ("", 0)
        return events.RunStarted(
            step=trainer.step,
            name=self._folder.name,
            corpus=config.data.corpus,
            characters=self._prepared.characters,
            vocabulary_size=vocabulary,
            parameters=sum(p.numel() for p in trainer.model.parameters()),
            steps=config.training.steps,
            device=str(trainer.device),
            devices=trainer.learner.ranks,
            precision=str(trainer.dtype).removeprefix("torch."),
            max_seconds=config.training.max_seconds,
            batch_size=config.training.batch_size,
            block_size=config.model.block_size,
            unigram_entropy=self._prepared.unigram_entropy,
            trigram_entropy=self._trigram_entropy,
            sequence_length=config.sequence_length,
            evaluate_every=config.training.evaluate_every,
            checkpoint_every=config.training.checkpoint_every,
            flops_per_character=flops_per_character(config, vocabulary),
            matrix_rate=measure_matrix_rate(trainer.device, trainer.dtype) * trainer.learner.ranks,
            parent=parent,
            parent_step=parent_step,
            elapsed_seconds=trainer.elapsed_seconds,
        )

    def _cannot_write(self, error: OSError) -> str:
        return (
            f"Cannot write {safe(str(error.filename or self._folder.path))}: "
            f"{safe(error.strerror or str(error))}. Make room or give permission."
        )

    def _say_fallbacks(self) -> Iterator[Event]:
        """Report, once, what this run does without."""
        for text in take_missing(self._said):
            yield events.Notice(step=self._trainer.step, text=text)

    def _failed(self, error: str) -> Event:
        return events.RunFailed(step=self._trainer.step, error=error)

    def _train(self) -> Iterator[Event]:
        trainer = self._trainer
        going = not self._ending
        while going:
            going = False
            try:
                yield from self._train_on()
            except DivergedError as error:
                yield from self._go_back(error)
                going = True
        yield from self._saver.collect(wait=True)
        if self._ending != "abort" and self._saver.saved_step() != trainer.step:
            yield from self._saver.save(self._config)
        trainer.learner.finish()
        if self._ending == "hand_over":
            yield from self._hand_over()
            return
        yield from self._written(self._saver.export_best)
        yield from self._say_fallbacks()
        yield events.RunFinished(
            step=trainer.step, reason=self._why_over(), elapsed_seconds=trainer.elapsed_seconds
        )

    def _why_over(self) -> events.Reason:
        if self._ending:
            return "stopped"
        if self._trainer.progress < 1.0 and self._trainer.enough:
            return self._trainer.enough
        return "budget" if self._config.training.max_seconds else "completed"

    def _train_on(self) -> Iterator[Event]:
        for event in self._trainer.run():
            yield event
            if isinstance(event, events.StepCompleted):
                yield from self._between_steps()
            elif isinstance(event, events.WorkProgress):
                yield from self._obey(in_validation=True)
            if self._ending:
                return

    def _go_back(self, error: DivergedError) -> Iterator[Event]:
        """Go back to the last good checkpoint with half the learning rate, if the settings say so.

        Without a checkpoint the weights are good as they are: they took none of the bad steps.
        """
        trainer = self._trainer
        factor = trainer.rate_factor / 2
        if self._config.training.when_diverged == "stop" or factor < LOWEST_RATE_FACTOR:
            raise error
        yield events.Notice(step=trainer.step, text=str(error).split(". ")[0])
        yield from self._saver.collect(wait=True)
        skipped = restore(self._folder, trainer)
        trainer.rate_factor = factor
        trainer.forget_bad_steps()
        yield self._started()
        for text in [
            *skipped,
            f"back at step {trainer.step:,} with {factor:.2g} times the learning rate",
        ]:
            yield events.Notice(step=trainer.step, text=text)

    def _hand_over(self) -> Iterator[Event]:
        if self._paused:
            # The process that takes over stays paused.
            self._folder_commands.send("pause")
        yield events.RunHandedOver(
            step=self._trainer.step, elapsed_seconds=self._trainer.elapsed_seconds
        )

    def _between_steps(self) -> Iterator[Event]:
        trainer = self._trainer
        if self._threads is not None and (text := self._threads.look(torch.get_num_threads())):
            yield events.Notice(step=trainer.step, text=text)
        now = time.monotonic()
        if now >= self._next_memory:
            self._next_memory = now + MEMORY_SECONDS
            sample = self._meter.sample(trainer.step)
            if sample is not None:
                yield sample
            if ranks := trainer.learner.measure_ranks():
                yield events.RanksMeasured(step=trainer.step, ranks=tuple(ranks))
        yield from self._saver.collect()
        yield from self._say_fallbacks()
        due = trainer.step % self._config.training.checkpoint_every == 0
        # Not in a row of bad steps: a checkpoint to go back to must be from before it.
        if (due or self._saver.improved) and not trainer.in_bad_row:
            yield from self._saver.save(self._config, in_background=trainer.progress < 1.0)
            if trainer.progress < 1.0:
                yield events.PhaseChanged(step=trainer.step, phase="training")
        if self._log.problem is not None:
            # At once: what kept a checkpoint from being written may just have been fixed.
            yield from self._written(self._log.retry)
        yield from self._obey()

    def _check_folder(self) -> None:
        """Notice that the run was deleted: what it saves from now on would be no run.

        A folder that was only moved, or whose mount is away, may come back: there a save waits.
        """
        if self._log.deleted:
            raise RunFailedError(
                f"The folder of this run, {safe(str(self._folder.path))}, was deleted while it "
                "trained; it can no longer be saved."
            )

    def _obey(self, *, in_validation: bool = False) -> Iterator[Event]:
        """Do what was asked; a pause lasts until it is taken back.

        In the middle of a validation that is a pause or a stop; the rest waits for its end.
        """
        later: list[Command] = []
        while not self._ending:
            command = yield from self._next_command()
            if is_ending(command):
                self._ending = command
            elif command == "pause" and not self._paused:
                self._paused = True
                self._trainer.stopwatch.pause()
                yield events.RunPaused(step=self._trainer.step)
            elif command == "resume" and self._paused:
                self._paused = False
                self._trainer.stopwatch.resume()
                yield events.RunResumed(step=self._trainer.step)
            elif isinstance(command, Change) or command in ("save", "evaluate", "sample"):
                if in_validation:
                    later.append(command)
                    continue
                yield from self._do(command)
                back: events.Phase = "paused" if self._paused else "training"
                yield events.PhaseChanged(step=self._trainer.step, phase=back)
            elif command is None:
                if not self._paused:
                    break
                self._control.wait(POLL_SECONDS)
        self._waiting.extend(later)

    def _next_command(self) -> Generator[Event, None, Command | None]:
        """Return the next thing that was asked, here or by another process; None if there is none.

        Another process asks through the run's folder, which is looked into a few times a second.
        Requests for the weights are answered here, while no step is under way.
        """
        while (request := self._control.take_weights_request()) is not None:
            request.answer(self._trainer)
        if not self._waiting and (command := self._control.take()) is not None:
            return command
        if time.monotonic() >= self._next_look:
            self._check_folder()
            commands, refusals = self._folder_commands.take()
            self._next_look = time.monotonic() + POLL_SECONDS
            self._waiting.extend(commands)
            for text in refusals:
                yield events.Notice(step=self._trainer.step, text=text)
        return self._waiting.popleft() if self._waiting else None

    def _do(self, command: Command) -> Iterator[Event]:
        if isinstance(command, Change):
            yield from self._change(command)
        elif command == "save":
            yield from self._saver.save(self._config)
        elif command == "sample":
            yield from self._trainer.sample()
        else:
            for event in self._trainer.evaluate():
                yield event
                if isinstance(event, events.WorkProgress) and self._stop_is_asked():
                    return
            if self._saver.improved:
                yield from self._saver.save(self._config)

    def _change(self, change: Change) -> Iterator[Event]:
        """Go on with another value of a setting, or say why not."""
        trainer, key = self._trainer, change.key
        try:
            config = changed(
                self._config,
                key,
                change.value,
                step=trainer.step,
                seconds=trainer.elapsed_seconds,
            )
        except RequestError as error:
            yield events.Notice(step=trainer.step, text=safe(str(error), one_line=True))
            return
        # The steps before this one were taken with the old value: a resume must not repeat them
        # with the new one.
        if self._saver.saved_step() != trainer.step:
            yield from self._saver.save(self._config)
        yield from self._written(
            lambda: self._folder.write_config(config, fingerprint=self._prepared.fingerprint)
        )
        old = get_setting(self._config, key)
        self._config = config
        trainer.change(config)
        yield events.SettingChanged(
            step=trainer.step, key=key, old=old, new=get_setting(config, key)
        )

    def _stop_is_asked(self) -> bool:
        while (command := self._control.take()) is not None:
            self._waiting.append(command)
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + POLL_SECONDS
            self._waiting.extend(self._folder_commands.take()[0])
        return any(is_ending(command) for command in self._waiting)

    def _written(self, write: Callable[[], None]) -> Iterator[Event]:
        """Do `write`; while the disk does not let it, the run waits."""
        try:
            write()
        except OSError as error:
            yield from self._until_written(error, write)

    def _until_written(self, error: OSError, write: Callable[[], None]) -> Iterator[Event]:
        """Wait until `write` succeeds: it is tried when asked, and now and then by itself.

        Raises:
            OSError: the run was told to end, and it could not be written even then.
        """
        self._check_folder()
        step, later = self._trainer.step, list[Command]()
        self._trainer.stopwatch.pause()
        yield events.Alert(
            step=step, text=f"{self._cannot_write(error)} The run waits and tries again by itself."
        )
        yield events.RunPaused(step=step)
        next_try = time.monotonic() + RETRY_SECONDS
        while True:
            command = yield from self._next_command()
            if command is None and time.monotonic() < next_try:
                self._control.wait(POLL_SECONDS)
                continue
            if is_ending(command):
                self._ending = command
            elif command not in (None, "save", "resume"):
                later.append(command)
                continue
            next_try = time.monotonic() + RETRY_SECONDS
            try:
                write()
                break
            except OSError as again:
                if self._ending:
                    raise
                if command is not None:
                    yield events.Alert(step=step, text=self._cannot_write(again))
        self._waiting.extend(later)
        if not self._paused:
            self._trainer.stopwatch.resume()
            yield events.RunResumed(step=step)


def memory_advice(config: RunConfig) -> str:
    """Return what to do when the device is out of memory."""
    training, model = config.training, config.model
    smaller = f"training.batch_size {max(1, training.batch_size // 2)} (now {training.batch_size})"
    return (
        f"The device is out of memory; try {smaller} or a smaller model.embed_dim "
        f"({model.embed_dim})."
    )
