"""What each process that torchrun started does: rank 0 trains the run, the others follow it."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import torch

from megatron_model.config import RunConfig, config_from_builtins
from megatron_model.control import Control
from megatron_model.corpus import find_corpus
from megatron_model.dataset import TokenArray
from megatron_model.device import available_cores, describe_device
from megatron_model.distributed import Kind, Order, Team
from megatron_model.distributed_cost import check_divisible, one_of, per_device
from megatron_model.distributed_launch import say_status
from megatron_model.distributed_learner import RankedLearner
from megatron_model.distributed_watch import Finding, RankLostError
from megatron_model.errors import RequestError, RunFailedError
from megatron_model.event_log import EventLog, last_event
from megatron_model.events import RunFailed
from megatron_model.headless import follow, say
from megatron_model.process import keep_freed_memory
from megatron_model.run_folder import RunFolder
from megatron_model.session import memory_advice
from megatron_model.soundness import is_out_of_memory
from megatron_model.text import safe
from megatron_model.token_cache import PreparedCorpus, prepare_now, split

REFUSED = 2

Plan = Callable[[argparse.Namespace], tuple[RunFolder, RunConfig | None]]
"""From the command line to the run, and what to go on with instead of its own settings."""

_logger = logging.getLogger(__name__)


def train(options: argparse.Namespace, plan: Plan) -> NoReturn:
    """Be one of the processes that train; `plan` is asked in rank 0 alone."""
    team = Team()
    status = 1
    try:
        status = _lead(team, options, plan) if team.leads else _follow(team)
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


def _lead(team: Team, options: argparse.Namespace, plan: Plan) -> int:
    try:
        folder, changed = plan(options)
        silence = (changed or folder.config).training.rank_timeout
        about = {"folder": str(folder.path.resolve()), "silence": silence}
        _take_plan(team, about)
        control = Control()
        team.watch.orphaned = lambda: control.put("stop")
        team.order(Kind.PLAN, content=json.dumps(about).encode())
        status = follow(
            folder,
            changed,
            json_lines=options.json,
            take_over=options.take_over,
            team=team,
            control=control,
        )
    except RequestError as error:
        say(f"megatron-model: {safe(str(error), one_line=True)}")
        say_status(REFUSED)
        team.order(Kind.END)
        team.end()
        return REFUSED
    except RunFailedError as error:
        team.watch.report(str(error))
        return 1
    # torchrun takes anything else for a failure, and might start all ranks again.
    return 0 if status >= 128 else status


def _take_plan(team: Team, about: dict[str, object]) -> None:
    team.watch.silence = float(str(about["silence"]))
    team.watch.report = lambda text: write_failure(Path(str(about["folder"])), text)


def write_failure(path: Path, text: str) -> None:
    """Write into the log of the run in `path` why it ended, if it does not say so yet."""
    folder = RunFolder(path)
    say(text)
    with contextlib.suppress(OSError, RequestError):
        if isinstance(last_event(folder.events_path), RunFailed):
            return
        log = EventLog(folder.events_path)
        log.record(RunFailed(step=folder.state().step, error=text), sync=True)
        log.close()


def _follow(team: Team) -> int:
    # Rank 0 says when it is over; torchrun passes signals on to every rank.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    try:
        while (order := team.receive()).kind != Kind.END:
            if order.kind == Kind.PLAN:
                _take_plan(team, json.loads(order.content))
            elif order.kind == Kind.BUILD:
                _build(team, order).follow()
                return 0
        team.end()
    except RankLostError as error:
        team.watch.tell(Finding(error.rank, str(error)))
        return 1
    except Exception as error:
        if not is_out_of_memory(error):
            _logger.exception("rank %s ended by an unexpected error", team.rank)
        team.watch.leave_note(f"failed: {type(error).__name__}: {error}")
        return 1
    return 0


def _build(team: Team, order: Order) -> RankedLearner:
    about = json.loads(order.content)
    config = config_from_builtins(about["config"])
    prepared = _meet_with_corpus(team, config, about["fingerprint"])
    assert prepared is not None
    train, validation = split(prepared, config.data.validation_fraction, config.model.block_size)
    try:
        return build_learner(team, config, len(prepared.vocabulary), train, validation)
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise MemoryError(memory_advice(config)) from error
        raise


def lead(
    team: Team,
    config: RunConfig,
    prepared: PreparedCorpus,
    train: TokenArray,
    validation: TokenArray,
) -> RankedLearner:
    """Have every rank build its learner; returns that of rank 0.

    Raises:
        RequestError: one of the ranks cannot.
    """
    if config.training.batch_size < team.size:
        raise RequestError(
            f"training.batch_size ({config.training.batch_size}) is less than the {team.size} "
            "processes that train together; each needs a sequence of its own."
        )
    if divides(config, len(prepared.vocabulary), team):
        check_divisible(config, team.size)
    about = {"config": msgspec.to_builtins(config), "fingerprint": prepared.fingerprint}
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
                    prepared = prepare_now(find_corpus(config.data.corpus), config.data.encoding)
            except RequestError as error:
                problem = str(error)
        team.all(True)
    if prepared is not None and prepared.fingerprint != fingerprint:
        problem = "its corpus is another text than that of rank 0"
    problems = team.texts(problem)
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
) -> RankedLearner:
    """Return this rank's learner; all ranks do this at once."""
    if team.leaders(divides(config, vocab_size, team)):
        from megatron_model.distributed_sharding import ShardedLearner

        return ShardedLearner(config, vocab_size, train, validation, team)
    return RankedLearner(config, vocab_size, train, validation, team)


def divides(config: RunConfig, vocab_size: int, team: Team) -> bool:
    """Whether the model is divided among the ranks: as asked, or where it does not fit one."""
    if config.training.sharding != "auto":
        return config.training.sharding == "full"
    device = one_of(describe_device(str(team.device(config))), team.local_size)
    cost = per_device(config, vocab_size, devices=team.size, sharding="none", device=device)
    return not cost.fits
