"""What the screens share: the services and the runs folder, handed to each when it is made."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_model.run_folder import RunFolder
from megatron_tui.engine import Engine
from megatron_tui.generation_service import GenerationService
from megatron_tui.preferences import Preferences
from megatron_tui.training_service import TrainingService


@dataclass
class Workbench:
    """The services of one session."""

    runs_dir: Path
    training: TrainingService = field(default_factory=TrainingService)
    generation: GenerationService = field(default_factory=GenerationService)
    engine: Engine = field(default_factory=Engine)
    preferences: Preferences = field(default_factory=Preferences)
    """What is remembered; of this session only, unless the app was made for a person."""
    chosen_run: RunFolder | None = None
    """The run to write with: the one trained or chosen last."""
