"""Own the thread that loads models and writes text; the screen polls what it wrote."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Literal, Protocol, TypeAlias

from megatron_model.config import SamplingConfig
from megatron_model.errors import RequestError
from megatron_tui.hub import TextHub

Phase: TypeAlias = Literal["idle", "loading", "ready", "writing", "done", "stopped", "failed"]


class Tokenizer(Protocol):
    """What the screen asks of a vocabulary."""

    def unknown(self, text: str) -> list[str]:
        """Return the characters of `text` that the model has never seen."""

    def drop_unknown(self, text: str) -> str:
        """Return `text` without them."""


class Model(Protocol):
    """What the thread asks of a loaded model."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary."""

    @property
    def step(self) -> int:
        """The training step of its weights."""

    def stream(self, prompt: str, sampling: SamplingConfig) -> Iterator[str]:
        """Write one character at a time."""


LoadModel: TypeAlias = Callable[[Path], Model]


@dataclass(frozen=True)
class GenerationStatus:
    """What the thread is doing, as of one moment."""

    phase: Phase = "idle"
    path: Path | None = None
    tokenizer: Tokenizer | None = None
    characters: int = 0
    seconds: float = 0.0
    error: str = ""

    @property
    def characters_per_second(self) -> float | None:
        """The speed of this text, once it can be told."""
        return self.characters / self.seconds if self.seconds > 0 and self.characters else None


@dataclass(frozen=True)
class _Job:
    path: Path
    prompt: str | None = None
    """None only loads the model."""
    sampling: SamplingConfig = SamplingConfig()
    cancelled: threading.Event = field(default_factory=threading.Event)
    text: TextHub = field(default_factory=TextHub)


class GenerationService:
    """One thread, one job at a time; a new job ends the one before it."""

    def __init__(self, load_model: LoadModel | None = None) -> None:
        self._load_model = load_model
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: _Job | None = None
        self._model: tuple[Path, float, Model] | None = None
        self._lock = threading.Lock()
        self._status = GenerationStatus()

    @property
    def status(self) -> GenerationStatus:
        """The present status."""
        with self._lock:
            return self._status

    @property
    def busy(self) -> bool:
        """Whether the thread is loading or writing."""
        return self.status.phase in ("loading", "writing")

    def load(self, path: Path) -> None:
        """Load the model in the checkpoint `path`, so that its vocabulary is known."""
        self._submit(_Job(path))

    def generate(self, path: Path, prompt: str, sampling: SamplingConfig) -> None:
        """Write a text after `prompt`."""
        self._submit(_Job(path, prompt, sampling))

    def cancel(self) -> None:
        """End the present job within one character."""
        if self._current is not None:
            self._current.cancelled.set()

    def drain(self) -> str:
        """Return the characters written since the last call."""
        return self._current.text.drain() if self._current else ""

    def _submit(self, job: _Job) -> None:
        self.cancel()
        self._current = job
        known = self._model is not None and self._model[0] == job.path
        phase: Phase = "writing" if known and job.prompt is not None else "loading"
        tokenizer = self._model[2].tokenizer if known and self._model else None
        self._set(GenerationStatus(phase, job.path, tokenizer))
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="generator")
            self._thread.start()

    def _set(self, status: GenerationStatus) -> None:
        with self._lock:
            self._status = status

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            try:
                self._run(job)
            except RequestError as error:
                self._fail(job, str(error))
            except BaseException as error:  # the screen must say it, and the next job must run
                self._fail(job, f"{type(error).__name__}: {error}")

    def _fail(self, job: _Job, error: str) -> None:
        if job is self._current:
            self._set(replace(self.status, phase="failed", error=error))

    def _run(self, job: _Job) -> None:
        if job is not self._current:
            return
        model = self._loaded(job.path)
        status = GenerationStatus("ready", job.path, model.tokenizer)
        if job.prompt is None or job.cancelled.is_set():
            self._report(job, status)
            return
        self._report(job, replace(status, phase="writing"))
        began = time.monotonic()
        characters = 0
        for character in model.stream(job.prompt, job.sampling):
            if job.cancelled.is_set() or not job.text.put(character):
                break
            characters += 1
            self._report(
                job,
                replace(
                    status,
                    phase="writing",
                    characters=characters,
                    seconds=time.monotonic() - began,
                ),
            )
        phase: Phase = "stopped" if job.cancelled.is_set() else "done"
        self._report(
            job,
            replace(status, phase=phase, characters=characters, seconds=time.monotonic() - began),
        )

    def _report(self, job: _Job, status: GenerationStatus) -> None:
        if job is self._current:
            self._set(status)

    def _loaded(self, path: Path) -> Model:
        changed = _changed(path)
        if self._model is None or self._model[:2] != (path, changed):
            load_model = self._load_model
            if load_model is None:
                from megatron_model.checkpoint import load_model as load_checkpoint

                load_model = load_checkpoint
            self._model = None  # two models at once may not fit
            self._model = (path, changed, load_model(path))
        return self._model[2]


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
