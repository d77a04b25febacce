"""The workbench's app: owns the services, switches between the screens, and obeys their messages.

It polls the trainer and tells the screen in front; screens never reach for each other.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import on
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.events import Event, Key, Resize
from textual.messages import TerminalSupportsSynchronizedOutput
from textual.screen import Screen
from textual.theme import Theme

from megatron_model.errors import RequestError
from megatron_model.run_folder import RunFolder
from megatron_model.text import safe
from megatron_tui import messages, theme
from megatron_tui.commands import screen_commands
from megatron_tui.lifeline import Lifeline
from megatron_tui.line import Line
from megatron_tui.modes import make_screen
from megatron_tui.open_run import OpenRun
from megatron_tui.screens.dialogs import Leave, Leaving, Saving
from megatron_tui.screens.too_small import TooSmall, fits
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.stylesheet import RememberingStylesheet
from megatron_tui.widgets.header import MODES as TITLES
from megatron_tui.workbench import Workbench

if TYPE_CHECKING:
    from megatron_tui.screens.first_frame import FirstFrame

POLL_SECONDS = 0.25
SWITCH_SECONDS = 0.001
FIRST_RESIZES = 2
"""How often the size is said when the app begins, by Textual and by its driver."""
ARE_YOU_THERE = "\x1b[?2026$p"
"""A question that a terminal answers in its turn, and whose answer Textual understands."""
QUIT_TIP = "Leave the run in training going on, or save it, and quit"


class MegatronApp(App[None]):
    """A workbench for character-level transformers."""

    TITLE = "megatron"
    CSS_PATH = "app.tcss"
    DEFAULT_MODE = "setup"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_DISPLAY = "^p"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(
                key,
                f"mode('{mode}')",
                word,
                key_display=key.upper(),
                tooltip=tip,
                id=f"mode.{mode}",
            )
            for key, mode, word, tip in (
                ("f2", "setup", "Setup", "Set up a run"),
                ("f3", "training", "Training", "Watch the run"),
                ("f4", "generation", "Generation", "Let a model write"),
                ("f5", "runs", "Runs", "See every run"),
            )
        ),
        Binding(
            "question_mark,f1",
            "help",
            "Help",
            key_display="?",
            tooltip="List the keys",
            id="app.help",
        ),
        Binding(
            "ctrl+p,colon", "command_palette", "Palette", tooltip="Find a command", id="app.palette"
        ),
        Binding("ctrl+q", "quit", "Quit", tooltip=QUIT_TIP, id="app.quit", priority=True),
        Binding("q", "quit", "Quit", show=False, tooltip=QUIT_TIP, id="app.quit_q"),
    ]

    def __init__(
        self,
        workbench: Workbench,
        *,
        run: RunFolder | None = None,
        corpus: str = "",
        frames_first: bool = False,
    ) -> None:
        """With `frames_first` the frames are on screen before what is in them is made."""
        if frames_first:
            # What Textual begins with, read by its own constructor.
            self.DEFAULT_MODE = "first"  # type: ignore[misc]
        super().__init__()
        self.workbench = workbench
        self.lifeline: Lifeline | None = None
        """Set by whoever runs the app in a real terminal."""
        self.line = Line.of_terminal()
        self.line.rate = workbench.preferences.get("redraws", 0.0)
        self._behind = False
        """Whether the run went on since it was drawn."""
        self._odd = False
        self._resizes = 0
        self.keys_path: Path | None = None
        """The person's own keys, if they have any."""
        self._first_run = run
        for variant in theme.themes(self.console.color_system):
            self.register_theme(variant)
        chosen = workbench.preferences.get("theme", "")
        self.theme = chosen if chosen in self.available_themes else "megatron"
        # Made with the colours of the theme: nothing is parsed with others first.
        self.stylesheet = RememberingStylesheet(variables=self.get_css_variables())
        for mode in TITLES:
            self.add_mode(mode, partial(self._make_screen, mode, corpus))
        self._quitting = False
        self._first_frame: FirstFrame | None = None
        if frames_first:
            from megatron_tui.screens.first_frame import FirstFrame

            frame = self._first_frame = FirstFrame(workbench)
            self.add_mode("first", lambda: self._fitted(frame))

    def _make_screen(self, mode: str, corpus: str) -> WorkbenchScreen:
        return self._fitted(make_screen(mode, self.workbench, corpus))

    def _fitted(self, screen: WorkbenchScreen) -> WorkbenchScreen:
        """Give a new screen its styles and size before it is mounted, not once more afterwards."""
        for path in screen.css_path:
            if not self.stylesheet.has_source(str(path)):
                self.stylesheet.read(path)
        self.stylesheet.reparse()
        screen._css_update_count = self._css_update_count
        screen.fit(self.size)
        return screen

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Let the themes that come with Textual draw our charts as well."""
        return theme.fallbacks(self.current_theme)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer the keys of the screen, then the themes."""
        yield from screen_commands(self, screen)
        yield SystemCommand("Change theme", "Colours, light or dark", self.action_change_theme)

    def draw_in_ascii(self) -> None:
        """Use no character that the terminal may not have."""
        from megatron_tui.ascii_filter import AsciiFilter

        self._filters.append(AsciiFilter())

    def _begin(self) -> None:
        """Go on from the first frame: the first screen, and then torch behind it."""
        if self._first_frame is not None and self.current_mode == "first":
            self.switch_mode("setup")
            typed, self._first_frame.typed = self._first_frame.typed, []
            self.screen.call_after_refresh(self._type, typed)
        self._read_keys()
        self.call_after_refresh(
            self.workbench.engine.load, lambda: self.post_message(messages.EngineLoaded())
        )

    def _type(self, keys: list[Key]) -> None:
        for key in keys:
            self.post_message(Key(key.key, key.character))

    def _read_keys(self) -> None:
        """Take over the keys of ``keys.toml``; say what is wrong with it."""
        problems = [self.workbench.preferences.problem]
        if self.keys_path is not None and self.keys_path.exists():
            from megatron_tui.keymap import read_user_keymap

            keymap = read_user_keymap(self.keys_path)
            self.set_keymap(keymap.keys)
            problems += keymap.problems
        for problem in filter(None, problems):
            self.notify(safe(problem), severity="warning", timeout=20, markup=False)

    def _theme_chosen(self, theme: Theme) -> None:
        self.workbench.preferences.set("theme", theme.name)

    def on_mount(self) -> None:
        """Begin to poll; load torch once the first frame is on screen."""
        self.theme_changed_signal.subscribe(self, self._theme_chosen)
        self._poll_timer = self.set_interval(POLL_SECONDS, self._poll, pause=True)
        if self.lifeline is not None:
            self.lifeline.install(self)
        if self._first_run is not None:
            self.open_run(self._first_run)
        self.call_after_refresh(self._begin)

    def on_resize(self, event: Resize) -> None:
        """Cover the screens while the terminal is too small for them."""
        self._resizes += 1
        if self._resizes > FIRST_RESIZES and self.front is not None:
            # Whatever the terminal made of the picture meanwhile: it is painted anew.
            self.front.fitted = None
        cover = self.screen if isinstance(self.screen, TooSmall) else None
        if fits(event.size):
            if cover is not None:
                cover.dismiss()
        elif cover is None:
            self.push_screen(TooSmall())
        else:
            cover.show(event.size)

    @property
    def front(self) -> WorkbenchScreen | None:
        """The screen of the present mode, beneath any dialog; none once they are taken down."""
        screen = next(iter(self.screen_stack), None)
        return screen if isinstance(screen, WorkbenchScreen) else None

    def open_run(self, folder: RunFolder) -> None:
        """Show a run on the Training screen."""
        self.workbench.training.show(folder)
        self._run_changed()
        self.switch_mode("training")

    async def on_event(self, event: Event) -> None:
        """Let what is typed while the screens are taken down come to nothing."""
        if self.screen_stack or not isinstance(event, Key):
            await super().on_event(event)

    def delay_update(self, delay: float = 0.05) -> None:
        """Paint a screen that is changed to as soon as it is there, not after a fixed time."""
        super().delay_update(min(delay, SWITCH_SECONDS))

    def action_mode(self, mode: str) -> None:
        """Go to a screen."""
        self.switch_mode(mode)

    def action_help(self) -> None:
        """List the keys of the screen in front."""
        screen = self.screen
        if isinstance(screen, WorkbenchScreen):
            from megatron_tui.screens.help import HelpScreen

            self.push_screen(HelpScreen(TITLES[screen.MODE], screen))

    def action_command_palette(self) -> None:
        """Show the palette, once."""
        from megatron_tui.screens.modal import Palette

        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    async def action_quit(self) -> None:
        """Leave; a run in training goes on in a process of its own, or is saved first."""
        training = self.workbench.training
        run = training.training or training.launched
        if run is None:
            self.exit()
            return
        if self._quitting or isinstance(self.screen, Leave):
            return
        self.push_screen(Leave(run.name, run.state.step, apart=not run.here), self._quit)

    def _quit(self, answer: Leaving | None) -> None:
        training = self.workbench.training
        run = training.training or training.launched
        if answer not in ("leave", "stop"):
            return
        if run is None or (answer == "leave" and not run.here):
            # There is nothing to hand over: it has processes of its own.
            self.exit()
            return
        try:
            if answer == "leave":
                training.hand_over()
            elif run.here:
                training.stop()
            else:
                training.end_launched()
        except RequestError as error:
            self._complain(error)
            return
        self._quitting = True
        self.push_screen(Saving(run.name, leaving=answer == "leave"))

    def _poll(self) -> None:
        training = self.workbench.training
        going = (training.training, training.launched)
        self._behind = training.poll() or self._behind
        # A count that goes up is drawn every other time; what is new, at once.
        self._odd = not self._odd and training.only_steps
        soon = not self._odd and self.line.due()
        if self._behind and self.front is not None and (soon or not training.busy):
            self._behind = False
            self.front.update_run()
            if self._sync_available and self._driver is not None and self.line.asks():
                self._driver.write(ARE_YOU_THERE)
        notice = training.take_notice()
        if notice is not None:
            self._say_notice(notice)
        for run in going:
            if run is not None and run is not training.training and run is not training.launched:
                self._run_ended(run)
        if not training.busy:
            self._poll_timer.pause()

    @on(TerminalSupportsSynchronizedOutput)
    def _terminal_answered(self) -> None:
        """The terminal has taken in everything up to the question."""
        self.line.answered()

    def _say_notice(self, notice: str) -> None:
        if self._quitting and self.workbench.training.training is not None:
            # There is no successor: the workbench stays, and with it the run.
            self._quitting = False
            if isinstance(self.screen, Saving):
                self.screen.dismiss()
        self.notify(safe(notice), severity="warning", timeout=20, markup=False)
        if self.front is not None:
            self.front.update_run()

    def _run_changed(self) -> None:
        if self.workbench.training.busy:
            self._poll_timer.resume()
        if self.front is not None:
            self.front.update_run()

    def _run_ended(self, run: OpenRun) -> None:
        training = self.workbench.training
        if self._quitting:
            if training.training is None:
                self.exit()
        elif run is training.shown and run.problem and not run.folder.path.exists():
            # The request was refused before the run began: there is nothing to look at.
            training.shown = None
            self.notify(safe(run.problem), severity="error", timeout=20, markup=False)
            self.switch_mode("setup")

    @on(messages.RunRequested)
    def _start_run(self, message: messages.RunRequested) -> None:
        try:
            folder = RunFolder.create(self.workbench.runs_dir, message.name, message.config)
            self._train(folder)
        except RequestError as error:
            self._complain(error)

    @on(messages.ResumeRequested)
    def _resume_run(self, message: messages.ResumeRequested) -> None:
        try:
            self._train(message.folder)
        except RequestError as error:
            self._complain(error)

    @on(messages.ForkRequested)
    def _fork_run(self, message: messages.ForkRequested) -> None:
        from megatron_model.fork import fork_run

        try:
            self._train(fork_run(message.parent, message.checkpoint, message.name, message.config))
        except RequestError as error:
            self._complain(error)

    @on(messages.DetachRequested)
    def _detach_run(self) -> None:
        self.workbench.training.hand_over()
        self._run_changed()

    @on(messages.TakeBackRequested)
    def _take_run_back(self, message: messages.TakeBackRequested) -> None:
        try:
            self._train(message.folder, take_over=True)
        except RequestError as error:
            self._complain(error)

    @on(messages.RunOpened)
    def _open_run(self, message: messages.RunOpened) -> None:
        self.open_run(message.folder)

    @on(messages.GenerationRequested)
    def _write_with_run(self, message: messages.GenerationRequested) -> None:
        self.workbench.chosen_run = message.folder
        self.switch_mode("generation")

    @on(messages.CommandGiven)
    def _command(self, message: messages.CommandGiven) -> None:
        try:
            self.workbench.training.command(message.command)
        except RequestError as error:
            self._complain(error)
        if self.front is not None:
            self.front.update_run()

    @on(messages.EngineLoaded)
    def _engine_loaded(self) -> None:
        if self.front is not None:
            self.front.engine_loaded()

    def _train(self, folder: RunFolder, *, take_over: bool = False) -> None:
        self.workbench.training.start(folder, take_over=take_over)
        self.workbench.chosen_run = folder
        self._run_changed()
        self.switch_mode("training")

    def _complain(self, error: RequestError) -> None:
        self.notify(safe(str(error)), severity="error", timeout=15, markup=False)
