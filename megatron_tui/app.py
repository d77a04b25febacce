"""The workbench's app: owns the services, switches between the screens, and obeys their messages.

It polls the trainer and tells the screen in front; screens never reach for each other.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual import on
from textual.actions import ActionParseResult
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.dom import DOMNode
from textual.events import Event, Key, MouseDown, Resize
from textual.filter import LineFilter
from textual.messages import TerminalSupportsSynchronizedOutput
from textual.screen import Screen
from textual.theme import Theme

from megatron_model.run.folder import RunFolder, default_runs_dir
from megatron_model.util.errors import RequestError
from megatron_model.util.fallback import take_missing
from megatron_model.util.text import safe
from megatron_model.util.user_folders import user_folder
from megatron_tui import messages
from megatron_tui.services.learning_on import begun_with, learning_on
from megatron_tui.services.preferences import Preferences
from megatron_tui.services.queue import revived
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.services.training import running_run
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.header import MODES as TITLES
from megatron_tui.shell.palette import screen_commands
from megatron_tui.shell.quitting import Quitting
from megatron_tui.shell.run_poll import POLL_SECONDS, RunPoll
from megatron_tui.shell.too_small import TooSmall, fits
from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.terminal.keyboard import Keyboard, irreversible
from megatron_tui.terminal.signals import TerminalSignals
from megatron_tui.terminal.tmux import copy_to_tmux
from megatron_tui.textual_patches.driver import write_to_terminal
from megatron_tui.ui import theme
from megatron_tui.ui.background import background_of
from megatron_tui.ui.notice import notify

LOOK_SECONDS = 2.0
"""How long the first screen waits for the runs folder to say whether a run is in training."""
SWITCH_SECONDS = 0.001
ARE_YOU_THERE = "\x1b[?2026$p"
"""A question that a terminal answers in its turn, and whose answer Textual understands."""
PASTED = (
    "Keys came all at once, as of a paste: what cannot be taken back was left undone. "
    "Press its key by itself."
)
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
            # Textual's constructor reads which mode it begins with.
            self.DEFAULT_MODE = "first"  # type: ignore[misc]
        super().__init__()
        self.workbench = workbench
        self.signals: TerminalSignals | None = None
        """Set by what runs the app in a real terminal."""
        self.keyboard = Keyboard(self, lambda: self.front is not None and not self._framing)
        self.connection = workbench.connection
        self.connection.rate = workbench.preferences.get("redraws", 0.0)
        self.keys_path: Path | None = None
        """The person's own keys, if they have any."""
        self._filters_of_terminal: list[LineFilter] = []
        self._answers = False
        """Whether the terminal answers `ARE_YOU_THERE`."""
        self._said: set[str] = set()
        """What this session does without, as far as it was said."""
        self._said_burst: int | None = None
        """The burst of keys that was complained of last."""
        self._first_run = run
        self._corpus = corpus
        self._quitting = Quitting(self, workbench.training, self._complain)
        self._run_poll = RunPoll(workbench.training, lambda: self.connection.due(), self._draw_run)
        for variant in theme.themes(self.console.color_system):
            self.register_theme(variant)
        chosen = workbench.preferences.get("theme", "")
        self.theme = chosen if chosen in self.available_themes else "megatron"
        # Nothing is parsed with the colours of another theme first.
        self.stylesheet.set_variables(self.get_css_variables())
        for mode in ("first", *TITLES):
            self.add_mode(mode, partial(self._make_screen, mode))

    def _make_screen(self, mode: str) -> WorkbenchScreen:
        """Return the screen of a mode; what only one needs is imported when it is opened."""
        if mode == "first":
            from megatron_tui.shell.first_frame import FirstFrame

            return FirstFrame(self.workbench)
        if mode == "setup":
            from megatron_tui.setup.screen import SetupScreen

            return SetupScreen(self.workbench, corpus=self._corpus)
        if mode == "training":
            from megatron_tui.training.screen import TrainingScreen

            return TrainingScreen(self.workbench)
        if mode == "generation":
            from megatron_tui.generation.screen import GenerationScreen

            return GenerationScreen(self.workbench)
        from megatron_tui.runs.screen import RunsScreen

        return RunsScreen(self.workbench)

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Let the themes that come with Textual draw our charts as well."""
        return theme.fallbacks(self.current_theme)

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        """Offer the keys of the screen, then the themes."""
        yield from screen_commands(self, screen)
        yield SystemCommand("Change theme", "Colours, light or dark", self.action_change_theme)

    def get_line_filters(self) -> Sequence[LineFilter]:
        """Return what takes every line just before it is sent."""
        return [*super().get_line_filters(), *self._filters_of_terminal]

    def draw_in_ascii(self) -> None:
        """Use no character that the terminal may not have."""
        from megatron_tui.terminal.ascii import AsciiFilter

        self._filters_of_terminal = [AsciiFilter()]

    async def _begin(self) -> None:
        """Go on from the first frame: the first screen, and then torch behind it."""
        if self._first_run is None:
            await self._find_running()
        if self._framing:
            self.switch_mode("setup")
        self._read_keys()
        self.call_after_refresh(
            self.workbench.torch_loader.load, lambda: self.post_message(messages.TorchLoaded())
        )
        runs_dir = self.workbench.runs_dir
        background_of(self)(lambda: [revived(runs_dir)], self._say_of_queue, group="queue")

    def _say_of_queue(self, text: str) -> None:
        if text and self.screen_stack:
            notify(self.screen, text)

    async def _find_running(self) -> None:
        """Put the run on show that trains on from an earlier session, unless another was asked for.

        Where a corpus was named, Setup stays in front, and the header speaks of the run.
        """
        with contextlib.suppress(asyncio.TimeoutError):
            found = await asyncio.wait_for(
                asyncio.to_thread(running_run, self.workbench.runs_dir), LOOK_SECONDS
            )
            if found is None or self.workbench.training.shown is not None or not self.screen_stack:
                return
            if self._corpus:
                self.workbench.training.show(found)
                self._run_changed()
            else:
                self.open_run(found)

    @property
    def _framing(self) -> bool:
        """Whether only frames are on screen so far: keys wait for what comes in their place."""
        return self.current_mode == "first"

    def _read_keys(self) -> None:
        """Take over the keys of ``keys.toml``; say what is wrong with it."""
        self._say_missing()
        problems = [self.workbench.preferences.problem]
        if self.keys_path is not None and self.keys_path.exists():
            from megatron_tui.keys import read_user_keymap

            keymap = read_user_keymap(self.keys_path)
            self.set_keymap(keymap.keys)
            problems += keymap.problems
        for problem in filter(None, problems):
            self.notify(safe(problem), severity="warning", timeout=20, markup=False)

    @on(messages.FallbackUsed)
    def _say_missing(self) -> None:
        """Say, once, what this session does without."""
        for text in take_missing(self._said):
            self.notify(safe(text), severity="warning", timeout=20, markup=False)

    def _theme_chosen(self, theme: Theme) -> None:
        self.workbench.preferences.set("theme", theme.name)

    def on_mount(self) -> None:
        """Begin to poll; load torch once the first frame is on screen."""
        self.theme_changed_signal.subscribe(self, self._theme_chosen)
        self._poll_timer = self.set_interval(POLL_SECONDS, self._poll, pause=True)
        if self.signals is not None:
            self.signals.install(self)
        if self._first_run is not None:
            self.open_run(self._first_run)
        self.call_after_refresh(self._begin)

    def on_resize(self, event: Resize) -> None:
        """Cover the screens while the terminal is too small for them."""
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
        """Let one key after the other through; none while the screens are taken down."""
        if isinstance(event, Key):
            if not self.screen_stack or (not event.is_forwarded and self.keyboard.holds(event)):
                return
        elif isinstance(event, MouseDown):
            self.keyboard.forget()
        await super().on_event(event)
        self._say_missing()  # what a key chose may not have been remembered

    async def run_action(
        self,
        action: str | ActionParseResult,
        default_namespace: DOMNode | None = None,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Do what a key says, unless it came as part of a paste and that cannot be taken back."""
        node = default_namespace or self
        if await self.keyboard.permits(action, node, namespaces):
            return await super().run_action(action, node, namespaces)
        if self._said_burst != self.keyboard.burst:
            self._said_burst = self.keyboard.burst
            self.notify(PASTED, severity="warning", timeout=10, markup=False)
        return True

    def copy_to_clipboard(self, text: str) -> None:
        """Copy by the terminal, and into tmux's own buffer."""
        super().copy_to_clipboard(text)
        if os.environ.get("TMUX"):
            self.run_worker(partial(copy_to_tmux, text), thread=True, exit_on_error=False)

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
            from megatron_tui.shell.help import HelpScreen

            self.push_screen(HelpScreen(TITLES[screen.MODE], screen))

    def action_command_palette(self) -> None:
        """Show the palette, once."""
        from megatron_tui.ui.modal import Palette

        if not isinstance(self.screen, Palette):
            self.push_screen(Palette(id="--command-palette"))

    @irreversible
    async def action_quit(self) -> None:
        """Leave; a run in training goes on in a process of its own, or is saved first."""
        self._quitting.begin()

    def _poll(self) -> None:
        training = self.workbench.training
        ended = self._run_poll.look()
        while (notice := training.take_notice()) is not None:
            self._say_notice(notice)
        for run in ended:
            self._run_ended(run)
        if not training.busy:
            self._poll_timer.pause()

    def _draw_run(self) -> bool:
        """Show what the run has come to, and ask the terminal when it has taken the picture in."""
        if self.front is None:
            return False
        self.front.update_run()
        if self._answers and self.connection.asks():
            write_to_terminal(self, ARE_YOU_THERE)
        return True

    @on(TerminalSupportsSynchronizedOutput)
    def _terminal_answered(self) -> None:
        """The terminal has taken in everything up to the question, or says that it can answer."""
        self._answers = True
        self.connection.answered()

    def _say_notice(self, notice: str) -> None:
        self._quitting.trainer_stays()
        self.notify(safe(notice), severity="warning", timeout=20, markup=False)
        if self.front is not None:
            self.front.update_run()

    def _run_changed(self) -> None:
        if self.workbench.training.busy:
            self._poll_timer.resume()
        if self.front is not None:
            self.front.update_run()

    def _run_ended(self, run: RunHandle) -> None:
        if self._quitting.under_way:
            self._quitting.trainer_ended()
            return
        training = self.workbench.training
        problem = run.problem or run.state.error
        if run is training.shown and problem and not run.folder.path.exists():
            # It came to nothing before its first step, or was deleted: there is nothing to look at.
            training.shown = None
            self.notify(safe(problem), severity="error", timeout=20, markup=False)
            self.switch_mode("setup")

    @on(messages.RunRequested)
    def _start_run(self, message: messages.RunRequested) -> None:
        name, config, model = message.name, message.config, message.model
        runs_dir = self.workbench.runs_dir
        if model is not None:
            self._prepare_and_train(lambda: begun_with(model, config, runs_dir, name))
            return
        try:
            self._train_new(RunFolder.create(runs_dir, name, config))
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
        from megatron_model.run.fork import fork_run

        try:
            self._train_new(
                fork_run(message.parent, message.checkpoint, message.name, message.config)
            )
        except RequestError as error:
            self._complain(error)

    @on(messages.LearningOnRequested)
    def _learn_on(self, message: messages.LearningOnRequested) -> None:
        runs_dir = self.workbench.runs_dir
        self._prepare_and_train(lambda: learning_on(message.model, message.corpus, runs_dir))

    def _prepare_and_train(self, make: Callable[[], RunFolder]) -> None:
        """Make a run's folder in the background, since reading model and text takes its time."""

        def prepare() -> Iterator[RunFolder | RequestError]:
            try:
                yield make()
            except RequestError as error:
                yield error

        def train(found: RunFolder | RequestError) -> None:
            try:
                if isinstance(found, RequestError):
                    raise found
                self._train_new(found)
            except RequestError as error:
                self._complain(error)

        background_of(self)(prepare, train, group="learning-on", exclusive=True)

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

    @on(messages.TorchLoaded)
    def _torch_loaded(self) -> None:
        if self.front is not None:
            self.front.torch_loaded()

    def _train_new(self, folder: RunFolder) -> None:
        try:
            self._train(folder)
        except RequestError:
            folder.discard_new()
            raise

    def _train(self, folder: RunFolder, *, take_over: bool = False) -> None:
        self.workbench.training.start(folder, take_over=take_over)
        self.workbench.chosen_run = folder
        self._run_changed()
        self.switch_mode("training")

    def _complain(self, error: RequestError) -> None:
        self.notify(safe(str(error)), severity="error", timeout=15, markup=False)


def make_app(
    runs_dir: Path | None = None, target: str | None = None, *, frames_first: bool = False
) -> MegatronApp:
    """Return the app for a session on `runs_dir`; `target` is a run to open or a corpus to choose.

    Raises:
        RequestError: `target` is neither.
    """
    workbench = Workbench(runs_dir or default_runs_dir(), preferences=Preferences.of_user())
    app = _app_for(workbench, target, frames_first=frames_first)
    config = user_folder("config")
    app.keys_path = config and config / "keys.toml"
    return app


def _app_for(workbench: Workbench, target: str | None, *, frames_first: bool) -> MegatronApp:
    run, corpus = None, ""
    paths = (workbench.runs_dir / target, Path(target)) if target else ()
    for path in paths:
        # os.path: what is too long for a name is no run, and the refusal below says the rest.
        if run is None and os.path.isfile(path / "run.toml"):
            run = RunFolder.open(path)
    if target and run is None:
        from megatron_model.data.corpus import find_corpus

        find_corpus(target)
        corpus = target
    return MegatronApp(workbench, run=run, corpus=corpus, frames_first=frames_first)
