"""The messages that cross a screen: what a person asked of the workbench, and what it found out."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from megatron_model.config import RunConfig
from megatron_model.control import Command
from megatron_model.device import DeviceInfo
from megatron_model.run_folder import Checkpoint, RunFolder
from megatron_tui.corpus_facts import CorpusFacts
from megatron_tui.known_pace import Pace


@dataclass
class RunRequested(Message):
    """A new run was asked for."""

    name: str
    config: RunConfig


@dataclass
class ResumeRequested(Message):
    """Training of a recorded run should go on."""

    folder: RunFolder


@dataclass
class ForkRequested(Message):
    """A new run from a checkpoint of another one was asked for."""

    parent: RunFolder
    checkpoint: Checkpoint
    name: str
    config: RunConfig


@dataclass
class DetachRequested(Message):
    """The run that is trained here should go on in a process of its own."""


@dataclass
class TakeBackRequested(Message):
    """The run that another process trains should go on here."""

    folder: RunFolder


@dataclass
class RunOpened(Message):
    """A run was chosen to be looked at."""

    folder: RunFolder


@dataclass
class GenerationRequested(Message):
    """A run was chosen to write text with."""

    folder: RunFolder


@dataclass
class CommandGiven(Message):
    """The trainer was asked for something."""

    command: Command


@dataclass
class EngineLoaded(Message):
    """torch is there (or failed to come); the engine says which."""


@dataclass
class CorpusInspected(Message):
    """More is known about a corpus."""

    facts: CorpusFacts


@dataclass
class DeviceDescribed(Message):
    """A device was looked at, or there is none of that name."""

    name: str
    device: DeviceInfo | None
    error: str = ""


@dataclass
class PacesRead(Message):
    """The logs of earlier runs were looked at for how fast they were."""

    paces: dict[tuple[object, ...], Pace]
