"""Which device a run trains on, or how many together: what the list offers, what a choice means."""

from __future__ import annotations

from megatron_model.config.fields import TrainingConfig
from megatron_model.device import DeviceInfo
from megatron_model.util.text import plural
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui import formatting
from megatron_tui.ui.pick import Entry, Pick

TIMES = " x "
"""Between the number of devices and what they are."""


def device_entries(plan: SetupPlan) -> list[Entry]:
    """Return the devices of this machine with their free memory, each alone and then together."""
    # The best comes first; the rest may have been found in any order.
    known = {"auto": plan.devices["auto"]} if "auto" in plan.devices else {}
    devices = {**known, **plan.devices}
    entries = []
    for name, device in devices.items():
        free = f"{formatting.size(device.memory_free)} of {formatting.size(device.memory_total)}"
        detail = f"{device.name}, {free} free"
        entries.append(Entry(name, name, detail, "The best one here." if name == "auto" else ""))
    entries += _cards_together(devices) + _cores_together(devices, plan.cores)
    present = present_device(plan)
    if all(entry.value != present for entry in entries):
        entries.append(Entry(present, present, "not on this machine"))
    return entries


def device_pick(plan: SetupPlan) -> Pick:
    """Return the list of devices; the ones not looked at yet come later."""
    return Pick("Train on which device?", device_entries(plan), present_device(plan))


def present_device(plan: SetupPlan) -> str:
    """Return the entry that stands for the present settings."""
    training: TrainingConfig = plan.checked.config.training
    if training.devices == 1:
        return training.device
    name = training.device
    if name == "auto" and plan.device is not None:
        name = plan.device.kind
    return f"{training.devices}{TIMES}{name}"


def device_changes(entry: str) -> dict[str, object]:
    """Return the settings that an entry stands for."""
    count, times, name = entry.rpartition(TIMES)
    return {"training.device": name, "training.devices": int(count) if times else 1}


def _counts(most: int) -> list[int]:
    """Return how many of `most` to offer: 2, 4, 8 and so on, and all of them."""
    doubled = [2**power for power in range(1, most.bit_length())]
    return sorted({count for count in (*doubled, most) if 1 < count <= most})


def _cards_together(devices: dict[str, DeviceInfo]) -> list[Entry]:
    cards = [device for name, device in devices.items() if name.startswith("cuda:")]
    if len(cards) < 2:
        return []
    free = min(card.memory_free for card in cards)
    names = ", ".join(dict.fromkeys(card.name for card in cards))
    more = "The model on each card, or a part of it where it does not fit (training.sharding)."
    return [
        Entry(
            f"{count}{TIMES}cuda",
            f"{count}{TIMES}cuda",
            f"{names}, {formatting.size(free)} free on each",
            more,
        )
        for count in _counts(len(cards))
    ]


def _cores_together(devices: dict[str, DeviceInfo], cores: int) -> list[Entry]:
    if "cpu" not in devices:
        return []
    free = devices["cpu"].memory_free
    more = "Processes that share the memory and the cores: a rehearsal for a machine with cards."
    return [
        Entry(
            f"{count}{TIMES}cpu",
            f"{count}{TIMES}cpu",
            f"{count} processes, {plural(cores // count, 'core')} and "
            f"{formatting.size(free // count)} each",
            more,
        )
        for count in _counts(cores)
    ]
