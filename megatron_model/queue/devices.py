"""Which devices a run of the queue needs, and the lock on each that no two runs can have. No torch.

The lock is the kernel's. The trainer inherits it from the keeper, which lets go of it: it is held
exactly as long as the trainer lives, whatever becomes of the keeper.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import socket
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from megatron_model.config.fields import RunConfig
from megatron_model.device import may_have_accelerator
from megatron_model.planning.device_look import look_at_one
from megatron_model.run import lock
from megatron_model.run.folder import RunFolder, list_runs
from megatron_model.util.errors import RequestError
from megatron_model.util.user_folders import user_folder


def devices_of(config: RunConfig) -> frozenset[str]:
    """Return the names of the devices that a run computes on.

    Raises:
        RequestError: which one `auto` means cannot be found out.
    """
    name = config.training.device
    if name == "auto":
        name = _chosen() if may_have_accelerator() else "cpu"
    kind, _, index = name.partition(":")
    if kind != "cuda":
        return frozenset([kind])
    first = int(index or 0) if config.training.devices == 1 else 0
    return frozenset(f"cuda:{first + number}" for number in range(config.training.devices))


@cache
def _chosen() -> str:
    return look_at_one("auto").kind


class DeviceLocks:
    """The locks of this machine's devices, for every queue of this user.

    Args:
        elsewhere: the folder to keep them in for a user without a home.
    """

    def __init__(self, elsewhere: Path) -> None:
        state = user_folder("state")
        self._folder = elsewhere if state is None else state / "devices"
        self._host = re.sub(r"[^\w.-]", "-", socket.gethostname())

    def take(self, devices: Iterable[str]) -> list[int] | None:
        """Return open descriptors that hold the devices; None where somebody holds one of them.

        Raises:
            OSError: the files cannot be made.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        taken: list[int] = []
        try:
            for device in sorted(devices):
                path = self._folder / f"{self._host}-{device.replace(':', '-')}.lock"
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                taken.append(os.open(path, flags, 0o600))
                # Where the file system has no locks, the runs' own have to do.
                if lock.try_lock(taken[-1], fcntl.LOCK_EX) is False:
                    let_go(taken)
                    return None
        except BaseException:
            let_go(taken)
            raise
        return taken

    def are_free(self, devices: Iterable[str]) -> bool:
        """Whether nobody holds any of them."""
        taken = self.take(devices)
        let_go(taken or ())
        return taken is not None


def let_go(descriptors: Iterable[int]) -> None:
    """Close what `take` opened: a process that inherited it still holds the device."""
    for descriptor in descriptors:
        os.close(descriptor)


def run_on(devices: frozenset[str], runs_dir: Path) -> RunFolder | None:
    """Return a run that some process trains on one of these devices, if there is one.

    Raises:
        RequestError: the folder of the runs cannot be read.
    """
    for folder in list_runs(runs_dir):
        if folder.is_active():
            with contextlib.suppress(RequestError):
                if devices & devices_of(folder.read_config()):
                    return folder
    return None
