"""Recorded runs on several devices, for the tests of the screens."""

from __future__ import annotations

from pathlib import Path

import msgspec

from megatron_model.config.fields import with_settings
from megatron_model.events.schema import (
    Event,
    RankMeasured,
    RanksMeasured,
    RunStarted,
    encode_event,
)
from megatron_model.run.folder import RunFolder
from tests.tui.conftest import NOW, copy_recorded, recorded_events

GIB = 1 << 30


def measured(count: int, *, cards: bool = True, step: int = 400) -> RanksMeasured:
    """Return how so many devices do; rank 1 (0 where it is alone) is the slowest."""
    ranks = tuple(
        RankMeasured(
            rank=rank,
            host="node",
            kind="gpu" if cards else "ram",
            name="NVIDIA H100 80GB HBM3" if cards else "2 CPU cores",
            used=(34 + rank) * GIB if cards else (410 + 7 * rank) << 20,
            peak=(38 + rank) * GIB if cards else (450 + 7 * rank) << 20,
            total=80 * GIB if cards else 24 * GIB,
            utilization=0.97 - 0.03 * rank,
            seconds=0.0516 if rank == min(1, count - 1) else 0.048 + 0.0001 * rank,
        )
        for rank in range(count)
    )
    return RanksMeasured(step=step, time=NOW - 40, ranks=ranks)


def together(count: int, *, cards: bool = True) -> list[Event]:
    """Return the events of the recorded run as so many devices would have left them."""
    log: list[Event] = []
    for event in recorded_events():
        if isinstance(event, RunStarted):
            device = "cuda:0" if cards else "cpu"
            event = msgspec.structs.replace(event, devices=count, device=device)
        log.append(event)
    return [*log[:-1], measured(count, cards=cards), log[-1]]


def copy_together(
    runs_dir: Path, count: int, *, cards: bool = True, name: str = "shakespeare-large"
) -> RunFolder:
    """Put a run on so many devices into `runs_dir`."""
    folder = copy_recorded(runs_dir, name)
    folder.events_path.write_bytes(b"".join(map(encode_event, together(count, cards=cards))))
    config = with_settings(folder.read_config(), {"training.devices": count})
    folder.write_config(config, fingerprint=folder.read_corpus_fingerprint())
    return folder
