"""What each process of a run on several devices does: rank 0 trains, the others follow it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol, TypeAlias

import msgspec
import torch

from megatron_model.config.fields import RunConfig, config_from_builtins
from megatron_model.data.batches import TokenArray
from megatron_model.data.token_cache import PreparedCorpus, prepare_asked, split
from megatron_model.device import available_cores, describe_device
from megatron_model.distributed.ddp import ddp_learner
from megatron_model.distributed.launcher import REFUSED, say_status
from megatron_model.distributed.learner import TeamLearner
from megatron_model.distributed.monitor import RankFailure, RankLostError
from megatron_model.distributed.team import Kind, Order, Team
from megatron_model.events.log import EventLog, last_event
from megatron_model.events.schema import RunFailed
from megatron_model.planning.device_cost import check_batch, check_divisible, one_of, per_device
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_model.run.runner import MakeLearner
from megatron_model.run.session import memory_advice
from megatron_model.training.nonfinite import is_out_of_memory
from megatron_model.util.errors import SAYS, RequestError, RunFailedError
from megatron_model.util.process import keep_freed_memory
from megatron_model.util.text import safe

Plan: TypeAlias = Callable[[], tuple[RunFolder, RunConfig | None]]
"""Returns the run to train, and what to go on with instead of its own settings."""
Say: TypeAlias = Callable[[str], None]
"""Prints one line for people."""


class Follow(Protocol):
    """Trains a run to its end, prints what happens and returns the exit status."""

    def __call__(
        self,
        folder: RunFolder,
        config: RunConfig | None,
        *,
        control: Control,
        make_learner: MakeLearner,
    ) -> int: ...


_logger = logging.getLogger(__name__)


def train(plan: Plan, *, follow: Follow, say: Say) -> NoReturn:
    """Be one of the processes that train a run.

    Args:
        plan: asked in rank 0 alone.
        follow: trains the run; called in rank 0 alone.
        say: how this process prints.
    """
    team = Team()
    status = 1
    try:
        status = _lead(team, plan, follow, say) if team.leads else _obey(team, say)
    except KeyboardInterrupt:
        status = 130
    except Exception:
        _logger.exception("rank %s ended by an unexpected error", team.rank)
    if status:
        # The others wait for what will not come.
        team.watch.leave_note("")
    _leave(status)


def _leave(status: int) -> NoReturn:
    """End at once: the threads of torch that are left may break an orderly end, or wait in it."""
    logging.shutdown()
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    os._exit(status)


def _lead(team: Team, plan: Plan, follow: Follow, say: Say) -> int:
    try:
        folder, changed = plan()
        silence = (changed or folder.read_config()).training.rank_timeout
        about = {"folder": str(folder.path.resolve()), "silence": silence}
        _take_plan(team, about, say)
        control = Control()
        team.watch.orphaned = lambda: control.put("stop")
        team.order(Kind.PLAN, content=json.dumps(about).encode())
        status = follow(
            folder,
            changed,
            control=control,
            make_learner=partial(make_learner, team),
        )
    except RequestError as error:
        say(f"{SAYS}{safe(str(error), one_line=True)}")
        say_status(REFUSED)
        team.order(Kind.END)
        team.end()
        return REFUSED
    except RunFailedError as error:
        team.watch.report(str(error))
        return 1
    # Any other status counts as a failure, and a launcher might start all ranks again.
    return 0 if status >= 128 else status


def _take_plan(team: Team, about: dict[str, object], say: Say) -> None:
    team.watch.silence = float(str(about["silence"]))
    team.watch.report = lambda text: write_failure(Path(str(about["folder"])), text, say)


def write_failure(path: Path, text: str, say: Say) -> None:
    """Write into the log of the run in `path` why it ended, if it does not say so yet."""
    folder = RunFolder(path)
    say(text)
    with contextlib.suppress(OSError, RequestError):
        if isinstance(last_event(folder.events_path), RunFailed):
            return
        log = EventLog(folder.events_path)
        log.record(RunFailed(step=folder.state().step, error=text), sync=True)
        log.close()


def _obey(team: Team, say: Say) -> int:
    # Rank 0 says when it is over; torchrun passes signals on to every rank, as a failure does.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        while (order := team.receive()).kind != Kind.END:
            if order.kind == Kind.PLAN:
                _take_plan(team, json.loads(order.content), say)
            elif order.kind == Kind.BUILD:
                _build(team, order).follow()
                return 0
        team.end()
    except RankLostError as error:
        team.watch.tell(RankFailure(error.rank, str(error)))
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            _logger.exception("rank %s ended by an unexpected error", team.rank)
        team.watch.leave_note(f"failed: {type(error).__name__}: {error}")
        return 1
    return 0


def _build(team: Team, order: Order) -> TeamLearner:
    about = json.loads(order.content)
    config = config_from_builtins(about["config"])
    prepared = _meet_with_corpus(team, config, about["fingerprint"])
    assert prepared is not None
    train, validation = split(prepared, config.data.validation_fraction, config.model.block_size)
    try:
        return build_learner(team, config, about["vocabulary_size"], train, validation)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise MemoryError(memory_advice(config)) from error
        raise


def make_learner(
    team: Team,
    config: RunConfig,
    prepared: PreparedCorpus,
    train: TokenArray,
    validation: TokenArray,
) -> TeamLearner:
    """Have every rank build its learner; returns that of rank 0.

    Raises:
        RequestError: one of the ranks cannot.
    """
    check_batch(config, team.size)
    if divides(config, len(prepared.vocabulary), team):
        check_divisible(config, team.size)
    about = {
        "config": msgspec.to_builtins(config),
        "fingerprint": prepared.fingerprint,
        "vocabulary_size": len(prepared.vocabulary),
    }
    team.order(Kind.BUILD, content=json.dumps(about).encode())
    _meet_with_corpus(team, config, prepared.fingerprint)
    return build_learner(team, config, len(prepared.vocabulary), train, validation)


def _meet_with_corpus(team: Team, config: RunConfig, fingerprint: str) -> PreparedCorpus | None:
    """Make sure that every rank has its device and the corpus; rank 0 returns nothing.

    Raises:
        RequestError: in rank 0, when another has not.
    """
    keep_freed_memory()
    cores = max(1, available_cores() // team.local_size)
    torch.set_num_threads(config.training.threads or cores)
    prepared, problem = None, ""
    # The first rank of a machine prepares what the others of it find in the cache.
    for turn in (team.local_rank == 0, team.local_rank > 0):
        if turn and not problem:
            try:
                team.device(config)
                if not team.leads:
                    prepared = prepare_asked(config.data)
            except RequestError as error:
                problem = str(error)
        team.all(True)
    if prepared is not None and prepared.fingerprint != fingerprint:
        problem = "its corpus is another text than that of rank 0"
    problems = team.gather_texts(problem)
    for rank, text in enumerate(problems):
        if text and team.leads:
            raise RequestError(f"Rank {rank}: {text}")
    if any(problems):
        # Rank 0 says so, and lets everybody go.
        while team.receive().kind != Kind.END:
            pass
        team.end()
        _leave(0)
    return prepared


def build_learner(
    team: Team, config: RunConfig, vocab_size: int, train: TokenArray, validation: TokenArray
) -> TeamLearner:
    """Return this rank's learner; all ranks do this at once."""
    if team.broadcast_number(divides(config, vocab_size, team)):
        from megatron_model.distributed.fsdp import fsdp_learner

        return fsdp_learner(config, vocab_size, train, validation, team)
    return ddp_learner(config, vocab_size, train, validation, team)


def divides(config: RunConfig, vocab_size: int, team: Team) -> bool:
    """Whether the model is divided among the ranks: as asked, or where it does not fit one."""
    if config.training.sharding != "auto":
        return config.training.sharding == "full"
    device = one_of(describe_device(str(team.device(config))), team.local_size)
    cost = per_device(config, vocab_size, devices=team.size, sharding="none", device=device)
    return not cost.fits
