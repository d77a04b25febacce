"""How fast earlier runs of the same shape were on this machine: what the next one will take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import median

from megatron_model.config.fields import RunConfig
from megatron_model.events.schema import Event, MetricsReported, PhaseChanged, RunStarted
from megatron_model.planning.measurement import cost_key
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError

BEGINNING, END = 50_000, 100_000
"""Bytes of a log that are looked at."""
NEWEST = 20
"""Reports that the pace is taken from: the first ones of a run are slower."""
SAME_MACHINE = 1.6
"""Matrix rates that differ by more than this factor are not of one machine."""


@dataclass(frozen=True)
class Pace:
    """What a step took in a run, and what compiling did before it."""

    seconds_per_step: float
    compile_seconds: float | None
    matrix_rate: float | None

    def of_machine(self, matrix_rate: float | None) -> bool:
        """Whether that run was on a machine as fast as one of this matrix rate."""
        if not self.matrix_rate or not matrix_rate:
            return False
        factor = self.matrix_rate / matrix_rate
        return 1 / SAME_MACHINE <= factor <= SAME_MACHINE


def shape_of(config: RunConfig) -> tuple[object, ...]:
    """Return what has to be equal for the pace of one run to hold for another."""
    return cost_key(config, 0)


def read_paces(folders: Iterable[RunFolder]) -> dict[tuple[object, ...], Pace]:
    """Return the paces of runs by their shapes; of two of one shape, that of the first."""
    paces: dict[tuple[object, ...], Pace] = {}
    for folder in folders:
        try:
            config = folder.read_config()
        except RequestError:
            continue
        if config.training.devices > 1 or shape_of(config) in paces:
            continue
        pace = read_pace(folder, config)
        if pace is not None:
            paces[shape_of(config)] = pace
    return paces


def read_pace(folder: RunFolder, config: RunConfig) -> Pace | None:
    """Return the pace of a run, from the beginning and the end of its log."""
    beginning, _ = folder.read_events(0, limit=BEGINNING)
    try:
        size = folder.events_path.stat().st_size
    except OSError:
        return None
    end, _ = folder.read_events(max(0, size - END), limit=END)
    speeds = [event.tokens_per_second for event in end if isinstance(event, MetricsReported)]
    speeds = [speed for speed in speeds[-NEWEST:] if speed > 0]
    if not speeds:
        return None
    started = next((event for event in beginning if isinstance(event, RunStarted)), None)
    per_step = config.training.batch_size * config.sequence_length
    return Pace(
        per_step / median(speeds),
        _compiling(beginning),
        started.matrix_rate if started is not None else None,
    )


def _compiling(events: list[Event]) -> float | None:
    """Return how long the phase of compiling was; None where there was none worth a word."""
    begun = None
    for event in events:
        if not isinstance(event, PhaseChanged):
            continue
        if begun is not None:
            seconds = event.time - begun
            return seconds if seconds >= 1.0 else None
        if event.phase == "compiling":
            begun = event.time
    return None
