"""What the screens share: the services and the runs folder, handed to each when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_model.run.folder import RunFolder
from megatron_tui.services.generation import GenerationService
from megatron_tui.services.preferences import Preferences
from megatron_tui.services.torch_loader import TorchLoader
from megatron_tui.services.training import TrainingService
from megatron_tui.terminal.connection import Connection


@dataclass
class Workbench:
    """The services of one session."""

    runs_dir: Path
    training: TrainingService = field(default_factory=TrainingService)
    generation: GenerationService = field(default_factory=GenerationService)
    torch_loader: TorchLoader = field(default_factory=TorchLoader)
    preferences: Preferences = field(default_factory=Preferences)
    """What is remembered; of this session only, unless the app was made for a person."""
    connection: Connection = field(default_factory=Connection.of_terminal)
    """The connection to the terminal, which says how often to draw what a run does."""
    chosen_run: RunFolder | None = None
    """The run to write with: the one trained or chosen last."""
