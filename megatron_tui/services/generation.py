"""Own the thread that loads models, writes text and examines it; the screens poll what it did."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeVar

from megatron_model.config.fields import SamplingConfig
from megatron_model.util.errors import RequestError
from megatron_tui.services.feed import JobFeed, Phase
from megatron_tui.services.model_cache import LoadModel, Model, ModelCache, Tokenizer, Weights

T = TypeVar("T")


@dataclass(frozen=True)
class GenerationStatus:
    """What the thread is doing for the Generation screen, as of one moment."""

    phase: Phase = "idle"
    weights: Weights | None = None
    model: Model | None = None
    characters: int = 0
    seconds: float = 0.0
    error: str = ""
    pause_seconds: float | None = None
    """How long training paused for its weights to be copied, if these are live ones."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The vocabulary, once it is known."""
        return self.model.tokenizer if self.model is not None else None

    @property
    def characters_per_second(self) -> float | None:
        """The speed of this text, once it can be told."""
        return self.characters / self.seconds if self.seconds > 0 and self.characters else None


@dataclass(frozen=True)
class _Job:
    feed: JobFeed[Any]
    weights: tuple[Weights, ...]
    work: Callable[..., Iterator[Any]] | None
    """Makes the items from the models; None only loads them."""
    refresh: bool
    """Copy live weights again."""


class GenerationService:
    """One thread, one job at a time; a new job ends the one before it."""

    def __init__(self, load_model: LoadModel | None = None) -> None:
        self._cache = ModelCache(load_model)
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._current: _Job | None = None
        self._text: _Job | None = None
        """The job of the Generation screen itself."""

    @property
    def status(self) -> GenerationStatus:
        """The present status of the text of the Generation screen."""
        job = self._text
        if job is None:
            return GenerationStatus()
        feed = job.feed
        phase = feed.phase  # asked first: what came before its end is then counted
        model = feed.models[0] if feed.models else None
        return GenerationStatus(
            phase, job.weights[0], model, feed.count, feed.seconds, feed.error, feed.pause_seconds
        )

    @property
    def busy(self) -> bool:
        """Whether the thread is loading or writing for the Generation screen."""
        return self._text is not None and self._text.feed.busy

    def load(self, weights: Weights) -> None:
        """Load a model, so that its vocabulary is known."""
        self._text = self._submit(_Job(JobFeed(), (weights,), None, refresh=False))

    def generate(
        self, weights: Weights, prompt: str, sampling: SamplingConfig, written: str = ""
    ) -> None:
        """Write a text after `prompt`, or go on with what was `written` after it."""

        def work(model: Model) -> Iterator[str]:
            # Not passed where there is nothing to go on with: most models need not know how.
            more = (written,) if written else ()
            return model.stream(prompt, sampling, *more)

        self._text = self._submit(_Job(JobFeed(), (weights,), work, refresh=not written))

    def study(
        self,
        weights: Sequence[Weights],
        work: Callable[..., Iterator[T]],
        *,
        refresh: bool = False,
    ) -> JobFeed[T]:
        """Load models and do `work` with them in the thread; return the feed of what it yields.

        `refresh` copies live weights again, though they were copied before.
        """
        feed: JobFeed[T] = JobFeed()
        self._submit(_Job(feed, tuple(weights), work, refresh=refresh))
        return feed

    def cancel(self) -> None:
        """End the present job within one item."""
        if self._current is not None:
            self._current.feed.cancel()

    def drain(self) -> str:
        """Return the characters written since the last call."""
        return "".join(self._text.feed.drain()) if self._text else ""

    def _submit(self, job: _Job) -> _Job:
        self.cancel()
        cached = [self._cache.known(weights) for weights in job.weights]
        models = tuple(one.model for one in cached if one is not None)
        if len(models) == len(cached):
            job.feed.models = models
        self._current = job
        self._jobs.put(job)
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, daemon=True, name="generator")
            self._thread.start()
        return job

    def _work(self) -> None:
        while True:
            job = self._jobs.get()
            feed = job.feed
            try:
                self._run(job)
            except RequestError as error:
                feed.error = str(error)
                feed.phase = "failed"
            except BaseException as error:  # the screen must say it, and the next job must run
                feed.error = f"{type(error).__name__}: {error}"
                feed.phase = "failed"
            del job, feed  # a model is freed as soon as it is not needed

    def _run(self, job: _Job) -> None:
        feed, loaded = job.feed, list[Model]()
        for weights in job.weights:
            cached = self._cache.get(weights, lambda: feed.cancelled, refresh=job.refresh)
            if cached is None:
                feed.phase = "stopped"
                return
            loaded.append(cached.model)
            if cached.pause_seconds is not None:
                feed.pause_seconds = (feed.pause_seconds or 0.0) + cached.pause_seconds
        feed.models = tuple(loaded)
        if job.work is None:
            feed.phase = "ready"
            return
        feed.begin()
        for item in job.work(*loaded):
            if not feed.put(item):
                break
        feed.phase = "stopped" if feed.cancelled else "done"
