"""The rows of the preflight card for several devices: what each needs and sends, in both ways."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from megatron_model.planning.device_cost import BANDWIDTH, DeviceCost
from megatron_model.planning.preflight import Preflight
from megatron_tui.ui import formatting

Part: TypeAlias = tuple[str, str]
"""Some words and their style."""


def several_rows(
    result: Preflight, each: Sequence[DeviceCost]
) -> list[tuple[str | None, list[Part]]]:
    """Return the rows of the preflight card: what every device needs and sends, both ways."""
    whole, divided = each
    devices: list[Part] = [(f"{whole.devices}", "bold")]
    if result.memory_free is not None:
        devices.append((f", each {formatting.size(result.memory_free)} free", "$quiet"))
    rows: list[tuple[str | None, list[Part]]] = [("devices", devices)]
    chosen = divided if divided.total_bytes == result.total_bytes else whole
    for label, cost in (("DDP", whole), ("FSDP2", divided)):
        fits = {True: "bold $success", False: "bold $error", None: "bold"}[cost.fits]
        sends = f", {formatting.size(cost.traffic_bytes)}/step"
        parts = [
            ("▸ " if cost is chosen else "  ", "$primary"),
            (formatting.size(cost.total_bytes), fits if cost is chosen else ""),
            (", does not fit" if cost.fits is False else sends, "$quiet"),
        ]
        rows.append((label, parts))
    if chosen.speedup is not None:
        gain = [
            (f"{chosen.speedup:.2f}x", "bold"),
            (f" or more at {BANDWIDTH / 1e9:.0f} GB/s", "$quiet"),
        ]
        rows.append(("scaling", gain))
    elif chosen.fits is not None:
        rows.append(("scaling", [("none: they share the cores", "$quiet")]))
    return rows
