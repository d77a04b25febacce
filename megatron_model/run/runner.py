"""A run: the trainer together with its folder. Prepares, resumes, takes over, and records.

`run_training` is the one way a run is trained, with a screen or without. What happens between the
steps is in session.py.
"""

from __future__ import annotations

import contextlib
import gc
import shlex
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TypeAlias

import torch

from megatron_model.config.fields import RunConfig, differences, with_settings
from megatron_model.data.batches import TokenArray
from megatron_model.data.corpus import MissingCorpusError, find_corpus
from megatron_model.data.report import trigram_entropy
from megatron_model.data.token_cache import (
    PreparedCorpus,
    prepare_asked,
    prepare_corpus,
    split,
    with_characters,
)
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.device import available_cores
from megatron_model.events import schema as events
from megatron_model.events.log import EventLog, last_event
from megatron_model.events.schema import RECORDED, Event
from megatron_model.events.tensorboard import FOLDER as CURVE_FOLDER
from megatron_model.events.tensorboard import CurveLog
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.control import REQUESTS, Control, is_ending
from megatron_model.run.folder import CHECKPOINTS, RunFolder
from megatron_model.run.notify import notify
from megatron_model.run.restore import restore
from megatron_model.run.session import Session, memory_advice
from megatron_model.training.learner import Learner, warm_up
from megatron_model.training.nonfinite import is_out_of_memory
from megatron_model.training.trainer import Trainer
from megatron_model.util import fallback
from megatron_model.util.errors import RequestError
from megatron_model.util.files import clear_leftovers
from megatron_model.util.process import keep_freed_memory
from megatron_model.util.text import safe

MakeLearner: TypeAlias = Callable[[RunConfig, PreparedCorpus, TokenArray, TokenArray], Learner]
"""Makes what computes the steps from the configuration, the corpus and its two splits."""

ASK_AGAIN_SECONDS = 20.0
"""How often a process that wants to take a run over asks the one that trains it."""
TAKE_OVER_SECONDS = 600.0
"""How long it waits: the other one may be in the middle of something long."""

_FIXED = (
    "model.",
    "data.encoding",
    "data.errors",
    "data.reading",
    "data.validation_fraction",
    "training.optimizer",
)
"""Beginnings of the settings that a run's checkpoints depend on."""

BASELINE_CHARACTERS = 4_000_000
"""Characters that the trigram baseline is counted from: under a second of work."""


def run_training(
    folder: RunFolder,
    control: Control,
    *,
    config: RunConfig | None = None,
    take_over: bool = False,
    make_learner: MakeLearner | None = None,
    begun: float | None = None,
) -> Iterator[Event]:
    """Train the run in `folder` from its latest checkpoint, or from the start, to its end.

    Every event is yielded; those of lasting interest are in the folder's log by then. What
    `control` brings, or another process through the folder, is done between two steps. `config` is
    used instead of the folder's own settings, and written there once it is known
    to work. `make_learner` makes the learner of a run that several processes train; without it
    this process trains alone. The run's time counts from when it was asked for, `begun` by
    `time.perf_counter`, else from now. With `take_over` the process that trains the run hands it
    over first, once everything here is ready.

    Raises:
        RequestError: before `RunStarted`, when what was asked cannot be done. The folder of a run
            that never began is removed.
    """
    begun = time.perf_counter() if begun is None else begun
    asked = config or folder.read_config()
    if folder.read_imported():
        raise RequestError(
            f'The run "{folder.name}" was imported: it has weights, but no state of a trainer; go '
            f"on from them with megatron-model train CORPUS --from {folder.name}."
        )
    devices = asked.training.devices
    if make_learner is None and devices > 1:
        raise RequestError(
            f'The run "{folder.name}" trains in {devices} processes: start it with megatron-model '
            f"train --resume {folder.name}, or set training.devices 1."
        )
    fallback.forget()
    with folder.removed_unless_begun():
        if take_over:
            yield from _take_over(folder, control, asked)
            begun = time.perf_counter()  # the time before is that of the other one
        with folder.lock():
            yield from _train(folder, control, config, take_over, make_learner, begun)


