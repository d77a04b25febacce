"""A run: the trainer together with its folder. Prepares, resumes, takes over, and records.

`run_training` is the one way a run is trained, with a screen or without. What happens between the
steps is in session.py.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import torch

from megatron_model import events
from megatron_model.command_folder import CommandFolder
from megatron_model.config import RunConfig, differences, with_settings
from megatron_model.control import Control
from megatron_model.corpus import find_corpus
from megatron_model.corpus_report import trigram_entropy
from megatron_model.device import available_cores
from megatron_model.errors import RequestError
from megatron_model.event_log import EventLog, last_event
from megatron_model.events import RECORDED, Event
from megatron_model.files import clear_leftovers
from megatron_model.notify import notify
from megatron_model.process import keep_freed_memory
from megatron_model.restoring import restore
from megatron_model.run_folder import CHECKPOINTS, RunFolder
from megatron_model.session import Session, memory_advice
from megatron_model.soundness import is_out_of_memory
from megatron_model.text import safe
from megatron_model.token_cache import PreparedCorpus, prepare_corpus, split
from megatron_model.tokenizer import CharTokenizer
from megatron_model.trainer import Trainer

if TYPE_CHECKING:
    from megatron_model.distributed import Team

ASK_AGAIN_SECONDS = 20.0
"""How often a process that wants to take a run over asks the one that trains it."""
TAKE_OVER_SECONDS = 600.0
"""How long it waits: the other one may be in the middle of something long."""

_FIXED = ("model.", "data.encoding", "data.validation_fraction", "training.optimizer")
"""Beginnings of the settings that a run's checkpoints depend on."""

BASELINE_CHARACTERS = 4_000_000
"""Characters that the trigram baseline is counted from: under a second of work."""


def run_training(
    folder: RunFolder,
    control: Control,
    *,
    config: RunConfig | None = None,
    take_over: bool = False,
    team: Team | None = None,
) -> Iterator[Event]:
    """Train the run in `folder` from its latest checkpoint, or from the start, to its end.

    Every event is yielded; those of lasting interest are in the folder's log by then. What
    `control` brings, or another process through the folder, is done between two steps. `config` is
    what to go on with instead of the folder's own settings; it is written there once it is known
    to work. With a `team` this is its rank 0, and the others do what it tells them. With
    `take_over` a process that trains the run is asked to let it go first, once
    everything here is ready to go on.

    Raises:
        RequestError: before `RunStarted`, when what was asked cannot be done. The folder of a run
            that never began is removed.
    """
    devices = (config or folder.config).training.devices
    if team is None and devices > 1:
        raise RequestError(
            f'The run "{folder.name}" trains in {devices} processes: start it with megatron-model '
            f"train --resume {folder.name}, or set training.devices 1."
        )
    if take_over:
        yield from _take_over(folder, control, config or folder.config)
    with folder.lock():
        # What was meant for a trainer that is gone is not for this one; but what was asked while
        # the run changed hands is.
        CommandFolder(folder.path).clear(*(_HANDED_ON if take_over else ()))
        fresh = not folder.events_path.exists() and folder.latest_checkpoint() is None
        try:
            session = yield from _prepare(folder, control, config, team)
            log = EventLog(folder.events_path)
        except RequestError:
            if fresh:
                shutil.rmtree(folder.path, ignore_errors=True)
            raise
        try:
            for event in session.run(log):
                if isinstance(event, RECORDED):
                    log.record(event, sync=isinstance(event, _LAST))
                notify(folder.name, event)
                yield event
        finally:
            log.close()
            del session
            _release_memory()


_LAST = (events.RunFinished, events.RunFailed, events.RunHandedOver)
"""The events that end a session."""

_HANDED_ON = ("pause", "resume", "save", "evaluate", "sample", "stop")


