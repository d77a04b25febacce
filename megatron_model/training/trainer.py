"""The training loop as a generator of events. It knows no files, no threads and no screen.

To pause is not to pull; to stop is to stop pulling at a `StepTaken`, the moment at which the state
is whole and everything that belongs to the step has happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor, nn

from megatron_model.checkpoint import TrainingState
from megatron_model.config import RunConfig, SamplingConfig
from megatron_model.dataset import TokenArray
from megatron_model.errors import DivergedError
from megatron_model.evaluation import bits_per_character
from megatron_model.events import (
    Evaluated,
    Event,
    Noticed,
    PhaseChanged,
    SampleGenerated,
    StepFinished,
    StepTaken,
    WorkProgress,
)
from megatron_model.learner import Learner
from megatron_model.optimizer import learning_rate_scale
from megatron_model.sampling import generate_stream
from megatron_model.soundness import Soundness, is_out_of_memory
from megatron_model.stopwatch import Stopwatch
from megatron_model.tokenizer import CharTokenizer


class Trainer:
    """One model in training: its weights, optimizer and place in the run.

    Args:
        config: what was asked.
        tokenizer: the vocabulary of the corpus.
        train, validation: the token arrays of the two splits.
        clock: seconds, for the time budget and the speed; passed in by tests.
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
        learner: Learner | None = None,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.learner = learner or Learner(config, tokenizer.vocab_size, train, validation)
        self.device = self.learner.device
        self._validation = validation
        self._clock = clock
        self.step = 0
        self.val_loss: float | None = None
        """Validation loss of the weights as they are now, if they were evaluated."""
        self.best_val_loss = math.inf
        self.stopwatch = Stopwatch(clock)
        self._evaluation_seconds = 0.0
        self._speed = 0.0
        self.rate_factor = 1.0
        """Share of the configured learning rate that is left after training diverged."""
        self._soundness = Soundness(self.device)
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
            # The last evaluation belongs into the budget; the one before tells how long it takes.
            usable = max(1e-9, training.max_seconds - self._expected_evaluation_seconds())
            return min(1.0, self.elapsed_seconds / usable)
        return min(1.0, self.step / training.steps)

    def _expected_evaluation_seconds(self) -> float:
        """Return how long an evaluation takes: as the last one, or by the speed of the steps."""
        if self._evaluation_seconds or not self._speed:
            return self._evaluation_seconds
        # A step goes through the model forward and, at twice the cost, backward.
        return len(self._validation) / self._speed / 3.0

    def run(self) -> Iterator[Event]:
        """Train to the end, from wherever the state is; yield everything that happens.

        Raises:
            DivergedError: too many steps in a row had no finite loss or gradient; none of them
                changed the weights.
        """
        training = self.config.training
        if self.progress < 1.0:
            yield from self.learner.prepare(self.step)
        if self.step and self.step % training.evaluate_every == 0 and self.val_loss is None:
            # What an interruption left out; these weights may be the best ones.
            yield from self.evaluate()
            yield from self.sample()
            yield StepTaken(step=self.step, elapsed_seconds=self.elapsed_seconds)
        yield PhaseChanged(step=self.step, phase="training")
        finished = self.progress >= 1.0
        while not finished:
            try:
                self._update()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or not self.learner.can_halve():
                    raise
                yield self._halve_micro_batch()
                continue
            reports = self.step % training.log_every == 0
            if reports or self.device.type == "cpu":  # a CPU is not made to wait by being asked
                self._soundness.check(self.step, self._peak_rate())
            if reports:
                yield from self._report()
            finished = self.progress >= 1.0
            if finished or self.step % training.evaluate_every == 0:
                yield from self.evaluate()
                yield from self.sample()
                if not finished:
                    yield PhaseChanged(step=self.step, phase="training")
            yield StepTaken(step=self.step, elapsed_seconds=self.elapsed_seconds)
        if self.val_loss is None:
            yield from self.evaluate()

    def _update(self) -> None:
        """Take one step: batch, loss, gradients, new weights. Nothing here waits for the device."""
        start = self._clock()
        config = self.config.training
        scale = learning_rate_scale(config, self.step, self.progress) * self.rate_factor
        inputs, targets = self.learner.batch(self.step, scale)
        self._data_seconds += self._clock() - start
        self._soundness.take(*self.learner.step(self.step, scale, inputs, targets))
        self._scale = scale
        self._interval_steps += 1
        self.step += 1
        self.val_loss = None
        self._interval_seconds += self._clock() - start

    @property
    def in_bad_row(self) -> bool:
        """Whether the newest step was skipped; asking waits for the device."""
        return self._soundness.in_a_row > 0

    def forget_bad_steps(self) -> None:
        """Count the skipped steps in a row anew, with another learning rate."""
        self._soundness.begin_row()

    def _halve_micro_batch(self) -> Noticed:
        """Go through the batch in smaller parts from now on; nothing of the step has happened."""
        self.learner.halve()
        return Noticed(
            step=self.step,
            text=f"out of memory: the batch of {self.config.training.batch_size} is gone through "
            f"{self.learner.micro_batch} sequences at a time from now on",
        )

    def _report(self) -> Iterator[Event]:
        """Close the interval. Reading the loss is the one point at which the host waits."""
        start = self._clock()
        skipped = self._soundness.skipped
        loss = float(self._soundness.loss_sum) / max(1, self._interval_steps - skipped)
        norm = float(self._soundness.norm)
        seconds = self._interval_seconds + self._clock() - start
        if skipped:
            text = f"{skipped} of the last {self._interval_steps} steps had no finite loss or "
            yield Noticed(step=self.step, text=text + "gradient; the weights did not take them")
        tokens = (
            self._interval_steps * self.config.training.batch_size * self.config.sequence_length
        )
        self._speed = tokens / max(seconds, 1e-9)
        all_skipped = skipped == self._interval_steps
        self._soundness.begin_interval()
        # An accelerator works on meanwhile; only a CPU stands still for its batch.
        waited = self._data_seconds / max(seconds, 1e-9) if self.device.type == "cpu" else None
        self._interval_steps, self._interval_seconds, self._data_seconds = 0, 0.0, 0.0
        if all_skipped:
            return
        yield StepFinished(
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
                f"The validation loss at step {self.step:,} is not a finite number. The last "
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
        """Yield what the model writes now after the run's prompt, with the run's seed."""
        training = self.config.training
        if not training.sample_length:
            return
        yield PhaseChanged(step=self.step, phase="sampling")
        prompt = self.tokenizer.drop_unknown(training.sample_prompt)
        sampling = SamplingConfig(max_new_tokens=training.sample_length, seed=training.seed)
        text = "".join(generate_stream(self.learner.writer(), self.tokenizer, prompt, sampling))
        yield SampleGenerated(step=self.step, prompt=prompt, text=text)

    def state(self) -> TrainingState:
        """Return everything an exact resume needs beside the weights.

        Raises:
            DivergedError: the weights are no longer finite numbers and not worth keeping.
        """
        if not self.learner.is_finite():
            raise DivergedError(
                f"The weights at step {self.step:,} are no longer finite numbers. The last "
                "checkpoint is unharmed; resume it with a lower learning rate "
                f"(now {self._peak_rate():g})."
            )
        tensors = {
            f"optimizer/{name}": value for name, value in self.learner.optimizer_state().items()
        }
        tensors["loss_sum"] = self._soundness.loss_sum
        numbers = {
            "step": self.step,
            "elapsed_seconds": self.elapsed_seconds,
            "val_loss": self.val_loss,
            "best_val_loss": self.best_val_loss if math.isfinite(self.best_val_loss) else None,
            "evaluation_seconds": self._evaluation_seconds,
            "interval_steps": self._interval_steps,
            "interval_seconds": self._interval_seconds,
            **self._soundness.numbers(),
            "rate_factor": self.rate_factor,
            **self.learner.numbers(),
            # All randomness and the place in the data follow from these two.
            "seed": self.config.training.seed,
            "next_batch": self.step,
        }
        return TrainingState(tensors, numbers)

    def load(self, weights: dict[str, Tensor], state: TrainingState) -> None:
        """Go back to a saved state of a trainer with the same configuration."""
        prefix = "optimizer/"
        optimizer = {k[len(prefix) :]: v for k, v in state.tensors.items() if k.startswith(prefix)}
        numbers = state.numbers
        self.learner.load(weights, optimizer, numbers)
        self._soundness.load(
            state.tensors["loss_sum"],
            int(numbers.get("skipped", 0)),
            int(numbers.get("skipped_in_a_row", 0)),
        )
        self.rate_factor = float(numbers.get("rate_factor", 1.0))
        self.step = int(numbers["step"])
        self.val_loss = numbers["val_loss"]
        best = numbers["best_val_loss"]
        self.best_val_loss = math.inf if best is None else float(best)
        self._evaluation_seconds = float(numbers["evaluation_seconds"])
        self._interval_steps = int(numbers["interval_steps"])
        self._interval_seconds = float(numbers["interval_seconds"])
        self.stopwatch = Stopwatch(self._clock, before=float(numbers["elapsed_seconds"]))
