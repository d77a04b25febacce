"""Measure a configuration by taking a few of its steps, in a process of its own.

``python -m megatron_model.training.probe`` reads a `Request` as JSON from stdin and writes a
`Progress` as JSON a line: what it is doing, each result, or an error.
A process, because memory is only measured cleanly in one that did nothing else, because the system
may end one that takes too much, and because it can be ended at any moment.
"""

from __future__ import annotations

import contextlib
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.planning.measurement import Measurement
from megatron_model.util.python_child import start_python
from megatron_model.util.text import safe

if TYPE_CHECKING:
    import torch

    from megatron_model.training.trainer import Trainer

TIMED_SECONDS = 1.0
MOST_STEPS = 10
LARGEST_BATCH = 4096
WORTH_DOUBLING = 1.08
"""A doubled batch that does not raise the speed by this factor is not worth its memory."""


class Request(Struct, frozen=True):
    """What to measure: a configuration, or with `batches` the batch sizes 1, 2, 4, ... of it."""

    config: RunConfig
    vocabulary_size: int
    batches: bool = False
    memory_limit: int | None = None
    """Bytes that a larger batch must not exceed."""


class Progress(Struct, frozen=True):
    """One thing that the measuring process said."""

    doing: str = ""
    measured: Measurement | None = None
    error: str = ""


