"""Load what is slow to load (torch, plotext) behind the first frame, and find out what computes."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

from megatron_model.device import DeviceInfo
from megatron_model.planning.device_look import look_at, look_at_one
from megatron_model.util.errors import RequestError

GARBAGE_THRESHOLDS = (10_000, 10, 10)
"""New objects until the youngest are looked through; how many times until the older ones are."""

DescribeDevice: TypeAlias = Callable[[], DeviceInfo]


class TorchLoader:
    """A thread that runs once; `state` says how far it is."""

    def __init__(self, describe_device: DescribeDevice | None = None) -> None:
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.device: DeviceInfo | None = None
        self.cards: int | None = None
        """How many CUDA devices there are, once torch has counted them."""
        self.error = ""
        self._describe_device = describe_device

    def load(self, when_done: Callable[[], object]) -> None:
        """Begin; `when_done` is called from the thread."""
        threading.Thread(
            target=self._load, args=(when_done,), daemon=True, name="torch loader"
        ).start()

    def describe(self, name: str) -> DeviceInfo:
        """Look at one device by its name, from a thread.

        Raises:
            RequestError: this machine has no such device.
        """
        if self._describe_device is not None or self.state != "ready":
            known = self.device
            if known is None or name not in ("auto", known.kind):
                raise RequestError(f'This machine has no device "{name}".')
            return known
        return look(name)

    def list_devices(self) -> dict[str, DeviceInfo]:
        """Look at every device of this machine, from a thread; their memory is that of now."""
        names = ["auto", "cpu"]
        if self._describe_device is None and self.state == "ready":
            import torch

            names += [f"cuda:{number}" for number in range(torch.cuda.device_count())]
            names += ["mps"] if torch.backends.mps.is_available() else []
        if self.cards:  # all of them by one process
            looks = look_at(names).values()
            return {each.name: each.device for each in looks if each.device is not None}
        found = {}
        for name in names:
            with contextlib.suppress(RequestError, RuntimeError):
                found[name] = self.describe(name)
        return found

    def _load(self, when_done: Callable[[], object]) -> None:
        # Garbage looked for among a growing heap of modules stops the screen, again and again.
        gc.disable()
        try:
            self.device = (self._describe_device or describe_machine)()
            if self._describe_device is None:
                self.cards = count_cards()
            self.state = "ready"
        except Exception as error:  # a broken torch must not take the screen with it
            self.state, self.error = "failed", f"{type(error).__name__}: {error}"
        with contextlib.suppress(ImportError):
            import plotext._figure  # noqa: F401  # so that the first chart does not wait for it
        # The modules are here to stay. What is left is looked through more rarely than usual: each
        # whole look holds up keys for longer than it takes to paint a screen.
        gc.freeze()
        gc.set_threshold(*GARBAGE_THRESHOLDS)
        gc.enable()
        when_done()


def count_cards() -> int:
    """Return how many CUDA devices torch can use."""
    import torch

    return torch.cuda.device_count()


def describe_machine() -> DeviceInfo:
    """Import torch, look at the device it would choose, and measure how fast that multiplies."""
    return look("auto")


def look(name: str) -> DeviceInfo:
    """Look at a device and measure it: at an accelerator from another process, at a CPU from here.

    Raises:
        RequestError: this machine has no such device, or it does not answer.
    """
    from megatron_model.device import choose_device, measured_device

    return measured_device(name) if choose_device(name).type == "cpu" else look_at_one(name)
