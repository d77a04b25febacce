"""The screen of each mode; what only one of them needs is imported when it is first opened."""

from __future__ import annotations

from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.workbench import Workbench


def make_screen(mode: str, workbench: Workbench, corpus: str) -> WorkbenchScreen:
    """Return the screen of a mode, with `corpus` chosen if it is the one that chooses."""
    if mode == "setup":
        from megatron_tui.screens.setup import SetupScreen

        return SetupScreen(workbench, corpus=corpus)
    if mode == "training":
        from megatron_tui.screens.training import TrainingScreen

        return TrainingScreen(workbench)
    if mode == "generation":
        from megatron_tui.screens.generation import GenerationScreen

        return GenerationScreen(workbench)
    from megatron_tui.screens.runs import RunsScreen

    return RunsScreen(workbench)
