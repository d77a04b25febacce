"""Real ranks for tests, with gloo between them: forked from a server that has torch loaded.

They are told their ranks as torchrun would tell them, and run the program's own command line.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from typing import Any

from megatron_model.run.folder import RunFolder

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.model.distributed.preload"])

PATIENCE = 60.0


@dataclass
class Ranks:
    """Some processes that train together."""

    processes: list[BaseProcess]

    def wait(self) -> list[int]:
        """Wait for the end of all; returns their exit statuses, negative for a signal."""
        for process in self.processes:
            process.join(PATIENCE)
        codes = [process.exitcode for process in self.processes]
        assert None not in codes, f"ranks that did not end: {codes}"
        return [int(code or 0) for code in codes]

    def signal(self, rank: int, number: int) -> None:
        """Send a signal to one rank."""
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)


@contextlib.contextmanager
def start_ranks(size: int, target: Callable[..., Any], *arguments: Any) -> Iterator[Ranks]:
    """Have `size` processes call `target(*arguments)`; none outlives the block."""
    from torch.distributed import TCPStore

    # As torchrun does, this process keeps the store.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    common = {
        "WORLD_SIZE": str(size),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "GLOO_SOCKET_IFNAME": "lo",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        **{k: v for k, v in os.environ.items() if k.startswith(("XDG_", "MEGATRON_", "HOME"))},
    }
    processes: list[BaseProcess] = []
    for rank in range(size):
        own = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        process: BaseProcess = _context.Process(target=_call, args=(own, target, arguments))
        process.start()
        processes.append(process)
    try:
        yield Ranks(processes)
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()


def _call(env: dict[str, str], target: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(env)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    target(*arguments)


def train(arguments: Sequence[str]) -> None:
    """Be one of the processes that ``torchrun -m megatron_model train`` starts."""
    from megatron_model.cli.parser import main

    sys.argv = ["megatron-model", "train", *arguments]
    with open(os.devnull, "w") as nothing, contextlib.redirect_stderr(nothing):
        main()


def train_together(folder: RunFolder, size: int, *arguments: str) -> list[int]:
    """Train the run to its end with so many processes; returns their exit statuses."""
    with start_ranks(size, train, ["--resume", str(folder.path), *arguments]) as ranks:
        return ranks.wait()
