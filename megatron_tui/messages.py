"""The messages that cross a screen: what a person asked of the workbench, and what it found out."""

from __future__ import annotations

from dataclasses import dataclass

from textual.message import Message

from megatron_model.config import RunConfig
from megatron_model.control import Command
from megatron_model.run_folder import RunFolder
from megatron_tui.corpus_facts import CorpusFacts


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
