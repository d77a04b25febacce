"""The training loop as a generator of events. It knows no files, no threads and no screen.

To pause is not to pull; to stop is to stop pulling at a `StepTaken`, the moment at which the state
is whole and everything that belongs to the step has happened.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator

import torch
from torch import Tensor

from megatron_model.architectures import build_model
from megatron_model.checkpoint import TrainingState
from megatron_model.compiled import Library, can_compile, compile_all, library_loss
from megatron_model.config import RunConfig, SamplingConfig
from megatron_model.dataset import Batches, TokenArray
from megatron_model.device import available_cores, choose_device, choose_precision, describe_device
from megatron_model.errors import DivergedError
from megatron_model.evaluation import bits_per_character, eager_loss, evaluate_steps
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
from megatron_model.muon import MuonOptimizer
from megatron_model.optimizer import build_optimizer, learning_rate_scale
from megatron_model.preflight import preflight
from megatron_model.sampling import generate_stream
from megatron_model.soundness import Soundness, is_out_of_memory
from megatron_model.steps import Step, eager_step, library_step
from megatron_model.stopwatch import Stopwatch
from megatron_model.tokenizer import CharTokenizer

COMPILE_FROM_SECONDS = 100.0
"""Estimated length of a run on a CPU from which compiling its step is earned back."""

COMPILE_FROM_STEPS = 500
"""Steps of a run on an accelerator from which compiling its model is earned back."""


class Trainer:
    """One model in training: its weights, optimizer and place in the run.

    Args:
        config: what was asked.
        tokenizer: the vocabulary of the corpus.
        train, validation: the token arrays of the two splits.
        clock: seconds, for the time budget and the speed; passed in by tests.
    """

    def __init__(
        self,
        config: RunConfig,
        tokenizer: CharTokenizer,
        train: TokenArray,
        validation: TokenArray,
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.device = choose_device(config.training.device)
        self.dtype = choose_precision(config.training.precision, self.device)
        self._validation = validation
        self._clock = clock
        # The weights are drawn on the CPU, so that a seed means the same model on every device.
        torch.manual_seed(config.training.seed)
        self.model = build_model(config.model, tokenizer.vocab_size).to(self.device)
        self._optimizer = build_optimizer(self.model, config.training)
        self._batches = Batches(
            train,
            length=config.sequence_length,
            batch_size=config.training.batch_size,
            seed=config.training.seed,
            device=self.device,
            token_dropout=config.training.token_dropout,
            blank=tokenizer.vocab_size,
        )
        self._cost = preflight(
            config,
            vocabulary_size=tokenizer.vocab_size,
            device=describe_device(str(self.device)),
        )
        self._micro_batch = self._cost.micro_batch
        self._compiled = self._compiling_pays()
        self._step: Step | None = None
        self._block_loss = eager_loss(self.model, self.dtype)
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

    def _libraries(self) -> tuple[Library, Library]:
        """Return the compiled step and the compiled loss, whether they are there yet or not."""
        vocabulary = self.tokenizer.vocab_size
        return (
            Library("step", self.config, vocabulary, self.dtype),
            Library("loss", self.config, vocabulary, self.dtype),
        )

    def _compiling_pays(self) -> bool:
        """Whether this run's steps are to be compiled: as asked, or where it is earned back."""
        wish = self.config.training.compile
        if wish == "off" or self._micro_batch < self.config.training.batch_size:
            return False
        if self.device.type != "cpu":
            return wish == "on" or self.config.training.steps >= COMPILE_FROM_STEPS
        if not can_compile(self.config, self.device):
            return False
        if wish == "on" or all(library.ready for library in self._libraries()):
            return True
        return (self._cost.seconds or 0.0) >= COMPILE_FROM_SECONDS

    def _prepare_step(self) -> Generator[Event, None, None]:
        """Make the function that takes a step; compile it first where that pays."""
        training = self.config.training
        if self._compiled and self.device.type == "cpu":
            step, loss = self._libraries()
            if not (step.ready and loss.ready):
                yield PhaseChanged(step=self.step, phase="compiling")
                for share in compile_all([step, loss]):
                    yield WorkProgress(step=self.step, share=share)
            if step.ready and loss.ready and isinstance(self._optimizer, MuonOptimizer):
                self._step = library_step(step, self.model, self._optimizer)
                self._block_loss = library_loss(loss, self.model, self.dtype)
                return
            self._compiled = False
            yield Noticed(
                step=self.step, text="compiling did not work here; training goes on without"
            )
        model = self.model
        if self._compiled:
            yield PhaseChanged(step=self.step, phase="compiling")
            model = torch.compile(model)  # type: ignore[assignment]
        self._step = eager_step(
            model, self._optimizer, training, dtype=self.dtype, micro_batch=self._micro_batch
        )

    def change(self, config: RunConfig) -> None:
        """Go on with another learning rate, length or time budget from the next step on."""
        self.config = config
        self._optimizer.config = config.training

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
            yield from self._prepare_step()
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
                if not is_out_of_memory(error) or self._micro_batch <= 1:
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
        if self.config.model.dropout:
            # Reseeded at every step, so that a resume needs no generator state.
            torch.manual_seed(config.seed + 1_000_003 * (self.step + 1))
        inputs, targets = self._batches.get(self.step)
        self._data_seconds += self._clock() - start
        assert self._step is not None
        self._soundness.take(*self._step(self.step, scale, inputs, targets))
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
        for parameter in self.model.parameters():
            parameter.grad = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self._micro_batch = math.ceil(self._micro_batch / 2)
        self._compiled = False
        self._step = eager_step(
            self.model,
            self._optimizer,
            self.config.training,
            dtype=self.dtype,
            micro_batch=self._micro_batch,
        )
        return Noticed(
            step=self.step,
            text=f"out of memory: the batch of {self.config.training.batch_size} is gone through "
            f"{self._micro_batch} sequences at a time from now on",
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
        steps = evaluate_steps(
            self.model,
            self._validation,
            block_size=self.config.model.block_size,
            device=self.device,
            block_loss=self._block_loss,
        )
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
        text = "".join(generate_stream(self.model, self.tokenizer, prompt, sampling))
        yield SampleGenerated(step=self.step, prompt=prompt, text=text)

    def state(self) -> TrainingState:
        """Return everything an exact resume needs beside the weights.

        Raises:
            DivergedError: the weights are no longer finite numbers and not worth keeping.
        """
        if not all(bool(weight.isfinite().all()) for weight in self.model.parameters()):
            raise DivergedError(
                f"The weights at step {self.step:,} are no longer finite numbers. The last "
                "checkpoint is unharmed; resume it with a lower learning rate "
                f"(now {self._peak_rate():g})."
            )
        tensors = {
            f"optimizer/{name}": value for name, value in self._optimizer.state_tensors().items()
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
            "micro_batch": self._micro_batch,
            "compiled": self._compiled,
            "precision": str(self.dtype).removeprefix("torch."),
            "threads": torch.get_num_threads(),
            # All randomness and the place in the data follow from these two.
            "seed": self.config.training.seed,
            "next_batch": self.step,
        }
        return TrainingState(tensors, numbers)

    def load(self, weights: dict[str, Tensor], state: TrainingState) -> None:
        """Go back to a saved state of a trainer with the same configuration."""
        self.model.load_state_dict(weights)
        prefix = "optimizer/"
        self._optimizer.load_state_tensors(
            {k[len(prefix) :]: v for k, v in state.tensors.items() if k.startswith(prefix)}
        )
        numbers = state.numbers
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
        # Another split of the batch would add up in another order, and round differently.
        self._micro_batch = int(numbers["micro_batch"])
        self._compiled = bool(numbers["compiled"])
        # Auto is decided by a measurement that may come out otherwise on another day.
        if self.config.training.precision == "auto":
            self.dtype = getattr(torch, numbers["precision"])
        self._block_loss = eager_loss(self.model, self.dtype)
        if not self.config.training.threads:
            torch.set_num_threads(min(int(numbers["threads"]), available_cores()))
        self._interval_steps = int(numbers["interval_steps"])
        self._interval_seconds = float(numbers["interval_seconds"])
        self.stopwatch = Stopwatch(self._clock, before=float(numbers["elapsed_seconds"]))