def _train(
    folder: RunFolder,
    control: Control,
    config: RunConfig | None,
    take_over: bool,
    make_learner: MakeLearner | None,
    begun: float,
) -> Iterator[Event]:
    """Train the run, which is locked now."""
    # Commands to a trainer that is gone are not for this one; requests made during the hand-over
    # are.
    CommandFolder(folder.path).clear(*(REQUESTS if take_over else ()))
    try:
        session = yield from _prepare(folder, control, config, make_learner, begun)
        log = EventLog(folder.events_path)
        curves = CurveLog(folder.path / CURVE_FOLDER) if session.writes_curves else None
    except OSError as error:
        where = safe(str(error.filename or folder.path))
        raise RequestError(f"Cannot write {where}: {error.strerror or error}.") from None
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RequestError(memory_advice(config or folder.read_config())) from error
    event: Event | None = None
    try:
        for event in session.run(log):
            if isinstance(event, RECORDED):
                log.record(event, sync=isinstance(event, _LAST))
                if curves is not None:
                    curves.record(event)
            notify(folder.name, event)
            yield event
    finally:
        log.close()
        if curves is not None:
            curves.close()
        if isinstance(event, (events.RunFinished, events.RunFailed)):
            # Commands that came too late must not reach the next trainer.
            CommandFolder(folder.path).clear()
        del session
        _release_memory()


_LAST = (events.RunFinished, events.RunFailed, events.RunHandedOver)
"""The events that end a session."""


