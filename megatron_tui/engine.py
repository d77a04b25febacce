"""Load what is slow to load (torch, plotext) behind the first frame, and find out what computes."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Literal, TypeAlias

import msgspec

from megatron_model.device import DeviceInfo

DescribeDevice: TypeAlias = Callable[[], DeviceInfo]


class Engine:
    """A thread that runs once; `state` says how far it is."""

    def __init__(self, describe_device: DescribeDevice | None = None) -> None:
        self.state: Literal["loading", "ready", "failed"] = "loading"
        self.device: DeviceInfo | None = None
        self.error = ""
        self._describe_device = describe_device

    def load(self, when_done: Callable[[], object]) -> None:
        """Begin; `when_done` is called from the thread."""
        threading.Thread(
            target=self._load, args=(when_done,), daemon=True, name="engine loader"
        ).start()

    def _load(self, when_done: Callable[[], object]) -> None:
        try:
            self.device = (self._describe_device or describe_machine)()
            self.state = "ready"
        except Exception as error:  # a broken torch must not take the screen with it
            self.state, self.error = "failed", f"{type(error).__name__}: {error}"
        with contextlib.suppress(ImportError):
            import plotext._figure  # noqa: F401  # so that the first chart does not wait for it
        when_done()


def describe_machine() -> DeviceInfo:
    """Import torch, look at the device it would choose, and measure how fast that multiplies."""
    from megatron_model.device import (
        choose_device,
        choose_precision,
        describe_device,
        measure_matrix_rate,
    )

    device = choose_device()
    rate = measure_matrix_rate(device, choose_precision("auto", device))
    return msgspec.structs.replace(describe_device(), matrix_rate=rate)
