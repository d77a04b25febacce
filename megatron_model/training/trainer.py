"""The training loop as a generator of events. It knows no files, no threads and no screen.

To pause is not to pull; to stop is to stop pulling at a `StepCompleted`, the moment at which the
state is whole and everything that belongs to the step has happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Literal

import torch
from msgspec import structs
from torch import Tensor, nn

from megatron_model.config.fields import RunConfig, SamplingConfig
from megatron_model.data.batches import TokenArray
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.events.schema import (
    Evaluated,
    Event,
    MetricsReported,
    Notice,
    PhaseChanged,
    SampleGenerated,
    StepCompleted,
    WorkProgress,
)
from megatron_model.inference.sampler import generate_stream
from megatron_model.training.learner import Learner, build_learner
from megatron_model.training.loss import bits_per_character
from megatron_model.training.nonfinite import NonfiniteSteps, is_out_of_memory
from megatron_model.training.optimizer import learning_rate_scale
from megatron_model.training.state import LOSS_SUM, OPTIMIZER, Scalars, TrainingState, check_fits
from megatron_model.util.errors import DivergedError
from megatron_model.util.text import plural

FIRST_SAMPLE_SECONDS = 0.2
"""How long a sample is expected to take before there was one."""
SHORTEST_SAMPLE_SECONDS = 0.3
"""What a sample may take at the end of a time budget that is used up."""


class Trainer:
    """One model in training: its weights, optimizer and place in the run.

    Args:
        config: what was asked.
        tokenizer: the vocabulary of the corpus.
        train, validation: the token arrays of the two splits.
        clock: seconds, for the time budget and the speed; passed in by tests.
        begun: when the run was asked for, by that clock: it is trained for since then; None: now.
        learner: what computes; None makes one that works alone.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: CharTokenizer,
        train: TokenArray,
        validation: TokenArray,
        *,
        clock: Callable[[], float] = time.perf_counter,
        begun: float | None = None,
        learner: Learner | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.learner = learner or build_learner(config, tokenizer.vocab_size, train, validation)
        self.device = self.learner.device
        self._validation = validation
        self._clock = clock
        self.step = 0
        self.val_loss: float | None = None
        """Validation loss of the weights as they are now, if they were evaluated."""
        self.best_val_loss = math.inf
        self._waited = 0
        self._last_better = math.inf
        self.stopwatch = Stopwatch(clock, since=begun)
        self._begun = begun
        self.saving_seconds = 0.0
        """How long the checkpoint and the weights take that are written at the end."""
        self._sample_seconds = FIRST_SAMPLE_SECONDS if config.training.sample_length else 0.0
        self._evaluation_seconds = 0.0
        self._speed = 0.0
        self.rate_factor = 1.0
        """Share of the configured learning rate that is left after training diverged."""
        self._nonfinite = NonfiniteSteps(self.device)
        self._interval_steps = 0
        self._interval_seconds = 0.0
        self._data_seconds = 0.0
        self._scale = 0.0

    @property
    def model(self) -> nn.Module:
        """The model in training."""
        return self.learner.model

    @property
    def dtype(self) -> torch.dtype:
        """Arithmetic of the matrix products."""
        return self.learner.dtype

    @property
    def compiled(self) -> bool:
        """Whether the steps are computed by a compiler's code."""
        return self.learner.compiled

    def change(self, config: RunConfig) -> None:
        """Go on with another learning rate, length or time budget from the next step on."""
        self.config = config
        self.learner.change(config)

    @property
    def elapsed_seconds(self) -> float:
        """Wall time trained so far in this run, pauses left out."""
        return self.stopwatch.seconds()

    @property
    def progress(self) -> float:
        """Share of the run that is done: of its time budget if it has one, else of its steps."""
        training = self.config.training
        if training.max_seconds:
            # What comes after the last step belongs into the budget.
            closing = self._expected_evaluation_seconds() + self._sample_seconds
            usable = max(1e-9, training.max_seconds - closing - self.saving_seconds)
            return min(1.0, self.elapsed_seconds / usable)
        return min(1.0, self.step / training.steps)

    @property
    def enough(self) -> Literal["", "patience", "target"]:
        """Why there is no need to go on before all steps are done, if so."""
        training = self.config.training
        if training.target_loss and self.best_val_loss <= training.target_loss:
            return "target"
        if training.patience and self._waited >= training.patience:
            return "patience"
        return ""

    @property
    def finished(self) -> bool:
        """Whether there is no step left to take."""
        return self.progress >= 1.0 or bool(self.enough)

    def _expected_evaluation_seconds(self) -> float:
        """Return how long an evaluation takes: as the last one, or by the speed of the steps."""
        if self._evaluation_seconds:
            return self._evaluation_seconds
        speed = self._speed or self._speed_since_report()
        # A step runs the model forward and, at twice the cost, backward.
        return len(self._validation) / speed / 3.0 if speed else 0.0

    def _speed_since_report(self) -> float:
        """Return characters a second of the steps since the last report; 0 before the first."""
        config = self.config
        tokens = self._interval_steps * config.training.batch_size * config.sequence_length
        return tokens / max(self._interval_seconds, 1e-9)

    def run(self) -> Iterator[Event]:
        """Train to the end, from wherever the state is; yield everything that happens.

        Raises:
            DivergedError: too many steps in a row had a loss or gradient of NaN or infinity; none
                of them changed the weights.
        """
        training = self.config.training
        self._begun = None
        if not self.finished:
            budget = training.max_seconds or math.inf
            yield from self.learner.prepare(self.step, budget - self.elapsed_seconds)
        if self.step and self.step % training.evaluate_every == 0 and self.val_loss is None:
            # What an interruption left out; these weights may be the best ones.
            yield from self._evaluate_in_turn()
            yield from self.sample()
            yield StepCompleted(step=self.step, elapsed_seconds=self.elapsed_seconds)
        yield PhaseChanged(step=self.step, phase="training")
        finished = self.finished
        while not finished:
            no_room = False
            try:
                self._update()
            except (RuntimeError, MemoryError) as error:
                no_room = is_out_of_memory(error) and self.learner.can_halve_micro_batch()
                if not no_room:
                    raise
            if no_room:  # outside: the error held on to all that was computed
                yield self._halve_micro_batch()
                continue
            for text in self.learner.take_notices():
                yield Notice(step=self.step, text=text)
            reports = self.step % training.log_every == 0
            if reports or self.device.type == "cpu":  # a CPU is not made to wait by being asked
                self._nonfinite.check(self.step, self._peak_rate())
            if reports:
                yield from self._report()
            finished = self.progress >= 1.0
            if finished or self.step % training.evaluate_every == 0:
                yield from self._evaluate_in_turn()
                finished = self.finished
                yield from self.sample()
                if not finished:
                    yield PhaseChanged(step=self.step, phase="training")
            yield StepCompleted(step=self.step, elapsed_seconds=self.elapsed_seconds)
        if self.val_loss is None:
            yield from self.evaluate()

    def _update(self) -> None:
        """Take one step: batch, loss, gradients, new weights. Nothing here waits for the device."""
        start = self._clock()
        config = self.config.training
        scale = learning_rate_scale(config, self.step, self.progress) * self.rate_factor
        inputs, targets = self.learner.batch(self.step, scale)
        self._data_seconds += self._clock() - start
        self._nonfinite.take(*self.learner.step(self.step, scale, inputs, targets))
        self._scale = scale
        self._interval_steps += 1
        self.step += 1
        self.val_loss = None
        self._interval_seconds += self._clock() - start

    @property
    def in_bad_row(self) -> bool:
        """Whether the newest step was skipped; asking waits for the device."""
        return self._nonfinite.in_a_row > 0

    def forget_bad_steps(self) -> None:
        """Count the skipped steps in a row anew, with another learning rate."""
        self._nonfinite.begin_row()

    def _halve_micro_batch(self) -> Notice:
        """Compute the batch in smaller parts from now on; nothing of the step has happened."""
        self.learner.halve_micro_batch()
        return Notice(step=self.step, text=self.learner.parts_notice())

    def _report(self) -> Iterator[Event]:
        """Close the interval. Reading the loss is the one point at which the host waits."""
        start = self._clock()
        skipped = self._nonfinite.skipped
        loss = float(self._nonfinite.loss_sum) / max(1, self._interval_steps - skipped)
        norm = float(self._nonfinite.norm)
        seconds = self._interval_seconds + self._clock() - start
        if skipped:
            steps = plural(self._interval_steps, "step")
            text = f"{skipped} of the last {steps} had a loss or gradient "
            yield Notice(
                step=self.step, text=text + "of NaN or infinity; the weights did not take them"
            )
        tokens = (
            self._interval_steps * self.config.training.batch_size * self.config.sequence_length
        )
        self._speed = tokens / max(seconds, 1e-9)
        all_skipped = skipped == self._interval_steps
        self._nonfinite.begin_interval()
        # An accelerator works on meanwhile; only a CPU waits for its batch.
        waited = self._data_seconds / max(seconds, 1e-9) if self.device.type == "cpu" else None
        self._interval_steps, self._interval_seconds, self._data_seconds = 0, 0.0, 0.0
        if all_skipped:
            return
        yield MetricsReported(
            step=self.step,
            train_loss=loss,
            learning_rate=self._peak_rate() * self._scale,
            gradient_norm=norm,
            tokens_per_second=self._speed,
            elapsed_seconds=self.elapsed_seconds,
            data_wait=waited,
        )

    def _peak_rate(self) -> float:
        training = self.config.training
        return (
            training.muon_learning_rate if training.optimizer == "muon" else training.learning_rate
        )

    def _evaluate_in_turn(self) -> Generator[Event, None, None]:
        """Evaluate as the schedule has it, and see whether that was worth the steps before it."""
        yield from self.evaluate()
        assert self.val_loss is not None
        self._waited += 1
        if self.val_loss < self._last_better - self.config.training.min_delta:
            self._waited, self._last_better = 0, self.val_loss

    def evaluate(self) -> Generator[Event, None, None]:
        """Yield progress, then the loss over the whole validation split."""
        yield PhaseChanged(step=self.step, phase="evaluating")
        start = self._clock()
        steps = self.learner.validate()
        loss = math.nan
        while True:
            try:
                share = next(steps)
            except StopIteration as end:
                loss = float(end.value)
                break
            yield WorkProgress(step=self.step, share=share)
        self._evaluation_seconds = self._clock() - start
        if not math.isfinite(loss):
            raise DivergedError(
                f"The validation loss at step {self.step:,} is NaN or infinity. The last "
                "checkpoint is unharmed; resume it with a lower learning rate."
            )
        self.val_loss = loss
        self.best_val_loss = min(self.best_val_loss, loss)
        yield Evaluated(
            step=self.step,
            val_loss=loss,
            bits_per_character=bits_per_character(loss),
            elapsed_seconds=self.elapsed_seconds,
        )

    def sample(self) -> Generator[Event, None, None]:
        """Yield what the model writes now after the run's prompt, with the run's seed.

        At the end of a time budget it is cut off where the time is up.
        """
        training = self.config.training
        if not training.sample_length:
            return
        yield PhaseChanged(step=self.step, phase="sampling")
        prompt = self.tokenizer.drop_unknown(training.sample_prompt)
        sampling = SamplingConfig(max_new_tokens=training.sample_length, seed=training.seed)
        start = self._clock()
        end = start + self._seconds_for_sample()
        text = ""
        model = self.learner.inference_model()
        for piece in generate_stream(model, self.tokenizer, prompt, sampling):
            text += piece
            if self._clock() >= end:
                break
        self._sample_seconds = self._clock() - start
        yield SampleGenerated(step=self.step, prompt=prompt, text=text)

    def _seconds_for_sample(self) -> float:
        training = self.config.training
        if not training.max_seconds or self.progress < 1.0:
            return math.inf
        left = training.max_seconds - self.saving_seconds - self.elapsed_seconds
        return max(SHORTEST_SAMPLE_SECONDS, left)

    def state(self) -> TrainingState:
        """Return everything an exact resume needs beside the weights.

        Raises:
            DivergedError: weights are NaN or infinity, and not worth keeping.
        """
        if not self.learner.is_finite():
            raise DivergedError(
                f"Weights at step {self.step:,} are NaN or infinity. The last "
                "checkpoint is unharmed; resume it with a lower learning rate "
                f"(now {self._peak_rate():g})."
            )
        tensors = {
            f"{OPTIMIZER}{name}": value for name, value in self.learner.optimizer_state().items()
        }
        tensors[LOSS_SUM] = self._nonfinite.loss_sum
        scalars = Scalars(
            **structs.asdict(self.learner.scalars()),
            step=self.step,
            elapsed_seconds=self.elapsed_seconds,
            val_loss=self.val_loss,
            best_val_loss=self.best_val_loss if math.isfinite(self.best_val_loss) else None,
            evaluation_seconds=self._evaluation_seconds,
            interval_steps=self._interval_steps,
            interval_seconds=self._interval_seconds,
            skipped=self._nonfinite.skipped,
            skipped_in_a_row=self._nonfinite.in_a_row,
            rate_factor=self.rate_factor,
            waited=self._waited,
            last_better=self._last_better if math.isfinite(self._last_better) else None,
            seed=self.config.training.seed,
            next_batch=self.step,
        )
        return TrainingState(tensors, scalars)

    def begin_with(self, weights: dict[str, Tensor]) -> None:
        """Begin with these weights in place of those that were drawn; nothing was trained yet.

        Raises:
            RequestError: they are those of another model; nothing was changed.
        """
        fresh = self.state()
        scalars = structs.replace(fresh.scalars, elapsed_seconds=0.0)
        self.load(weights, TrainingState(fresh.tensors, scalars))

    def load(self, weights: dict[str, Tensor], state: TrainingState) -> None:
        """Go back to a saved state of a trainer with the same configuration.

        Raises:
            RequestError: it is the state of another one; nothing was changed.
        """
        check_fits(weights, state, self.config, self.tokenizer.vocab_size)
        saved = state.scalars
        self.learner.load(weights, state.optimizer, saved)
        self._nonfinite.load(state.tensors[LOSS_SUM], saved.skipped, saved.skipped_in_a_row)
        self.rate_factor = saved.rate_factor
        self.step = saved.step
        self.val_loss = saved.val_loss
        self.best_val_loss = math.inf if saved.best_val_loss is None else saved.best_val_loss
        self._waited = saved.waited
        # Checkpoints from before the patience was there know the best loss alone.
        last = saved.best_val_loss if saved.last_better is None else saved.last_better
        self._last_better = math.inf if last is None else last
        self._evaluation_seconds = saved.evaluation_seconds
        self._interval_steps = saved.interval_steps
        self._interval_seconds = saved.interval_seconds
        # On the way back after training diverged, the time is counted from now.
        self.stopwatch = Stopwatch(self._clock, before=saved.elapsed_seconds, since=self._begun)


class Stopwatch:
    """Wall time without the pauses: seconds of `clock` since a moment, on top of those `before`."""

    def __init__(
        self, clock: Callable[[], float], *, before: float = 0.0, since: float | None = None
    ) -> None:
        self._clock = clock
        self._counted = before
        self._since: float | None = clock() if since is None else since

    def seconds(self) -> float:
        """Return the seconds counted so far."""
        running = self._clock() - self._since if self._since is not None else 0.0
        return self._counted + running

    def pause(self) -> None:
        """Stop counting."""
        self._counted, self._since = self.seconds(), None

    def resume(self) -> None:
        """Count on."""
        if self._since is None:
            self._since = self._clock()
