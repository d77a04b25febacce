"""What screens ask of the app: the messages that leave a screen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from textual.message import Message

from megatron_model.config.fields import RunConfig
from megatron_model.run.control import Command
from megatron_model.run.folder import Checkpoint, RunFolder


class FallbackUsed(Message):
    """Something optional was not to be had; see megatron_model/util/fallback.py."""


@dataclass
class RunRequested(Message):
    """A new run was asked for, which may begin with the weights of another one."""

    name: str
    config: RunConfig
    model: Path | None = None


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
class LearningOnRequested(Message):
    """A new run from the weights of a recorded one was asked for, with another text."""

    model: RunFolder
    corpus: str


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
class TorchLoaded(Message):
    """torch is there (or failed to come); the engine says which."""
