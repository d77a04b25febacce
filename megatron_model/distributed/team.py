"""The processes that train one run together: who they are, what they exchange, and their orders.

torchrun starts them and tells each its rank. Rank 0 leads: it alone has the run's folder, takes
commands and keeps the schedule. The others do what it orders, step by step, so that all do the
same thing at the same step without ever having to agree on the time.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Sequence
from datetime import timedelta
from enum import IntEnum
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, TCPStore

from megatron_model.config import RunConfig
from megatron_model.device import choose_device
from megatron_model.distributed_watch import STORE_SECONDS, Watch, blaming
from megatron_model.errors import RequestError

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
        if torch.cuda.is_available() and self.local_rank < torch.cuda.device_count():
            torch.cuda.set_device(self.local_rank)
        by_agent = environment.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        dist.init_process_group(
            backend,
            # Not by torch's own default: that would find the addresses of an earlier attempt.
            store=_store(EXCHANGE_TIMEOUT, keeps=self.leads and not by_agent),
            rank=self.rank,
            world_size=self.size,
            timeout=EXCHANGE_TIMEOUT,
        )
        # On the host, whatever the devices are: an order must not wait for a device.
        self._orders = dist.new_group(backend="gloo", timeout=ORDER_TIMEOUT)
        self.watch = Watch(_store, rank=self.rank, size=self.size)
        self.meet()
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
        name = config.training.device
        if name == "auto":
            name = "cuda" if torch.cuda.is_available() else "cpu"
        if name not in ("cpu", "cuda"):
            raise RequestError(
                f'training.device is "{name}"; a run on several devices needs auto, cpu or cuda.'
            )
        return choose_device("cpu" if name == "cpu" else f"cuda:{self.local_rank}")

    def order(self, kind: Kind, number: int = 0, value: float = 0.0, content: bytes = b"") -> None:
        """Have the others do something; rank 0 only, and does nothing in any other."""
        if not self.leads:
            return
        header = torch.tensor([kind, number, value, len(content)], dtype=torch.float64)
        with blaming(self.watch):
            dist.broadcast(header, 0, group=self._orders)
            if content:
                body = torch.frombuffer(bytearray(content), dtype=torch.uint8)
                dist.broadcast(body, 0, group=self._orders)

    def receive(self) -> Order:
        """Wait for the next order."""
        header = torch.zeros(4, dtype=torch.float64)
        with blaming(self.watch):
            dist.broadcast(header, 0, group=self._orders)
            kind, number, value, length = header.tolist()
            body = torch.zeros(int(length), dtype=torch.uint8)
            if length:
                dist.broadcast(body, 0, group=self._orders)
        return Order(Kind(int(kind)), int(number), value, body.numpy().tobytes())

    def meet(self) -> None:
        """Wait until every rank is here, however long that takes."""
        self.sums([0.0])

    def sums(self, values: Sequence[float]) -> list[float]:
        """Return the sums of these numbers over all ranks, which may take long to come."""
        tensor = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._orders)
        return [float(value) for value in tensor]

    def all(self, good: bool) -> bool:
        """Whether all ranks say so."""
        with blaming(self.watch):
            return self.sums([float(good)])[0] == self.size

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        """Return the numbers of every rank, in the order of the ranks."""
        table = torch.zeros(self.size, len(values), dtype=torch.float64)
        table[self.rank] = torch.tensor(values, dtype=torch.float64)
        with blaming(self.watch):
            dist.all_reduce(table, group=self._orders)
        return [[float(value) for value in row] for row in table]

    def leaders(self, value: int) -> int:
        """Return rank 0's number."""
        return int(self.gather([float(value)])[0][0])

    def lowest(self, value: int) -> int:
        """Return the lowest of all ranks' numbers."""
        return int(min(row[0] for row in self.gather([float(value)])))

    def texts(self, text: str) -> list[str]:
        """Return the texts of every rank, in the order of the ranks."""
        found: list[Any] = [""] * self.size
        with blaming(self.watch):
            dist.all_gather_object(found, text, group=self._orders)
        return [str(one) for one in found]

    def sum(self, tensor: Tensor) -> None:
        """Add up a tensor over all ranks, in place."""
        self.sent_bytes += tensor.numel() * tensor.element_size()
        with blaming(self.watch):
            dist.all_reduce(tensor)

    def spread(self, tensor: Tensor) -> None:
        """Give rank 0's tensor to all, in place."""
        with blaming(self.watch):
            dist.broadcast(tensor, 0)

    def collect(self, part: Tensor) -> Tensor:
        """Return the parts of all ranks, all of one shape, one after the other."""
        whole = part.new_empty(self.size * part.size(0), *part.shape[1:])
        self.sent_bytes += part.numel() * part.element_size()
        with blaming(self.watch):
            # As bytes: every backend knows them, and nothing is computed on the way.
            dist.all_gather_into_tensor(_as_bytes(whole), _as_bytes(part))
        return whole

    def exchange(self, parts: Tensor) -> Tensor:
        """Give part r of (size, ...) to rank r; return what the ranks had for this one."""
        received = torch.empty_like(parts)
        self.sent_bytes += parts.numel() * parts.element_size()
        with blaming(self.watch):
            dist.all_to_all_single(_as_bytes(received), _as_bytes(parts))
        return received

    def end(self) -> None:
        """Part in order: all are here, and none will wait for another again."""
        self.watch.end()
        with blaming(self.watch):
            self.meet()
        with contextlib.suppress(Exception):
            dist.destroy_process_group()


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8).flatten()


def _store(timeout: timedelta = timedelta(seconds=STORE_SECONDS), *, keeps: bool = False) -> Any:
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