def _release_memory() -> None:
    """Give the device back before the lock: the next trainer may need all of it."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()


def _take_over(folder: RunFolder, control: Control, config: RunConfig) -> Iterator[Event]:
    """Get everything ready, ask whoever trains the run to let it go, and wait until they did."""
    if not folder.is_active():
        return
    # The corpus is in the cache then, and all of torch is loaded: little is left for the gap.
    yield from _read_corpus(config)
    if config.training.optimizer == "adamw":
        # The first optimizer of torch's own loads its compiler: seconds on a busy machine.
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))])
    asked = -ASK_AGAIN_SECONDS
    end = time.monotonic() + TAKE_OVER_SECONDS
    while folder.is_active():
        now = time.monotonic()
        if now > end:
            raise RequestError(
                f'The process that trains the run "{folder.name}" did not let it go.'
            )
        if now - asked >= ASK_AGAIN_SECONDS:
            CommandFolder(folder.path).send("release")
            asked = now
        if control.take() in ("stop", "abort", "release"):
            raise RequestError(f'The run "{folder.name}" was not taken over: told to stop.')
        control.wait(0.02)
    if isinstance(last_event(folder.events_path), (events.RunFinished, events.RunFailed)):
        raise RequestError(f'The run "{folder.name}" ended before it could be taken over.')


def _read_corpus(config: RunConfig) -> Generator[Event, None, tuple[RunConfig, PreparedCorpus]]:
    """Return the prepared corpus, and the configuration with a name for it that holds anywhere."""
    yield events.PhaseChanged(step=0, phase="preparing")
    source = find_corpus(config.data.corpus)
    prepared = yield from prepare_corpus(source, config.data.encoding)
    return with_settings(config, {"data.corpus": source.location}), prepared


def _prepare(
    folder: RunFolder, control: Control, changed: RunConfig | None, team: Team | None
) -> Generator[Event, None, Session]:
    """Read the corpus, build the trainer and bring it to the latest checkpoint that is whole."""
    asked = changed or folder.config
    _check_changes(folder, asked)
    config, prepared = yield from _read_corpus(asked)
    known = folder.corpus_fingerprint
    if known and known != prepared.fingerprint:
        raise RequestError(
            f"The corpus {safe(config.data.corpus)} has changed since this run began; "
            "bring the old text back, or start a new run."
        )
    train, validation = split(prepared, config.data.validation_fraction, config.model.block_size)
    yield events.PhaseChanged(step=0, phase="loading")
    keep_freed_memory()
    if team is None:
        torch.set_num_threads(config.training.threads or available_cores())
    tokenizer = CharTokenizer.from_vocabulary(prepared.vocabulary)
    try:
        learner = None
        if team is not None:
            from megatron_model.distributed_worker import lead

            learner = lead(team, config, prepared, train, validation)
        trainer = Trainer(config, tokenizer, train, validation, learner=learner)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise RequestError(memory_advice(config)) from error
    baseline = trigram_entropy(
        train[:BASELINE_CHARACTERS],
        validation[: BASELINE_CHARACTERS // 4],
        len(prepared.vocabulary),
    )
    if folder.leads_out:
        raise RequestError(
            f"{safe(str(folder.path / CHECKPOINTS))} is a link; put a folder in its place."
        )
    try:
        clear_leftovers(folder.path / CHECKPOINTS)
        passed_over = restore(folder, trainer)
        if changed or not known:
            # With the corpus's full name: the next trainer may work in another folder.
            folder.write_config(config, fingerprint=prepared.fingerprint)
    except OSError as error:
        where = safe(str(error.filename or folder.path))
        raise RequestError(f"Cannot write {where}: {error.strerror}.") from None
    return Session(folder, control, trainer, prepared, baseline, passed_over)


def _check_changes(folder: RunFolder, config: RunConfig) -> None:
    """Refuse a change of what the checkpoints were made with."""
    if folder.latest_checkpoint() is None:
        return
    for key in differences(config, folder.config):
        if key.startswith(_FIXED) and key != "model.dropout":
            raise RequestError(
                f"{key} cannot change in a run that has begun; start a new run with it."
            )
