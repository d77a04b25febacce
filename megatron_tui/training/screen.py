"""The Training screen: the run on show, live or recorded, and the keys that command it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeVar

from textual import work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Container, Vertical
from textual.content import Content
from textual.events import ScreenResume
from textual.worker import get_current_worker

from megatron_model.events.state import RunState
from megatron_model.run.comparison import Compared, read_run
from megatron_model.run.control import Command
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_tui.messages import (
    CommandGiven,
    DetachRequested,
    ResumeRequested,
    TakeBackRequested,
)
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.terminal.keyboard import irreversible
from megatron_tui.training.alerts import AlertWatch
from megatron_tui.training.chart_control import ChartControl
from megatron_tui.training.film_strip import FilmStrip
from megatron_tui.training.keys import CHART_KEYS, PANEL_KEYS, RUN_KEYS
from megatron_tui.training.other_runs import OtherRun, ancestors, lettered
from megatron_tui.training.panel_board import PanelBoard
from megatron_tui.training.panels import AlertBar, RunProgress
from megatron_tui.training.run_dialogs import RunDialogs
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label

T = TypeVar("T")

EMPTY = Content.assemble(
    ("No run is open.\n\n", "bold"),
    "Press ",
    ("F2", "bold $primary"),
    " to set up a run and start it, or ",
    ("F5", "bold $primary"),
    " to open one that was recorded.",
)


class Offer(NamedTuple):
    """What decides which keys act on the run on show."""

    path: Path | None
    nothing_trains: bool
    command: bool = False
    detach: bool = False
    take_back: bool = False
    resume: bool = False
    fork: bool = False
    alert: bool = False


class TrainingScreen(WorkbenchScreen):
    """Hand the run to the panels, and what a key asks to what does it."""

    MODE = "training"
    CSS_PATH = "training.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        *RUN_KEYS,
        *CHART_KEYS,
        *PANEL_KEYS,
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.charts = ChartControl(workbench.preferences, self.redraw)
        self.strip = FilmStrip()
        self.board = PanelBoard(workbench.preferences, self.update_run)
        self.alerts = AlertWatch()
        self.compared: tuple[Compared, ...] = ()
        self._dialogs = RunDialogs(self._ask, self.post_message)
        self._ancestors: list[OtherRun] = []
        self._path: Path | None = None
        """Folder of the run that was shown last."""
        self._offered: Offer | None = None
        self._made = False
        """Whether all of its parts are there."""
        self._drawing_soon = False

    def compose_body(self) -> ComposeResult:
        """Panels over the progress line; a sentence while there is no run."""
        yield Container(Label(EMPTY), id="empty")
        with Vertical(id="run"):
            yield self.board
            yield AlertBar()
            yield RunProgress()

    def on_mount(self) -> None:
        """Begin to look at the clock."""
        self._made = True
        self._clock = self.set_interval(1.0, self._update_age)

    def on_unmount(self) -> None:
        """The parts are gone."""
        self._made = False

    def on_screen_resume(self, _event: ScreenResume | None = None) -> None:
        """Look at the clock again, and at the keys."""
        self._offered = None
        self._clock.resume()

    def on_screen_suspend(self) -> None:
        """Nobody looks: no clock."""
        self._clock.pause()

    def update_run(self) -> None:
        """Show the present state, while there is something to show it on."""
        # The app polls while a screen is still being made, and while it is taken down.
        if self._made and self.is_attached and self.is_running:
            super().update_run()

    def redraw(self) -> None:
        """Draw soon: keys that are typed ahead, or repeat, cost one drawing together."""
        if not self._drawing_soon:
            self._drawing_soon = True
            self.call_later(self._draw)

    def _draw(self) -> None:
        self._drawing_soon = False
        self.update_run()

    @property
    def others(self) -> list[OtherRun]:
        """The runs drawn with the one on show: its parents, and those it is compared with."""
        return [*self._ancestors, *lettered(self.compared)]

    def show_run(self, run: RunHandle | None) -> None:
        """Show the run, or what to do without one."""
        self.set_class(run is not None, "-open")
        if run is None:
            self._offer(run)
            return
        if run.path != self._path:
            self._begin(run)
        self.board.show_run(run, self.charts, self.strip, self.others)
        self._show_clock(run)

    def _offer(self, run: RunHandle | None) -> None:
        """Look which keys act, when that can have changed: the whole of it costs milliseconds."""
        nothing_trains = self.workbench.training.training is None
        offer = Offer(None, nothing_trains)
        if run is not None:
            offer = Offer(
                run.path,
                nothing_trains,
                run.can_command,
                run.can_detach,
                run.can_take_back,
                run.resumable,
                run.state.last_checkpoint_step is not None,
                bool(self.alerts.found),
            )
        if offer != self._offered:
            self._offered = offer
            self.refresh_bindings()

    def _begin(self, run: RunHandle) -> None:
        """Another run is on show: forget the places in the one before."""
        self._path = run.path
        self._ancestors, self.compared = [], ()
        self.strip = FilmStrip()
        self.alerts.begin()
        self.charts.begin()
        self._read_ancestors(run.folder)

    @work(thread=True, exclusive=True, group="ancestors", exit_on_error=False)
    def _read_ancestors(self, folder: RunFolder) -> None:
        found = ancestors(folder)
        if found and not get_current_worker().is_cancelled:
            self.app.call_from_thread(self._draw_ancestors, folder, found)

    def _draw_ancestors(self, folder: RunFolder, found: list[OtherRun]) -> None:
        if folder.path == self._path:
            self._ancestors = found
            self.update_run()

    def _update_age(self) -> None:
        run = self.workbench.training.shown
        if run is not None and run.active:
            self._show_clock(run)

    def _show_clock(self, run: RunHandle) -> None:
        """Show what changes with the clock alone."""
        now = self.workbench.training.now()
        self.query_one(RunProgress).tell(run, now, self.workbench.connection.words())
        self.alerts.look(run.state, now if run.standing == "running" else None)
        self._offer(run)
        self.query_one(AlertBar).show_alerts(self.alerts)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done with the run on show."""
        training = self.workbench.training
        run = training.shown
        if run is None:
            return action in ("focus", "blur") or not hasattr(self, f"action_{action}")
        if action in ("pause", "command", "stop", "change"):
            return run.can_command
        if action == "resume":
            return run.resumable and training.training is None
        if action == "detach":
            return run.can_detach
        if action == "take_back":
            return run.can_take_back and training.training is None
        if action == "fork":
            return run.state.last_checkpoint_step is not None
        if action == "next_alert":
            return bool(self.alerts.found)
        if action == "panel" and parameters == ("ranks",):
            return run.device_count > 1
        return True

    # Keys that command the run

    def action_pause(self) -> None:
        """Pause, or go on."""
        run = self.workbench.training.shown
        pausing = run is not None and run.pausing
        self.post_message(CommandGiven("resume" if pausing else "pause"))

    def action_command(self, command: Command) -> None:
        """Ask the trainer for a checkpoint, a validation or a sample."""
        self.post_message(CommandGiven(command))

    @irreversible
    def action_detach(self) -> None:
        """Let the run go on in a process of its own; it stays on show."""
        self.post_message(DetachRequested())

    @irreversible
    def action_take_back(self) -> None:
        """Train the run here again."""
        self._with_run(lambda run: self.post_message(TakeBackRequested(run.folder)))

    @irreversible
    def action_resume(self) -> None:
        """Train the open run further."""
        self._with_run(lambda run: self.post_message(ResumeRequested(run.folder)))

    def action_stop(self) -> None:
        """Ask how to stop."""
        self._with_run(self._dialogs.stop)

    def action_change(self) -> None:
        """Ask for another learning rate or number of steps."""
        self._with_run(self._dialogs.change)

    def action_fork(self) -> None:
        """Ask for the settings of a new run from the checkpoint nearest to the cursor."""
        self._with_run(self._fork)

    def _fork(self, run: RunHandle) -> None:
        training = self.workbench.training.training
        if training is not None:
            raise RequestError(f"{training.name} is in training; stop (S) or detach (d) it.")
        self._dialogs.fork(run, self.charts.view.cursor)

    # Keys that change what is seen of it

    def action_log_scale(self) -> None:
        """Switch between linear and logarithmic loss."""
        self.charts.toggle_log_scale()

    def action_x_axis(self) -> None:
        """Go on to the next axis."""
        self.charts.next_axis()

    def action_unit(self) -> None:
        """Go on to the next unit."""
        self.charts.next_unit()

    def action_raw(self) -> None:
        """Show or hide the raw reports."""
        self.charts.toggle_raw()

    def action_references(self) -> None:
        """Show or hide the baselines."""
        self.charts.toggle_references()

    def action_smooth(self, change: int) -> None:
        """Smooth more or less."""
        self.charts.smooth(change)

    def action_reset(self) -> None:
        """Undo the zoom; without one, the smoothing."""
        self.charts.reset()

    def action_zoom(self, change: int) -> None:
        """Look at half, or twice, the stretch."""
        self.charts.zoom(change)

    def action_pan(self, direction: int) -> None:
        """Move the stretch on show."""
        self._with_state(lambda state: self.charts.pan(state, direction))

    def action_cursor(self, direction: int) -> None:
        """Move the cursor by a cell."""
        columns = self.board.chart_columns
        self._with_state(lambda state: self.charts.move_cursor(state, columns, direction))

    def action_metric(self, change: int) -> None:
        """Show the next of the further measurements, or first the panel that they are in."""
        if self.board.can_be_seen("metrics"):
            self.charts.next_metric(change)
        else:
            self.board.toggle("metrics")

    def action_scrub(self, change: int) -> None:
        """Go through the samples."""

        def scrub(state: RunState) -> None:
            self.strip = self.strip.scrubbed(state.samples, change)
            self.redraw()

        self._with_state(scrub)

    def action_panel(self, name: str) -> None:
        """Show or hide a panel; while one is large, make this one large instead."""
        self.board.toggle(name)

    def action_zoom_panel(self) -> None:
        """Give the panel with the focus the whole screen, or take that back."""
        self.board.enlarge_around(self.focused)

    def action_back(self) -> None:
        """From the large panel to all of them; from the cursor to none; from a focus to none."""
        if self.board.large:
            self.board.enlarge("")
        elif self.charts.view.cursor is not None:
            self.charts.remove_cursor()
        else:
            self.set_focus(None)

    def action_next_alert(self) -> None:
        """Put the cursor where the alert is; at the one on show already, go to the next."""
        step = self.alerts.step_to_go_to(self.charts.view.cursor)
        if step is not None:
            self._with_state(lambda state: self.charts.put_cursor(state, step))

    def action_compare(self) -> None:
        """Choose the runs to lay over the chart."""
        self._with_run(self._compare)

    def _compare(self, run: RunHandle) -> None:
        from megatron_tui.training.compare_dialog import CompareScreen

        def compare(marked: tuple[Compared, ...]) -> None:
            self.compared = marked
            self.update_run()

        own = read_run(run.folder, run.state)
        self._ask(CompareScreen(run.folder, own, self.compared), compare)

    def action_redraw_rate(self) -> None:
        """Draw what the run does less often, or as often as the connection allows."""
        connection = self.workbench.connection
        connection.next_rate()
        self.workbench.preferences.set("redraws", connection.rate)
        rate = connection.rate
        words = f"{rate:g} a second" if rate else "as often as the line allows"
        self.notify(f"The run is drawn {words}", timeout=3, markup=False)
        self.redraw()

    def _with_run(self, act: Callable[[RunHandle], object]) -> None:
        """Do something with the run on show, if there is one; what cannot be is told."""
        run = self.workbench.training.shown
        if run is None:
            return
        try:
            act(run)
        except RequestError as error:
            self.notify(safe(str(error)), severity="error", timeout=10, markup=False)

    def _with_state(self, act: Callable[[RunState], object]) -> None:
        """Do something with what the run on show amounts to, if there is one."""
        run = self.workbench.training.shown
        if run is not None:
            act(run.state)

    def _ask(self, dialog: ModalScreen[T], take: Callable[[T], None]) -> None:
        """Show a dialog; hand its answer on, if there is one."""

        def answered(answer: T | None) -> None:
            if answer is not None:
                take(answer)

        self.app.push_screen(dialog, answered)
