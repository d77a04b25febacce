"""Look at devices in a process of its own, which ends afterwards. No torch here.

Who looks at a card holds half a gigabyte of it until it ends, and a card in exclusive mode then
belongs to it: the workbench must not be the one. ``python -m megatron_model.planning.device_look``
gets the names of devices as arguments, and prints a `Look` as JSON a line.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from megatron_model.device import DeviceInfo, measured_device
from megatron_model.util.errors import RequestError
from megatron_model.util.python_child import start_python
from megatron_model.util.text import safe

LIMIT_SECONDS = 120.0
"""A driver that takes longer hangs."""


class Look(Struct, frozen=True):
    """What was found out about a device, or why nothing was."""

    name: str
    device: DeviceInfo | None = None
    error: str = ""


def look_at(names: Sequence[str]) -> dict[str, Look]:
    """Return what is known of each device by its name; what did not answer has an error."""
    found = {name: Look(name, error=f'The device "{name}" gives no answer.') for name in names}
    try:
        process = start_python(
            "megatron_model.planning.device_look",
            *names,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except OSError as error:
        reason = f"Cannot look at the devices: {error.strerror}."
        return {name: Look(name, error=reason) for name in names}
    try:
        out, _ = process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        out, _ = process.communicate()
    for line in out.splitlines():
        with contextlib.suppress(msgspec.DecodeError):
            look = msgspec.json.decode(line, type=Look)
            found[look.name] = look
    return found


def look_at_one(name: str) -> DeviceInfo:
    """Return what is known of a device.

    Raises:
        RequestError: nothing is, for a reason that is told.
    """
    look = look_at([name])[name]
    if look.device is None:
        raise RequestError(look.error)
    return look.device


def _serve(names: Sequence[str]) -> None:
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer of ours
    for name in names:
        try:
            look = Look(name, measured_device(name))
        except RequestError as error:
            look = Look(name, error=str(error))
        except RuntimeError as error:  # the driver's: a card that is another's, or full
            lines = safe(str(error)).strip().splitlines() or [type(error).__name__]
            look = Look(name, error=f'The device "{name}" cannot be used: {lines[0]}')
        out.write(msgspec.json.encode(look).decode() + "\n")


if __name__ == "__main__":
    _serve(sys.argv[1:])
