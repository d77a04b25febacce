"""The Training screen: the run on show, live or recorded, and the keys that command it."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container, Vertical
from textual.content import Content

from megatron_model.control import Command
from megatron_tui.curves import ChartView
from megatron_tui.messages import CommandGiven, ResumeRequested
from megatron_tui.screens.dialogs import Confirm
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.training_service import OpenRun
from megatron_tui.widgets.panel import Text
from megatron_tui.widgets.training_panels import (
    FiguresPanel,
    LogPanel,
    LossPanel,
    MemoryPanel,
    RunProgress,
    SamplePanel,
)
from megatron_tui.workbench import Workbench

EMPTY = Content.assemble(
    ("No run is open.\n\n", "bold"),
    "Press ",
    ("F2", "bold $primary"),
    " to set up a run and start it, or ",
    ("F5", "bold $primary"),
    " to open one that was recorded.",
)

PANELS = ("loss", "now", "memory", "sample", "log")


class TrainingScreen(WorkbenchScreen):
    """Compose the panels, hand them the run, pass commands up."""

    MODE = "training"
    CSS_PATH = "training.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("p", "pause", "Pause", tooltip="Pause or go on", id="training.pause"),
        Binding("s", "command('save')", "Save", tooltip="Save now", id="training.save"),
        Binding(
            "e",
            "command('evaluate')",
            "Evaluate",
            tooltip="Measure the validation loss now",
            id="training.evaluate",
        ),
        Binding(
            "g",
            "command('sample')",
            "Sample",
            tooltip="Write a sample",
            id="training.sample",
        ),
        Binding("S", "stop", "Stop", tooltip="Save and end the run", id="training.stop"),
        Binding("R", "resume", "Resume", tooltip="Train further", id="training.resume"),
        Binding("y", "log_scale", "Log", tooltip="Logarithmic loss on or off", id="chart.log"),
        Binding("x", "x_axis", "Axis", tooltip="Steps or time along the bottom", id="chart.axis"),
        Binding(
            "plus",
            "smooth(1)",
            "Smooth",
            key_display="+",
            tooltip="Smooth the train loss more",
            id="chart.smoother",
        ),
        Binding(
            "minus",
            "smooth(-1)",
            "Smooth",
            key_display="-",
            tooltip="Smooth the train loss less",
            id="chart.rougher",
        ),
        Binding("0", "smooth(0)", "Smooth", tooltip="Show the train loss raw", id="chart.raw"),
        *(
            Binding(
                str(number),
                f"panel('{name}')",
                f"Panel {name}",
                show=False,
                tooltip=f"Show or hide the panel: {name}",
                id=f"panel.{name}",
            )
            for number, name in enumerate(PANELS, 1)
        ),
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.view = ChartView()

    def compose_body(self) -> ComposeResult:
        """Panels over the progress line; a sentence while there is no run."""
        yield Container(Text(EMPTY), id="empty")
        with Vertical(id="run"):
            with Container(id="panels"):
                with Vertical(id="left"):
                    yield LossPanel()
                    yield SamplePanel()
                with Vertical(id="right"):
                    yield FiguresPanel()
                    yield MemoryPanel()
                    yield LogPanel()
            yield RunProgress()

    def on_mount(self) -> None:
        """Panels know their size only after the first layout."""
        self.set_interval(1.0, self._update_age)

    def on_resize(self) -> None:
        """Legends and columns depend on the width."""
        self.call_after_refresh(self.update_run)

    def show_run(self, run: OpenRun | None) -> None:
        """Show the run, or what to do without one."""
        self.set_class(run is not None, "-open")
        if run is not None:
            state = run.state
            self.query_one(LossPanel).show(state, self.view)
            self.query_one(FiguresPanel).show(state)
            self.query_one(MemoryPanel).show(state, self.view)
            self.query_one(SamplePanel).show(state)
            self.query_one(LogPanel).show(run)
            self.query_one(RunProgress).show(run, self.workbench.training.now())
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done with the run on show."""
        run = self.workbench.training.shown
        if action in ("pause", "command", "stop"):
            return run is not None and run.here and run.active and not run.stopping
        if action == "resume":
            return run is not None and run.resumable and self.workbench.training.training is None
        if action in ("log_scale", "x_axis", "smooth", "panel"):
            return run is not None
        return True

    def action_pause(self) -> None:
        """Pause, or go on."""
        run = self.workbench.training.shown
        paused = run is not None and run.standing == "paused"
        self.post_message(CommandGiven("resume" if paused else "pause"))

    def action_command(self, command: Command) -> None:
        """Ask the trainer for a checkpoint, a validation or a sample."""
        self.post_message(CommandGiven(command))

    def action_stop(self) -> None:
        """Ask whether to stop."""
        run = self.workbench.training.shown
        if run is None:
            return

        def stop(confirmed: bool | None) -> None:
            if confirmed:
                self.post_message(CommandGiven("stop"))

        self.app.push_screen(
            Confirm(
                "Stop this run?",
                f"{run.name} is at step {run.state.step:,}. It saves a checkpoint and ends; "
                "it can be resumed later.",
                yes="Save and stop",
                no="Go on training",
            ),
            stop,
        )

    def action_resume(self) -> None:
        """Train the open run further."""
        run = self.workbench.training.shown
        if run is not None:
            self.post_message(ResumeRequested(run.folder))

    def action_log_scale(self) -> None:
        """Switch between linear and logarithmic loss."""
        self.view = replace(self.view, log_y=not self.view.log_y)
        self.update_run()

    def action_x_axis(self) -> None:
        """Switch between steps and time."""
        self.view = replace(self.view, x_axis="time" if self.view.x_axis == "step" else "step")
        self.update_run()

    def action_smooth(self, change: int) -> None:
        """Smooth more, less or not at all."""
        self.view = self.view.smoother(change)
        self.update_run()

    def action_panel(self, name: str) -> None:
        """Show or hide one panel."""
        panel = self.query_one(f"#{name}")
        panel.set_class(not panel.has_class("-hidden"), "-hidden")
        for column in (self.query_one("#left"), self.query_one("#right")):
            column.set_class(
                all(child.has_class("-hidden") for child in column.children), "-hidden"
            )
        self.call_after_refresh(self.update_run)

    def _update_age(self) -> None:
        run = self.workbench.training.shown
        if run is not None and run.active and self.is_active:
            self.query_one(RunProgress).show(run, self.workbench.training.now())
