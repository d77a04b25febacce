"""The processes that train one run together: who they are, what they exchange, and their orders.

They were told their ranks by what started them: on one machine the launcher, which has them meet
in a private folder, so that no other process can join; on several torchrun, which has a store that
any process can reach. Rank 0 leads: it alone has the run's folder, takes commands and keeps the
schedule. The others do what it orders, step by step, so that all do the same thing at the same step
without ever having to agree on the time.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from enum import IntEnum
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, Store, TCPStore

from megatron_model.config.fields import RunConfig
from megatron_model.device import choose_device
from megatron_model.distributed.board import Board
from megatron_model.distributed.launcher import MEETING_VARIABLE
from megatron_model.distributed.monitor import STORE_SECONDS, RankMonitor, attribute_failure
from megatron_model.planning.device_cost import check_device
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe

EXCHANGE_TIMEOUT = timedelta(minutes=10)
"""How long the ranks wait for each other in a step: all of them live, but one does not come."""
ORDER_TIMEOUT = timedelta(days=365)
"""How long they wait for an order: a pause may last. Whether rank 0 lives is watched meanwhile."""


class Kind(IntEnum):
    """What rank 0 orders."""

    PLAN = 0
    BUILD = 1
    LOAD = 2
    PREPARE = 3
    STEP = 4
    VALIDATE = 5
    PIECE = 6
    VALIDATED = 7
    GATHER = 8
    CHANGE = 9
    MEASURE = 10
    END = 11


class Order(NamedTuple):
    """One order, with what belongs to it."""

    kind: Kind
    number: int = 0
    value: float = 0.0
    content: bytes = b""


def card_of(local_rank: int, cards: int) -> int:
    """Return the card of a process among those of its machine, of the `cards` that it sees.

    Whoever starts the processes may let each of them see nothing but its own.
    """
    return local_rank % max(1, cards)


def check_own_cards(places: list[str]) -> None:
    """Refuse a card that two processes would share, which NCCL does not allow.

    Args:
        places: of each rank its machine and its card.

    Raises:
        RequestError: two are alike.
    """
    for rank, place in enumerate(places):
        if place in places[:rank]:
            raise RequestError(
                f"Ranks {places.index(place)} and {rank} would train on the same card of "
                f"{safe(place.partition(' ')[0], one_line=True)}; start as many processes there as "
                "it has cards, or set training.device cpu."
            )


class Team:
    """This process among those that train together."""

    def __init__(self) -> None:
        environment = os.environ
        self.rank = int(environment["RANK"])
        self.size = int(environment["WORLD_SIZE"])
        self.local_rank = int(environment["LOCAL_RANK"])
        self.local_size = int(environment.get("LOCAL_WORLD_SIZE", "1"))
        self.on_one_machine = self.local_size == self.size
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        if torch.cuda.is_available():
            torch.cuda.set_device(card_of(self.local_rank, torch.cuda.device_count()))
        meeting = environment.get(MEETING_VARIABLE)
        by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        dist.init_process_group(
            backend,
            # Not by torch's own default: that would find the addresses of an earlier attempt.
            store=FileStore(str(Path(meeting, "store")), self.size)
            if meeting
            else _store(EXCHANGE_TIMEOUT, keeps=self.leads and not by_agent),
            rank=self.rank,
            world_size=self.size,
            timeout=EXCHANGE_TIMEOUT,
        )
        # On the host, whatever the devices are: an order must not wait for a device.
        self._orders = dist.new_group(backend="gloo", timeout=ORDER_TIMEOUT)
        connect = partial(Board, Path(meeting)) if meeting else _store
        self.watch = RankMonitor(connect, rank=self.rank, size=self.size)
        self.barrier()
        self.watch.begin()
        self.sent_bytes = 0
        """Bytes given to collective operations so far, each counted once."""

    @property
    def leads(self) -> bool:
        """Whether this is rank 0."""
        return self.rank == 0

    def device(self, config: RunConfig) -> torch.device:
        """Return this process's device.

        Raises:
            RequestError: there is none for it.
        """
        check_device(config, self.size)
        name = config.training.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name == "cpu":
            return choose_device("cpu")
        card = card_of(self.local_rank, torch.cuda.device_count())
        device = choose_device(f"cuda:{card}")
        uuid = torch.cuda.get_device_properties(device).uuid
        check_own_cards(self.gather_texts(f"{host()} {uuid}"))
        return device

    def order(self, kind: Kind, number: int = 0, value: float = 0.0, content: bytes = b"") -> None:
        """Have the others do something; rank 0 only, and does nothing in any other."""
        if not self.leads:
            return
        header = torch.tensor([kind, number, value, len(content)], dtype=torch.float64)
        with attribute_failure(self.watch):
            dist.broadcast(header, 0, group=self._orders)
            if content:
                body = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                dist.broadcast(body, 0, group=self._orders)

    def receive(self) -> Order:
        """Wait for the next order."""
        header = torch.zeros(4, dtype=torch.float64)
        with attribute_failure(self.watch):
            dist.broadcast(header, 0, group=self._orders)
            kind, number, value, length = header.tolist()
            body = torch.zeros(int(length), dtype=torch.uint8)
            if length:
                dist.broadcast(body, 0, group=self._orders)
        return Order(Kind(int(kind)), int(number), value, body.numpy().tobytes())

    def barrier(self) -> None:
        """Wait until every rank is here, however long that takes."""
        self.sum_numbers([0.0])

    def sum_numbers(self, values: Sequence[float]) -> list[float]:
        """Return the sums of these numbers over all ranks, which may take long to come."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._orders)
        return [float(value) for value in tensor]

    def all(self, good: bool) -> bool:
        """Whether all ranks say so."""
        with attribute_failure(self.watch):
            return self.sum_numbers([float(good)])[0] == self.size

    def gather_numbers(self, values: Sequence[float]) -> list[list[float]]:
        """Return the numbers of every rank, in the order of the ranks."""
        table = torch.zeros(self.size, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        with attribute_failure(self.watch):
            dist.all_reduce(table, group=self._orders)
        return [[float(value) for value in row] for row in table]

    def broadcast_number(self, value: int) -> int:
        """Return rank 0's number."""
        return int(self.gather_numbers([float(value)])[0][0])

    def lowest(self, value: int) -> int:
        """Return the lowest of all ranks' numbers."""
        return int(min(row[0] for row in self.gather_numbers([float(value)])))

    def gather_texts(self, text: str) -> list[str]:
        """Return the texts of every rank, in the order of the ranks."""
        # As bytes, not by torch's collectives of objects: those unpickle what they are sent.
        own = torch.tensor(list(text.encode()), dtype=torch.uint8)
        lengths = [int(row[0]) for row in self.gather_numbers([float(len(own))])]
        padded = torch.zeros(max(1, *lengths), dtype=torch.uint8)
        padded[: len(own)] = own
        table = [torch.empty_like(padded) for _ in lengths]
        with attribute_failure(self.watch):
            dist.all_gather(table, padded, group=self._orders)
        pairs = zip(table, lengths, strict=True)
        return [part[:length].numpy().tobytes().decode() for part, length in pairs]

    def all_reduce(self, tensor: Tensor) -> None:
        """Add up a tensor over all ranks, in place."""
        self.sent_bytes += tensor.numel() * tensor.element_size()
        with attribute_failure(self.watch):
            dist.all_reduce(tensor)

    def broadcast(self, tensor: Tensor) -> None:
        """Give rank 0's tensor to all, in place."""
        with attribute_failure(self.watch):
            dist.broadcast(tensor, 0)

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the parts of all ranks, all of one shape, one after the other."""
        whole = part.new_empty(self.size * part.size(0), *part.shape[1:])
        self.sent_bytes += part.numel() * part.element_size()
        with attribute_failure(self.watch):
            # As bytes: every backend knows them, and nothing is computed on the way.
            dist.all_gather_into_tensor(_as_bytes(whole), _as_bytes(part))
        return whole

    def all_to_all(self, parts: Tensor) -> Tensor:
        """Give part r of (size, ...) to rank r; return what the ranks had for this one."""
        received = torch.empty_like(parts)
        self.sent_bytes += parts.numel() * parts.element_size()
        with attribute_failure(self.watch):
            dist.all_to_all_single(_as_bytes(received), _as_bytes(parts))
        return received

    def end(self) -> None:
        """Part in order: all are here, and none will wait for another again."""
        self.watch.end()
        with attribute_failure(self.watch):
            self.barrier()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8).flatten()


def _store(timeout: timedelta = timedelta(seconds=STORE_SECONDS), *, keeps: bool = False) -> Store:
    """Return a connection of its own to torchrun's store, for this attempt alone.

    Where torchrun has none to share, rank 0 `keeps` it.
    """
    store = TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=keeps,
        timeout=timeout,
        wait_for_workers=False,
        multi_tenant=True,
    )
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return PrefixStore(f"megatron/{attempt}", store)


def host() -> str:
    """Return this machine's name."""
    return socket.gethostname()