class Probe:
    """The measuring process, as its owner sees it: iterate in a thread, `cancel` from any."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self._process: subprocess.Popen[bytes] | None = None
        self.cancelled = False
        """Whether its owner ended it."""

    def cancel(self) -> None:
        """End the measuring at once."""
        self.cancelled = True
        if self._process is not None:
            self._process.kill()

    def run(self) -> Iterator[Progress]:
        """Yield what is found out; a failure is the last thing said, not an exception."""
        try:
            process = self._process = start_python(
                "megatron_model.training.probe",
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        except OSError as error:
            yield Progress(error=f"Cannot start measuring: {error.strerror}.")
            return
        assert process.stdin is not None
        assert process.stdout is not None
        said_why = False
        try:
            if self.cancelled:
                return
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
                pipe.write(msgspec.json.encode(self._request))
            for line in process.stdout:
                with contextlib.suppress(msgspec.DecodeError):
                    progress = msgspec.json.decode(line, type=Progress)
                    said_why = said_why or bool(progress.error)
                    yield progress
            # It closed its end: it is about to go by itself, unless it was stopped halfway.
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=10)
        finally:
            process.kill()
            code = process.wait()
            process.stdout.close()
        if not self.cancelled and not said_why and code:
            how = f"by signal {-code}" if code < 0 else f"with status {code}"
            advice = " It may have run out of memory." if code == -9 else ""
            yield Progress(error=f"The measuring process ended {how}.{advice}")


def measure(request: Request, say: Callable[[Progress], None]) -> None:
    """Take the steps that `request` asks for and say what they cost."""
    memory = _prepare(request.config)
    if not request.batches:
        say(Progress(doing="taking steps"))
        say(Progress(measured=_take_steps(request.config, request.vocabulary_size, memory)))
        return
    batch, best = 1, 0.0
    while batch <= LARGEST_BATCH:
        say(Progress(doing=f"batch size {batch}"))
        config = with_settings(request.config, {"training.batch_size": batch})
        try:
            found = _take_steps(config, request.vocabulary_size, memory)
        except (RuntimeError, MemoryError):
            if batch == 1:
                raise
            return  # larger ones will not fit either
        limit = request.memory_limit
        if limit is not None and found.memory_bytes > limit and batch > 1:
            return
        say(Progress(measured=found))
        if found.characters_per_second < WORTH_DOUBLING * best:
            return
        best = max(best, found.characters_per_second)
        batch *= 2


def _prepare(config: RunConfig) -> _MemoryMeter:
    """Set the process up as a training one is, and begin to watch its memory."""
    import torch

    from megatron_model.device import available_cores, choose_device
    from megatron_model.util.process import keep_freed_memory

    keep_freed_memory()
    torch.set_num_threads(config.training.threads or available_cores())
    return _MemoryMeter(choose_device(config.training.device))


def _take_steps(config: RunConfig, vocabulary_size: int, memory: _MemoryMeter) -> Measurement:
    import gc

    from megatron_model.events.schema import PhaseChanged, StepCompleted

    gc.collect()
    memory.begin()
    trainer = _build(config, vocabulary_size)
    times: list[float] = []
    last = time.perf_counter()
    for event in trainer.run():
        now = time.perf_counter()
        if isinstance(event, PhaseChanged):
            last = now
        if isinstance(event, StepCompleted):
            times.append(now - last)
            last = now
            if len(times) >= 2 and (sum(times[1:]) > TIMED_SECONDS or len(times) > MOST_STEPS):
                break
    per_step = config.training.batch_size * config.sequence_length
    return Measurement(
        # The first step also allocates and warms up.
        seconds_per_step=statistics.median(times[1:] or times),
        memory_bytes=memory.peak(),
        batch_size=config.training.batch_size,
        characters_per_step=per_step,
        steps=len(times),
        compiled=trainer.compiled,
    )


def _build(config: RunConfig, vocabulary_size: int) -> Trainer:
    """Return a real trainer on random characters: what they are changes no cost."""
    import numpy as np

    from megatron_model.data.tokenizer import CharTokenizer
    from megatron_model.training.learner import build_learner
    from megatron_model.training.trainer import Trainer

    planned = config
    config = with_settings(
        config,
        {
            "training.steps": MOST_STEPS + 2,
            "training.max_seconds": 0.0,
            "training.log_every": 1,  # reading the loss waits for the device
            "training.evaluate_every": 10**9,
            "training.checkpoint_every": 10**9,
            "training.sample_length": 0,
        },
    )
    # From the first plane beyond the basic one, which has no surrogates in it.
    vocabulary = "".join(chr(0x10000 + number) for number in range(vocabulary_size))
    length = 4 * config.model.block_size + 2 * config.training.batch_size * config.sequence_length
    dtype = np.uint8 if vocabulary_size <= 256 else np.uint32
    tokens = np.random.default_rng(0).integers(0, vocabulary_size, length).astype(dtype)
    # The way of a run of that length is measured, not that of one as short as this.
    learner = build_learner(config, vocabulary_size, tokens, tokens, planned=planned)
    tokenizer = CharTokenizer.from_vocabulary(vocabulary)
    return Trainer(config, tokenizer, tokens, tokens, learner=learner)


class _MemoryMeter:
    """The memory that training adds to this process on a device, from here on."""

    def __init__(self, device: torch.device) -> None:
        import psutil

        self._device = device
        self._kind = device.type
        self._before = psutil.Process().memory_info().rss

    def begin(self) -> None:
        """Forget the peak."""
        if self._kind == "cuda":
            import torch

            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # Linux: the peak of the process begins anew

    def peak(self) -> int:
        """Return the most bytes in use since `begin`."""
        import torch

        if self._kind == "cuda":
            return int(torch.cuda.max_memory_reserved(self._device))
        if self._kind == "mps":
            return int(torch.mps.driver_allocated_memory())
        return max(0, _peak_resident() - int(self._before))


def _peak_resident() -> int:
    with contextlib.suppress(OSError), open("/proc/self/status") as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage * 1024


def _serve() -> int:
    """Read the request, measure, and say everything on what was stdout."""
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer of ours

    def say(progress: Progress) -> None:
        out.write(msgspec.json.encode(progress).decode() + "\n")

    request = msgspec.json.decode(sys.stdin.buffer.read(), type=Request)
    say(Progress(doing="loading torch"))
    try:
        measure(request, say)
    except Exception as error:  # whatever it is, the workbench says it and lives on
        lines = safe(str(error)).strip().splitlines() or [type(error).__name__]
        say(Progress(error=f"These steps cannot be taken: {lines[0]}"))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_serve())
