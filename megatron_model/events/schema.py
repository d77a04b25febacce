"""The vocabulary of a run: all that can happen in one, as frozen records, and their JSON lines.

A live run and a recorded one are the same sequence of these records. Nothing here imports torch.
"""

from __future__ import annotations

import re
import time as _time
import typing
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import Struct

Phase: TypeAlias = Literal[
    "loading", "preparing", "compiling", "training", "evaluating", "sampling", "saving", "paused"
]


Reason: TypeAlias = Literal["completed", "budget", "patience", "target", "stopped"]
"""Why a run ended well."""

Count: TypeAlias = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
"""A whole number that fits a machine word. A line with a larger one is damaged: beyond 308 digits
a number cannot be divided, and beyond 4,300 not even be written."""


def _snake_case(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Event(Struct, frozen=True, kw_only=True, gc=False, tag_field="event", tag=_snake_case):
    """One thing that happened at `step`, at `time` (Unix seconds, UTC)."""

    step: Count
    time: float = msgspec.field(default_factory=_time.time)


class RunStarted(Event, frozen=True, kw_only=True):
    """Training began, or began again from a checkpoint (`step` is then its step)."""

    name: str
    corpus: str
    characters: Count
    vocabulary_size: Count
    parameters: Count
    steps: Count
    device: str
    devices: Count = 1
    """How many processes train together, each on a device like this one."""
    precision: str = "float32"
    max_seconds: float = 0.0
    batch_size: Count = 0
    block_size: Count = 0
    unigram_entropy: float | None = None
    """Nats per character of the best guess that ignores context: a model must get below it."""
    trigram_entropy: float | None = None
    """Nats per character of counting what follows two characters; None where it is not known."""
    sequence_length: Count = 0
    """Characters of a training sequence; 0 in old logs: the whole block."""
    evaluate_every: Count = 0
    checkpoint_every: Count = 0
    flops_per_character: float | None = None
    matrix_rate: float | None = None
    """Floating-point operations a second that the devices reach in plain matrix products."""
    parent: str = ""
    """Name of the run this one was forked from, at `parent_step`."""
    parent_step: Count = 0
    elapsed_seconds: float = 0.0


class PhaseChanged(Event, frozen=True, kw_only=True):
    """The run turned to another kind of work."""

    phase: Phase


class CorpusProgress(Event, frozen=True, kw_only=True):
    """`done` of `total` bytes of the corpus are prepared; not written to the log."""

    done: Count
    total: Count


class StepCompleted(Event, frozen=True, kw_only=True, tag="step_taken"):
    """One update is done; the moment to pause, save or stop. Not written to the log."""

    elapsed_seconds: float


class WorkProgress(Event, frozen=True, kw_only=True):
    """The phase at hand (an evaluation, say) is done by this share. Not written to the log."""

    share: float


class MetricsReported(Event, frozen=True, kw_only=True, tag="step_finished"):
    """The report of `training.log_every` steps; the loss is their mean in nats per character."""

    train_loss: float
    learning_rate: float
    gradient_norm: float
    tokens_per_second: float
    elapsed_seconds: float
    data_wait: float | None = None
    """Share of the time in which the step waited for its batch; None where nothing waits."""


class Evaluated(Event, frozen=True, kw_only=True):
    """The loss over the whole validation split, in nats and in bits per character."""

    val_loss: float
    bits_per_character: float
    elapsed_seconds: float


class SampleGenerated(Event, frozen=True, kw_only=True):
    """What the model wrote after `prompt`, with the same seed every time."""

    prompt: str
    text: str


class CheckpointSaved(Event, frozen=True, kw_only=True):
    """A checkpoint is whole and on disk; `path` is relative to the run folder."""

    path: str
    val_loss: float | None = None


class DeviceSampled(Event, frozen=True, kw_only=True):
    """Memory of the training device in bytes: `kind` says which (gpu, or ram of this process).

    Of a card `used` counts everybody's, and the others this process's alone.
    """

    kind: Literal["gpu", "ram"]
    name: str
    used: Count
    peak: Count
    """The most that this process held for its tensors."""
    total: Count
    utilization: float | None = None
    temperature: float | None = None
    """Degrees Celsius."""
    reserved: Count | None = None
    """Held for tensors now, by this process; of that `allocated` are in use."""
    allocated: Count | None = None
    process: Count | None = None
    """Everything of this process on the card, by the driver's count."""


class RankMeasured(Struct, frozen=True, kw_only=True, gc=False):
    """One of the processes that train together, and its device; memory in bytes."""

    rank: Count
    host: str
    kind: Literal["gpu", "ram"]
    name: str
    used: Count
    peak: Count
    total: Count
    utilization: float | None = None
    seconds: float | None = None
    """What a step took of its own time lately, without waiting for the others; None: no step."""


class RanksMeasured(Event, frozen=True, kw_only=True):
    """How the processes of a run on more than one device do, in the order of their ranks."""

    ranks: tuple[RankMeasured, ...]

    @property
    def slowest(self) -> RankMeasured | None:
        """The process the others wait for; None before the first step."""
        timed = [rank for rank in self.ranks if rank.seconds is not None]
        return max(timed, key=lambda rank: rank.seconds or 0.0, default=None)


class Notice(Event, frozen=True, kw_only=True, tag="noticed"):
    """Something worth a line in the run's log: a choice made, or a thing that did not work."""

    text: str


class WeightsTakenOver(Event, frozen=True, kw_only=True):
    """The run began with the weights of a model, and goes on from them with a text of its own."""

    model: str = ""
    """The run or the file that the weights are from."""
    model_step: Count = 0
    model_val_loss: float | None = None
    """The model's loss on the text that it was trained on; None where it does not say."""
    known_characters: Count = 0
    """Characters of the vocabulary that the model knew: they keep their weights."""
    new_characters: str = ""
    """Characters of the text that it did not know."""


class SettingChanged(Event, frozen=True, kw_only=True):
    """A setting of the run was changed while it trained; `new` counts from the next step on."""

    key: str
    old: Count | float
    new: Count | float


class Alert(Event, frozen=True, kw_only=True, tag="alerted"):
    """The run cannot continue until a person, or time, has fixed something."""

    text: str


class RunPaused(Event, frozen=True, kw_only=True):
    """Training waits."""


class RunResumed(Event, frozen=True, kw_only=True):
    """Training continues after a pause."""


class RunHandedOver(Event, frozen=True, kw_only=True):
    """This process handed the run over at `step`, all of it saved; another one continues it."""

    elapsed_seconds: float


class RunFinished(Event, frozen=True, kw_only=True):
    """The run ended well: its steps are done, its time is up, its loss got no better for too long
    or is low enough, or it was told to stop."""

    reason: Reason
    elapsed_seconds: float


class RunFailed(Event, frozen=True, kw_only=True):
    """The run cannot go on; `error` says why and what to do."""

    error: str


AnyRecorded: TypeAlias = (
    RunStarted
    | PhaseChanged
    | MetricsReported
    | Evaluated
    | SampleGenerated
    | CheckpointSaved
    | DeviceSampled
    | RanksMeasured
    | Notice
    | WeightsTakenOver
    | SettingChanged
    | Alert
    | RunPaused
    | RunResumed
    | RunHandedOver
    | RunFinished
    | RunFailed
)
"""The kinds of event that are written to the log and printed by ``--json``."""

RECORDED: tuple[type[Event], ...] = typing.get_args(AnyRecorded)

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(AnyRecorded)


def encode_event(event: Event) -> bytes:
    """Return the event as one JSON line, newline included."""
    return _encoder.encode(event) + b"\n"


def decode_event(line: bytes) -> Event | None:
    """Read one JSON line; a kind of event this version does not know, or damage, gives None."""
    try:
        event: Event = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return event


def decode_events(lines: bytes) -> list[Event]:
    """Read whole lines at once, several times as fast as one by one; damaged ones are left out."""
    try:
        events: list[Event] = _decoder.decode_lines(lines)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        found = map(decode_event, lines.split(b"\n"))
        events = [event for event in found if event is not None]
    return events


def local_time(moment: float, pattern: str) -> str:
    """Return the time of an event as the clock here shows it; a dash where it is not a time.

    A log may hold any number there: a damaged one, or one that a program of another kind wrote.
    """
    try:
        return _time.strftime(pattern, _time.localtime(moment))
    except (ValueError, OverflowError, OSError):  # NaN, or a year that the calendar does not reach
        return "-"
