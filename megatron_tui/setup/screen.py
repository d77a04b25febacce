"""The Setup screen: a corpus, a preset, settings, what the run will cost, and the start.

The plan works out what follows from what is chosen; the screen shows it, and passes keys on to the
plan, to the dialogs and to what looks things up in the background.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.events import ScreenResume
from textual.screen import Screen
from textual.widgets import Button, Input

from megatron_model.config.fields import RunConfig
from megatron_model.config.presets import AUTO, PRESETS
from megatron_model.data.corpus import BUILTIN_CORPORA
from megatron_model.run.folder import list_runs
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe
from megatron_tui.messages import FallbackUsed, ResumeRequested, RunRequested
from megatron_tui.services.model_choice import list_writing_runs
from megatron_tui.services.past_speed import read_paces
from megatron_tui.services.queue import enqueued, swept
from megatron_tui.services.workbench import Workbench
from megatron_tui.setup import recent_corpora
from megatron_tui.setup.corpus_facts import CorpusFacts
from megatron_tui.setup.corpus_picker import CorpusPicker
from megatron_tui.setup.corpus_reader import CorpusReader
from megatron_tui.setup.device_lookup import DeviceLookup
from megatron_tui.setup.dialogs import Answer, SetupDialogs, preset_pick
from megatron_tui.setup.keys import SETUP_KEYS
from megatron_tui.setup.measuring import StepMeasuring
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.setup.preflight_card import PreflightCard
from megatron_tui.setup.preview_panel import PreviewPanel
from megatron_tui.setup.run_panel import RunPanel
from megatron_tui.setup.train_command import for_screen, for_shell
from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.terminal.keyboard import irreversible
from megatron_tui.ui import formatting
from megatron_tui.ui.background import background_of
from megatron_tui.ui.choice import Choice
from megatron_tui.ui.dialogs import Confirm
from megatron_tui.ui.draft import SetupDraft, form_fields
from megatron_tui.ui.notice import notify
from megatron_tui.ui.settings_form import SettingsForm
from megatron_tui.ui.settings_list import SettingsList

NEXT = {"corpora": "preset", "preset": "start"}
"""Where enter goes from a part of the screen, by their ids."""


class SetupScreen(WorkbenchScreen):
    """Compose the parts, keep the plan, show what follows from it, pass on what the keys ask."""

    MODE = "setup"
    AUTO_FOCUS = "#corpora"
    CSS_PATH = "setup.tcss"
    BINDINGS: ClassVar[list[BindingType]] = SETUP_KEYS

    def __init__(self, workbench: Workbench, corpus: str = "") -> None:
        super().__init__(workbench)
        preset = workbench.preferences.get("setup.preset", "")
        chosen = preset in (*PRESETS, AUTO)
        self.plan = SetupPlan(workbench.runs_dir, preset if chosen else "cpu", preset_chosen=chosen)
        self._in_background = background_of(self)
        say = partial(notify, self)
        self.measuring = StepMeasuring(self.plan, self._in_background, self.show_plan, say)
        self.device_lookup = DeviceLookup(
            self.plan, workbench.torch_loader, self._in_background, self.show_plan
        )
        self.corpus_reader = CorpusReader(
            self.plan, self._in_background, changed=self._corpus_known, finished=self._corpus_read
        )
        self.dialogs = SetupDialogs(
            self.plan,
            self._ask,
            changed=self.show_plan,
            choose_corpus=self._choose_corpus,
            say=say,
        )
        self._first_corpus = corpus or recent_corpora.last_corpus(workbench.preferences)
        self._suggested_name = ""
        self._asked: Callable[[RunRequested], object] | None = None
        """What is to be done with the run as soon as its corpus is known: start it, or queue it."""

    @property
    def facts(self) -> CorpusFacts:
        """What is known of the corpus."""
        return self.plan.facts

    @property
    def draft(self) -> SetupDraft:
        """The settings as they are typed."""
        return self.plan.draft

    # What is on the screen, and when it changes

    def compose_body(self) -> ComposeResult:
        """Corpus and cost on the left, the run and its settings on the right."""
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield CorpusPicker()
                yield PreviewPanel()
                yield PreflightCard()
            with Vertical(id="right"):
                yield RunPanel(self.draft.preset)
                yield SettingsForm("settings", form_fields(), id="settings")

    def on_mount(self) -> None:
        """List the corpora; those of recorded runs follow when they were read."""
        picker = self.query_one(CorpusPicker)
        picker.add([*recent_corpora.remembered(self.workbench.preferences), *BUILTIN_CORPORA])
        if self._first_corpus:
            picker.add([self._first_corpus], choose=True)
        self.plan.look_at_disk()
        self.show_plan()
        runs_dir = self.workbench.runs_dir
        self._in_background(
            lambda: [recent_corpora.corpora_of_runs(runs_dir)], picker.add, group="recent"
        )

    def on_unmount(self) -> None:
        """The measuring process must not outlive the screen."""
        self.measuring.stop()

    def on_screen_resume(self, _event: ScreenResume | None = None) -> None:
        """The device may be known by now, a run may have taken the name, or told its speed."""
        self.plan.look_at_disk()
        self.torch_loaded()
        runs_dir = self.workbench.runs_dir
        self._in_background(
            lambda: [read_paces(list_runs(runs_dir)[: recent_corpora.RECENT])],
            self.plan.take_paces,
            self._show_cost,
            group="paces",
            exclusive=True,
        )

    def torch_loaded(self) -> None:
        """Take over the device that torch chose, and the preset that suits it."""
        if self.query("#settings"):  # while the screen is being made, on_screen_resume is to come
            self.device_lookup.take_default()
            self.show_plan()

    @on(CorpusPicker.Chosen)
    def _corpus_chosen(self, message: CorpusPicker.Chosen) -> None:
        self.corpus_reader.choose(message.spec)

    @on(Choice.Changed, "#preset")
    def _preset_chosen(self, message: Choice.Changed) -> None:
        self._take_preset(message.value)

    @on(SettingsList.Edited)
    def _setting_edited(self, message: SettingsList.Edited) -> None:
        typing = self.focused is not None and self.focused.id == "editor"
        self.plan.change(
            self.draft.with_text(message.key, message.text), message.key if typing else ""
        )
        self.show_plan()

    @on(SettingsForm.Paused)
    def _typed_to_the_end(self) -> None:
        self.plan.history.end_group()

    @on(Input.Changed, "#name")
    def _name_typed(self) -> None:
        self._show_run()

    @on(Button.Pressed, "#start")
    def _start_pressed(self) -> None:
        self.action_start()

    def _corpus_known(self) -> None:
        """Show what was found out about the corpus, and start if that is what it waited for."""
        self.show_plan()
        if self._asked is not None and (self.facts.complete or self.facts.error):
            asked, self._asked = self._asked, None
            self._when_ready(asked)

    def _corpus_read(self) -> None:
        self.post_message(FallbackUsed())  # the cache of tokens may have been refused

    def show_plan(self) -> None:
        """Show everything that follows from the plan, and look up what it needs to know."""
        plan, draft = self.plan, self.draft
        self.corpus_reader.read()
        self.query_one(SettingsForm).show(
            {key: draft.text(key) for key in form_fields()},
            set(draft.edits),
            plan.checked.errors,
            {key: draft.preset_text(key) for key in draft.edits},
        )
        self.query_one(CorpusPicker).show_facts(self.facts)
        self.query_one(PreviewPanel).show(self.facts.preview)
        self.device_lookup.look_at_named()
        self._show_cost()
        name = self.query_one("#name", Input)
        if name.value in ("", self._suggested_name):
            # Nobody typed another one.
            name.value = self._suggested_name = plan.default_name()
        self._show_run()
        self.refresh_bindings()

    def _show_run(self) -> None:
        panel = self.query_one(RunPanel)
        name = panel.run_name
        panel.show(
            self.draft.preset,
            self._about_preset(),
            for_screen(self.plan.command(name)),
            self.plan.name_error(name),
        )

    def _about_preset(self) -> str:
        draft = self.draft
        if self.plan.checked.varied:
            return self._about_sweep()
        if draft.start is not None:
            return f"begins with the weights of {safe(draft.start.name, one_line=True)}: see W"
        if draft.sizing is not None:
            return f"{draft.sizing.short}: see p"
        return PRESETS[draft.preset].description

    def _show_cost(self) -> None:
        device = self.plan.device
        label = "" if device is None else f"{device.label}, {device.name}"
        self.query_one(PreflightCard).show(
            self.plan.cost,
            self._preflight_note(),
            problems=self.plan.problems,
            device=safe(label, one_line=True),
            fixable=bool(self.plan.fix),
            each=self.plan.each_device,
            pace=self.plan.pace,
            compiles=self.plan.compiles,
            notes=self.facts.notes,
        )

    def _preflight_note(self) -> str:
        if self.measuring.doing:
            return f"measuring: {self.measuring.doing}… m stops it"
        if self._asked is not None and not self.facts.error:
            return "goes on when the text is read…"
        engine = self.workbench.torch_loader
        if engine.state == "loading":
            return "loading torch…"
        if engine.state == "failed":
            return f"torch: {safe(engine.error, one_line=True)}"
        return ""

    # What the keys do

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter goes on from a list only; what there is nothing to do for is not offered."""
        if action == "next":
            return self.focused is not None and self.focused.id in NEXT
        if action == "fix":
            return bool(self.plan.fix)
        if action == "undo":
            return self.plan.history.undoable
        if action == "redo":
            return self.plan.history.redoable
        if action == "changes":
            return bool(self.draft.edits)
        return True

    def action_next(self) -> None:
        """Go from the corpus to the preset, and from there to the start."""
        if self.focused is not None and self.focused.id in NEXT:
            self.set_focus(self.query_one(f"#{NEXT[self.focused.id]}"))

    @irreversible
    def action_start(self) -> None:
        """Start the run, or go to what stands in its way."""
        self._when_ready(self._start)

    @irreversible
    def action_queue(self) -> None:
        """Put the run behind those that wait, or go to what stands in its way."""
        self._when_ready(self._enqueue)

    def _when_ready(self, do: Callable[[RunRequested], object]) -> None:
        """Do something with the run as it stands, or go to what stands in its way."""
        name = self.query_one(RunPanel).run_name
        if not self.plan.checked.valid:
            self.query_one(SettingsForm).focus_error()
        elif self.plan.name_error(name):
            self.action_name()
        elif self.facts.error or not self.facts.spec:
            self.query_one("#corpora").focus()
            notify(self, self.facts.error or "Choose a corpus to learn from first.", error=True)
        elif not self.facts.complete:
            # A preset is fitted to the characters of its corpus, which reading it will tell.
            self._asked = do
            self.show_plan()
        else:
            request = self._request(name)
            go = self._ask_sweep if self.plan.checked.varied else do
            if problems := self.plan.problems:
                self.dialogs.confirm_start(problems, lambda: go(request))
            else:
                go(request)

    def _request(self, name: str) -> RunRequested:
        start = self.draft.start
        return RunRequested(name, self.plan.config, start.folder if start is not None else None)

    def _enqueue(self, request: RunRequested) -> None:
        runs_dir = self.workbench.runs_dir
        name, config, model = request.name, request.config, request.model
        self._line_up(config, lambda: enqueued(runs_dir, name, config, model))

    def _line_up(self, config: RunConfig, do: Callable[[], str]) -> None:
        """Put something into the queue in the background, and say what came of it."""
        recent_corpora.remember(self.workbench.preferences, config.data.corpus)

        def add() -> Iterator[str | RequestError]:
            try:
                yield do()
            except RequestError as error:
                yield error

        def tell(found: str | RequestError) -> None:
            notify(self, str(found), error=isinstance(found, RequestError))

        self._in_background(add, tell, group="queue")

    def _ask_sweep(self, request: RunRequested) -> None:
        """Say how many runs a sweep is and how long it takes, and put them into the queue."""
        if error := self.plan.sweep_error:
            notify(self, error, error=True)
            return
        points, runs_dir = self.plan.points, self.workbench.runs_dir
        name, model = request.name, request.model

        def begin(confirmed: bool) -> None:
            if confirmed:
                self._line_up(request.config, lambda: swept(runs_dir, name, points, model))

        said = [f"{key}: {', '.join(map(str, v))}" for key, v in self.plan.checked.varied.items()]
        said.append("They wait in the queue for their turn, one after the other.")
        title = f"Train {self._about_sweep()}?"
        self._ask(Confirm(title, "\n".join(said), yes="Train them", no="Not yet"), begin)

    def _about_sweep(self) -> str:
        count = math.prod(len(values) for values in self.plan.checked.varied.values())
        seconds = self.plan.cost.seconds
        about = f", about {formatting.duration(seconds * count)} in all" if seconds else ""
        return f"a sweep of {count:,} runs{about}"

    def _start(self, request: RunRequested) -> None:
        recent_corpora.remember(self.workbench.preferences, request.config.data.corpus)
        self.measuring.stop()
        self.post_message(request)

    def action_name(self) -> None:
        """Go to the name of the run, behind what is there."""
        name = self.query_one("#name", Input)
        name.focus()
        name.cursor_position = len(name.value)

    def action_preview(self) -> None:
        """Read the text of the corpus: its panel takes the focus, on a narrow screen the place."""
        panel = self.query_one(PreviewPanel)
        back = panel.has_focus
        self.set_class(not back, "-preview")
        self.query_one("#corpora" if back else "#text").focus()

    def action_presets(self) -> None:
        """List the presets."""
        self._ask(preset_pick(self.plan), self._take_preset)

    def action_device(self) -> None:
        """List the devices with their free memory, alone and together."""
        self.dialogs.ask_device(self.device_lookup)

    def action_browse(self) -> None:
        """Choose a file or folder from a tree."""
        self.dialogs.browse(self.query_one(CorpusPicker).take_path)

    def action_xray(self) -> None:
        """Look through the corpus; the answer is another encoding."""
        self.dialogs.show_xray()

    def action_encoding(self) -> None:
        """Choose the encoding of the corpus."""
        self.dialogs.ask_encoding()

    def action_save(self) -> None:
        """Write the settings to a file."""
        self.dialogs.save(self.query_one(RunPanel).run_name)

    def action_load(self) -> None:
        """Read settings from a file."""
        self.dialogs.load()

    def action_from_run(self) -> None:
        """Take the settings of a recorded run, or go on with it."""
        self.dialogs.ask_run(
            self.workbench.runs_dir, lambda folder: self.post_message(ResumeRequested(folder))
        )

    def action_weights(self) -> None:
        """Begin with the weights of a recorded run."""
        workbench = self.workbench
        self.dialogs.ask_weights(list_writing_runs(workbench.training, workbench.runs_dir))

    def action_find(self) -> None:
        """Find a setting."""
        self.query_one(SettingsForm).find()

    def action_changes(self) -> None:
        """List what differs from the preset, or everything again."""
        self.query_one(SettingsForm).list_changed()

    def action_undo(self) -> None:
        """Undo the last change."""
        if self.plan.undo():
            self.show_plan()

    def action_redo(self) -> None:
        """Redo the change that was undone last."""
        if self.plan.redo():
            self.show_plan()

    def action_fix(self) -> None:
        """Change what the preflight objects to; one step back undoes it."""
        changes = self.plan.fix
        self.plan.change(self.draft.with_values(changes))
        self.show_plan()
        done = ", ".join(f"{key} is {value}" for key, value in changes.items())
        notify(self, f"{done}; u undoes it")

    def action_copy_command(self) -> None:
        """Copy the command that starts this run, for a shell in any folder."""
        command = for_shell(self.plan.command(self.query_one(RunPanel).run_name))
        self.app.copy_to_clipboard(command)
        notify(self, f"Copied: {command}", title="The command of this run")

    def action_measure(self) -> None:
        """Measure the present settings, or stop measuring."""
        self._measure(batches=False)

    def action_measure_batches(self) -> None:
        """Measure batch sizes and take the fastest that fits, or stop measuring."""
        self._measure(batches=True)

    def _measure(self, *, batches: bool) -> None:
        training = self.workbench.training.training is not None
        self.measuring.toggle(batches=batches, training=training)

    def _take_preset(self, preset: str) -> None:
        self.plan.choose_preset(preset)
        self.workbench.preferences.set("setup.preset", preset)
        self.show_plan()

    def _choose_corpus(self, spec: str) -> None:
        self.query_one(CorpusPicker).add([spec], choose=True)

    def _ask(
        self, dialog: Screen[Answer] | Screen[Answer | None], take: Callable[[Answer], object]
    ) -> None:
        def answered(answer: Answer | None) -> None:
            if answer is not None:
                take(answer)

        self.app.push_screen(dialog, answered)