def _release_memory() -> None:
    """Give the device back before the lock: the next trainer may need all of it."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.compiler.reset()
        torch.cuda.empty_cache()


def _take_over(folder: RunFolder, control: Control, config: RunConfig) -> Iterator[Event]:
    """Get everything ready, ask the process that trains the run to hand it over, and wait."""
    if not folder.is_active():
        return
    # The corpus is in the cache then, and all of torch is loaded: little is left for the gap.
    config, prepared = yield from _read_corpus(folder, config)
    if config.training.optimizer == "adamw":
        # The first optimizer of torch's own loads its compiler: seconds on a busy machine.
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    warm_up(config, len(prepared.vocabulary))
    asked = -ASK_AGAIN_SECONDS
    end = time.monotonic() + TAKE_OVER_SECONDS
    while folder.is_active():
        now = time.monotonic()
        if now > end:
            raise RequestError(
                f'The process that trains the run "{folder.name}" did not hand it over.'
            )
        if now - asked >= ASK_AGAIN_SECONDS:
            CommandFolder(folder.path).send("hand_over")
            asked = now
        if is_ending(control.take()):
            raise RequestError(f'The run "{folder.name}" was not taken over: told to stop.')
        control.wait(0.02)
    if isinstance(last_event(folder.events_path), (events.RunFinished, events.RunFailed)):
        raise RequestError(f'The run "{folder.name}" ended before it could be taken over.')


def _read_corpus(
    folder: RunFolder, config: RunConfig
) -> Generator[Event, None, tuple[RunConfig, PreparedCorpus]]:
    """Return the prepared corpus, and the configuration with a name for it that holds anywhere."""
    yield events.PhaseChanged(step=0, phase="preparing")
    data = config.data
    try:
        source = find_corpus(data.corpus, data.reading)
    except MissingCorpusError as missing:
        if not folder.read_corpus_fingerprint():
            raise
        raise RequestError(_moved(folder, config, missing.neighbour)) from None
    prepared = yield from prepare_corpus(source, data.encoding, errors=data.errors)
    if (origin := folder.read_origin()) is not None:
        prepared = with_characters(prepared, origin.unused)
    return with_settings(config, {"data.corpus": source.location}), prepared


def _moved(folder: RunFolder, config: RunConfig, neighbour: Path | None) -> str:
    """Say how to resume a run whose corpus was moved; a path is named only if it is that corpus."""
    place = "PATH"
    if neighbour is not None:
        with contextlib.suppress(RequestError):
            there = with_settings(config, {"data.corpus": str(neighbour)})
            if prepare_asked(there.data).fingerprint == folder.read_corpus_fingerprint():
                place = str(neighbour)
    words = ["megatron-model", "train", "--resume", str(folder.path.absolute())]
    return (
        f"The corpus {safe(config.data.corpus)} of this run is gone; if it was moved, resume "
        f"with {shlex.join(words)} --set {shlex.quote(f'data.corpus={place}')}."
    )


def _prepare(
    folder: RunFolder,
    control: Control,
    changed: RunConfig | None,
    make_learner: MakeLearner | None,
    begun: float,
) -> Generator[Event, None, Session]:
    """Read the corpus, build the trainer and bring it to the latest checkpoint that is whole."""
    recorded = folder.read_config()
    if changed is not None:
        _check_changes(folder, recorded, changed)
    config, prepared = yield from _read_corpus(folder, changed or recorded)
    known = folder.read_corpus_fingerprint()
    if known and known != prepared.fingerprint:
        raise RequestError(
            f"The corpus {safe(config.data.corpus)} has changed since this run began; "
            "bring the old text back, or start a new run."
        )
    train, validation = split(prepared, config.data.validation_fraction, config.model.block_size)
    yield events.PhaseChanged(step=0, phase="loading")
    keep_freed_memory()
    if make_learner is None:
        torch.set_num_threads(config.training.threads or available_cores())
    tokenizer = CharTokenizer.from_vocabulary(prepared.vocabulary)
    learner = make_learner and make_learner(config, prepared, train, validation)
    trainer = Trainer(config, tokenizer, train, validation, learner=learner, begun=begun)
    baseline = trigram_entropy(
        train[:BASELINE_CHARACTERS],
        validation[: BASELINE_CHARACTERS // 4],
        len(prepared.vocabulary),
    )
    if folder.leads_out:
        raise RequestError(
            f"{safe(str(folder.path / CHECKPOINTS))} is a link; put a folder in its place."
        )
    clear_leftovers(folder.path / CHECKPOINTS)
    if (origin := folder.read_origin()) is not None and folder.latest_checkpoint() is None:
        raise RequestError(
            f"The weights of {safe(origin.model, one_line=True)} that this run was to begin with "
            "are gone from its folder; start a new run with --from."
        )
    skipped = restore(folder, trainer)
    # New settings that leave nothing to do are a mistake; without any, a finished run stays as it
    # is, also for a script that resumes it again and again.
    asked_again = changed is not None or last_event(folder.events_path) is None
    if asked_again and trainer.step and trainer.finished:
        raise _nothing_left(folder, trainer)
    if changed or not known:
        # With the corpus's full name: the next trainer may work in another folder.
        folder.write_config(config, fingerprint=prepared.fingerprint)
    return Session(folder, control, trainer, prepared, baseline, skipped)


def _nothing_left(folder: RunFolder, trainer: Trainer) -> RequestError:
    if trainer.progress < 1.0:
        enough = {
            "patience": "its validation loss got no better for too long; set training.patience to "
            "more, or to 0",
            "target": "its validation loss is as low as it was to be; set training.target_loss to "
            "less, or to 0",
        }
        return RequestError(f'The run "{folder.name}" is finished: {enough[trainer.enough]}.')
    if trainer.config.training.max_seconds:
        seconds = trainer.config.training.max_seconds
        done, setting = f"its time budget of {seconds:g} s is used up", "training.max_seconds"
    else:
        done, setting = f"its {trainer.step:,} steps are done", "training.steps"
    return RequestError(f'The run "{folder.name}" is finished: {done}; set {setting} to more.')


def _check_changes(folder: RunFolder, recorded: RunConfig, changed: RunConfig) -> None:
    """Refuse a change of what the checkpoints were made with."""
    if folder.latest_checkpoint() is None:
        return
    for key in differences(changed, recorded):
        if key.startswith(_FIXED) and key != "model.dropout":
            raise RequestError(
                f"{key} cannot change in a run that has begun; start a new run with it."
            )
