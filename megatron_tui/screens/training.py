"""The Training screen: the run on show, live or recorded, and the keys that command it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.events import ScreenResume
from textual.worker import get_current_worker

from megatron_model.control import Command
from megatron_model.errors import RequestError
from megatron_model.fork import nearest_checkpoint
from megatron_model.run_folder import RunFolder
from megatron_model.run_state import RunState
from megatron_model.text import safe
from megatron_tui import branching, compare
from megatron_tui.alerts import Alert, AlertWatch
from megatron_tui.chart_view import looking_at
from megatron_tui.compare import Compared
from megatron_tui.curves import OtherRun
from megatron_tui.film_strip import FilmStrip
from megatron_tui.messages import (
    CommandGiven,
    DetachRequested,
    ForkRequested,
    ResumeRequested,
    TakeBackRequested,
)
from megatron_tui.open_run import OpenRun
from megatron_tui.screens.ask_values import AskValues, Question
from megatron_tui.screens.stop_run import Ending, StopRun
from megatron_tui.screens.training_charts import ChartScreen
from megatron_tui.screens.training_keys import CHART_KEYS, PANEL_KEYS, RUN_KEYS
from megatron_tui.several_devices import rank_count
from megatron_tui.widgets.panel import Text
from megatron_tui.widgets.ranks_panel import RanksPanel
from megatron_tui.widgets.training_panels import (
    AlertBar,
    FiguresPanel,
    LogPanel,
    LossPanel,
    MetricsPanel,
    RunProgress,
    SamplePanel,
)
from megatron_tui.workbench import Workbench

FEW = 4
"""Devices whose lines leave the other panels as they are."""

EMPTY = Content.assemble(
    ("No run is open.\n\n", "bold"),
    "Press ",
    ("F2", "bold $primary"),
    " to set up a run and start it, or ",
    ("F5", "bold $primary"),
    " to open one that was recorded.",
)


class TrainingScreen(ChartScreen):
    """Compose the panels, hand them the run, pass commands up."""

    MODE = "training"
    CSS_PATH = "training.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *RUN_KEYS,
        *CHART_KEYS,
        *PANEL_KEYS,
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.alerts: list[Alert] = []
        self._watch = AlertWatch()
        self._offered: object = None
        self._chosen_alert = 0
        self._path: Path | None = None
        """Folder of the run that was shown last."""
        self._ancestors: list[OtherRun] = []
        self.compared: tuple[Compared, ...] = ()

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
                    yield RanksPanel()
                    yield MetricsPanel()
                    yield LogPanel()
            yield AlertBar()
            yield RunProgress()

    def on_mount(self) -> None:
        """Panels know their size only after the first layout."""
        self.made = True
        self.restore_panels()
        self._clock = self.set_interval(1.0, self._update_age)
        self.call_after_refresh(self.settle_columns)

    def on_unmount(self) -> None:
        """The parts are gone."""
        self.made = False

    def on_resize(self) -> None:
        """Legends and columns depend on the width."""
        self.call_after_refresh(self.settle_columns)

    def on_screen_resume(self, _event: ScreenResume | None = None) -> None:
        """Look at the clock again, and at the keys."""
        self._offered = None
        self._clock.resume()

    def on_screen_suspend(self) -> None:
        """Nobody looks: no clock."""
        self._clock.pause()

    @property
    def others(self) -> list[OtherRun]:
        """The runs drawn with the one on show: its parents, and those it is compared with."""
        return [*self._ancestors, *compare.overlays(self.compared)]

    def show_run(self, run: OpenRun | None) -> None:
        """Show the run, or what to do without one."""
        self.set_class(run is not None, "-open")
        if run is not None:
            if run.folder.path != self._path:
                self._begin(run)
            state = run.state
            self.query_one(LossPanel).show(state, self.view, self.others)
            self.query_one(FiguresPanel).show(state)
            self._show_ranks(state)
            self.query_one(MetricsPanel).show(state, self.view, self.metric)
            self.query_one(SamplePanel).show(state, self.strip, self.view.unit)
            self.query_one(LogPanel).show(run)
            self._show_clock(run)
        else:
            self._offer(run)

    def _show_ranks(self, state: RunState) -> None:
        """Show the devices where there are several; the panel has a place then."""
        several = rank_count(state) > 1
        if several != self.has_class("-several"):
            self.set_class(several, "-several")
            self.set_class(rank_count(state) > FEW, "-many")
            if self.large == "ranks":
                self._enlarge("")
            self.call_after_refresh(self.settle_columns)
        self.query_one(RanksPanel).show(state)

    def _offer(self, run: OpenRun | None) -> None:
        """Look which keys act, when that can have changed: the whole of it costs milliseconds."""
        idle = self.workbench.training.training is None
        standing = run is not None and (
            run.folder.path, run.active, run.here, run.stopping, run.leaving, run.resumable,
            run.state.last_checkpoint_step is None, bool(self.alerts),
        )  # fmt: skip
        if self._offered != (idle, standing):
            self._offered = (idle, standing)
            self.refresh_bindings()

    def _begin(self, run: OpenRun) -> None:
        """Another run is on show: forget the places in the one before."""
        self._path = run.folder.path
        self._ancestors, self.compared = [], ()
        self.strip, self._chosen_alert = FilmStrip(), 0
        self.view = self.view.whole()
        self._read_ancestors(run.folder)

    @work(thread=True, exclusive=True, group="ancestors", exit_on_error=False)
    def _read_ancestors(self, folder: RunFolder) -> None:
        found = branching.ancestors(folder)
        if found and not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._take_ancestors, folder, found)

    def _take_ancestors(self, folder: RunFolder, found: list[OtherRun]) -> None:
        if folder.path == self._path:
            self._ancestors = found
            self.update_run()

    def _update_age(self) -> None:
        run = self.workbench.training.shown
        if run is not None and run.active:
            self._show_clock(run)

    def _show_clock(self, run: OpenRun) -> None:
        """Show what changes with the clock alone."""
        now = self.workbench.training.now()
        self.query_one(RunProgress).tell(run, now, self.redrawing)
        found = self._watch.look(run.state, now if run.standing == "running" else None)
        if len(found) != len(self.alerts):
            self._chosen_alert = 0
        self.alerts = found
        self._offer(run)
        self.query_one(AlertBar).show_alerts(found, self._chosen_alert)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done with the run on show."""
        training = self.workbench.training
        run = training.shown
        if action in ("pause", "command", "stop", "change"):
            return run is not None and run.active and not run.stopping and not run.leaving
        if action == "resume":
            return run is not None and run.resumable and training.training is None
        if action == "detach":
            return run is not None and run.here and not (run.stopping or run.leaving)
        if action == "take_back":
            if run is None or training.training is not None:
                return False
            # Several devices are trained by processes of their own, wherever they were started.
            return run.active and not run.here and rank_count(run.state) <= 1
        if action == "fork":
            return run is not None and run.state.last_checkpoint_step is not None
        if action == "next_alert":
            return bool(self.alerts)
        if action == "panel" and parameters == ("ranks",):
            return run is not None and rank_count(run.state) > 1
        if hasattr(self, f"action_{action}") and action not in ("focus", "blur"):
            return run is not None
        return True

    def action_pause(self) -> None:
        """Pause, or go on."""
        run = self.workbench.training.shown
        pausing = run is not None and run.pausing
        self.post_message(CommandGiven("resume" if pausing else "pause"))

    def action_command(self, command: Command) -> None:
        """Ask the trainer for a checkpoint, a validation or a sample."""
        self.post_message(CommandGiven(command))

    def action_detach(self) -> None:
        """Let the run go on in a process of its own; it stays on show."""
        self.post_message(DetachRequested())

    def action_take_back(self) -> None:
        """Train the run here again."""
        run = self.workbench.training.shown
        if run is not None:
            self.post_message(TakeBackRequested(run.folder))

    def action_stop(self) -> None:
        """Ask how to stop."""
        run = self.workbench.training.shown
        if run is None:
            return

        def stop(ending: Ending | None) -> None:
            if ending:
                self.post_message(CommandGiven(ending))

        state = run.state
        self.app.push_screen(StopRun(run.name, state.step, state.last_checkpoint_step), stop)

    def action_resume(self) -> None:
        """Train the open run further."""
        run = self.workbench.training.shown
        if run is not None:
            self.post_message(ResumeRequested(run.folder))

    def action_change(self) -> None:
        """Ask for another learning rate or number of steps."""
        run = self.workbench.training.shown
        if run is None:
            return
        try:
            config = run.folder.config
        except RequestError as error:
            self._complain(error)
            return
        form = AskValues(
            "Change the run while it trains",
            "The new value counts from the next step on; a checkpoint keeps the way there exact.",
            [Question(*row) for row in branching.ask_texts(config, branching.live_keys(config))],
            lambda texts: branching.live_changes(config, run.state, texts),
            yes="Change it",
        )

        def take(texts: dict[str, str] | None) -> None:
            for change in branching.live_changes(config, run.state, texts) if texts else ():
                self.post_message(CommandGiven(change))

        self.app.push_screen(form, take)

    def action_fork(self) -> None:
        """Ask for the settings of a new run from the checkpoint nearest to the cursor."""
        run = self.workbench.training.shown
        if run is None:
            return
        folder, training = run.folder, self.workbench.training.training
        try:
            config = folder.config
            checkpoint = nearest_checkpoint(folder, self.view.cursor)
            if checkpoint is None:
                raise RequestError("This run has no checkpoint on disk to start from.")
            if training is not None:
                raise RequestError(f"{training.name} is in training; stop (S) or detach (d) it.")
        except RequestError as error:
            self._complain(error)
            return
        near = f", the nearest to step {self.view.cursor:,}" if self.view.cursor else ""
        name = branching.fork_name(folder, checkpoint.step)
        keys = branching.fork_keys(config)
        form = AskValues(
            f"Fork at step {checkpoint.step:,}",
            f"A new run from {run.name}'s checkpoint of step {checkpoint.step:,}{near}: its "
            "weights and optimizer, these settings.",
            [
                Question("name", "name", name),
                *(Question(*row) for row in branching.ask_texts(config, keys)),
            ],
            lambda texts: branching.fork_config(folder, config, checkpoint, texts),
            yes="Start it",
        )

        def take(texts: dict[str, str] | None) -> None:
            if texts:
                child, changed = branching.fork_config(folder, config, checkpoint, texts)
                self.post_message(ForkRequested(folder, checkpoint, child, changed))

        self.app.push_screen(form, take)

    def action_compare(self) -> None:
        """Choose the runs to lay over the chart."""
        run = self.workbench.training.shown
        if run is None:
            return
        from megatron_tui.screens.compare import CompareScreen

        def take(marked: tuple[Compared, ...] | None) -> None:
            if marked is not None:
                self.compared = marked
                self.update_run()

        own = compare.read_run(run.folder, run.state)
        self.app.push_screen(CompareScreen(run.folder, own, self.compared), take)

    def action_next_alert(self) -> None:
        """Put the cursor where the alert is; at the one on show already, go to the next."""
        run = self.workbench.training.shown
        if run is None or not self.alerts:
            return
        alert = self.alerts[self._chosen_alert % len(self.alerts)]
        if self.view.cursor == alert.step:
            self._chosen_alert = (self._chosen_alert + 1) % len(self.alerts)
            alert = self.alerts[self._chosen_alert]
        self.look(looking_at(run.state, self.view, alert.step))

    def _complain(self, error: RequestError) -> None:
        self.notify(safe(str(error)), severity="error", timeout=10, markup=False)
