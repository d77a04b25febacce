"""The Setup screen: a corpus, a preset, settings, what the run will cost, and the start.

What follows from what is worked out in setup_plan.py; the screen shows it and passes keys on.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.events import ScreenResume
from textual.widgets import Button, Input
from textual.worker import get_current_worker

from megatron_model.corpus import BUILTIN_CORPORA
from megatron_model.errors import RequestError
from megatron_model.presets import PRESETS
from megatron_model.run_folder import RunFolder, list_runs
from megatron_model.text import safe
from megatron_tui.corpus_facts import CorpusFacts, inspect_corpus
from megatron_tui.messages import CorpusInspected, DeviceDescribed, ResumeRequested, RunRequested
from megatron_tui.screens.dialogs import Confirm
from megatron_tui.screens.setup_keys import SETUP_KEYS
from megatron_tui.screens.setup_measuring import SetupMeasuring
from megatron_tui.setup_draft import SetupDraft, form_fields
from megatron_tui.setup_plan import SetupPlan
from megatron_tui.train_command import for_screen, for_shell
from megatron_tui.widgets.choice import Choice
from megatron_tui.widgets.corpus_picker import CorpusPicker
from megatron_tui.widgets.preflight_card import PreflightCard
from megatron_tui.widgets.preview_panel import PreviewPanel
from megatron_tui.widgets.run_panel import RunPanel
from megatron_tui.widgets.settings_form import SettingsForm
from megatron_tui.widgets.settings_list import SettingsList
from megatron_tui.workbench import Workbench

NEXT = {"corpora": "preset", "preset": "start"}
"""Where enter goes from a part of the screen, by their ids."""

RECENT = 12
"""How many recorded runs are asked for their corpora, and how many corpora are remembered."""


class SetupScreen(SetupMeasuring):
    """Compose the parts, keep the plan, show what follows from it."""

    MODE = "setup"
    AUTO_FOCUS = "#corpora"
    CSS_PATH = "setup.tcss"
    BINDINGS: ClassVar[list[BindingType]] = SETUP_KEYS

    def __init__(self, workbench: Workbench, corpus: str = "") -> None:
        super().__init__(workbench)
        remembered = workbench.preferences.get("setup.preset", "")
        self._own_preset = remembered in PRESETS
        self.plan = SetupPlan(workbench.runs_dir, remembered if self._own_preset else "cpu")
        self._first_corpus = corpus
        self._suggested_name = ""
        self._start_asked = False
        self._read: tuple[str, str] = ("", "")
        """The corpus that was read last, and the encoding."""

    @property
    def facts(self) -> CorpusFacts:
        """What is known of the corpus."""
        return self.plan.facts

    @property
    def draft(self) -> SetupDraft:
        """What is typed."""
        return self.plan.draft

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
        remembered = self.workbench.preferences.get("setup.corpora", list[str]())
        picker.add([*remembered[:RECENT], *BUILTIN_CORPORA])
        first = self._first_corpus or self.workbench.preferences.get("setup.corpus", "")
        if first:
            picker.add([first], choose=True)
        self.plan.look_at_disk()
        self._update()
        self._read_recent()

    def on_screen_resume(self, _event: ScreenResume | None = None) -> None:
        """The device may be known by now, and a run may have taken the name."""
        self.plan.look_at_disk()
        self.engine_loaded()

    def engine_loaded(self) -> None:
        """Choose the preset for this machine's device, unless one was chosen by hand."""
        if not self.query("#settings"):
            return  # still being made; it looks again when it is there
        device = self.workbench.engine.device
        if device is not None:
            self.plan.devices.update({"auto": device, device.kind: device})
            if device.kind != "cpu" and not self._own_preset:
                self.plan.suggest_preset("small")
        self._update()

    @on(CorpusPicker.Chosen)
    def _corpus_chosen(self, message: CorpusPicker.Chosen) -> None:
        # The list says its choice again when it is filled anew: what is known of it stays known.
        if message.spec != self.facts.spec or self.facts.error:
            self._read = ("", "")
            self.plan.facts = CorpusFacts(message.spec)
            self._update()

    @on(Choice.Changed, "#preset")
    def _preset_chosen(self, message: Choice.Changed) -> None:
        self._take_preset(message.value)

    @on(SettingsList.Edited)
    def _setting_edited(self, message: SettingsList.Edited) -> None:
        typing = self.focused is not None and self.focused.id == "editor"
        self.plan.change(
            self.draft.with_text(message.key, message.text), message.key if typing else ""
        )
        self._update()

    @on(SettingsForm.Paused)
    def _typed_to_the_end(self) -> None:
        self.plan.history.end_group()

    @on(Input.Changed, "#name")
    def _name_typed(self) -> None:
        self._show_run()

    @on(CorpusInspected)
    def _facts_found(self, message: CorpusInspected) -> None:
        if (message.facts.spec, message.facts.encoding) == self._read:
            self.plan.facts = message.facts
            self._update()
            if self._start_asked and (self.facts.size is not None or self.facts.error):
                self._start_asked = False
                self.action_start()

    @on(DeviceDescribed)
    def _device_found(self, message: DeviceDescribed) -> None:
        if message.device is not None:
            self.plan.devices[message.name] = message.device
        else:
            self.plan.device_errors[message.name] = message.error
        self._update()

    @on(Button.Pressed, "#start")
    def _start_pressed(self) -> None:
        self.action_start()

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
        """Take the corpus, then the preset, then start."""
        if self.focused is not None and self.focused.id in NEXT:
            self.set_focus(self.query_one(f"#{NEXT[self.focused.id]}"))

    def action_start(self) -> None:
        """Start the run, or go to what stands in its way."""
        if not self.plan.checked.valid:
            self.query_one(SettingsForm).focus_error()
            return
        name = self.query_one(RunPanel).run_name
        if self.plan.name_error(name):
            self.action_name()
            return
        if self.facts.error or not self.facts.spec:
            self.query_one("#corpora").focus()
            return
        if self.facts.size is None:
            # Typed ahead: a preset is fitted to the size of its corpus, which is known in a moment.
            self._start_asked = True
            return
        request = RunRequested(name, self.plan.config)
        problems = self._problems()

        def start(confirmed: bool | None) -> None:
            if confirmed:
                self._remember()
                self.stop_measuring()
                self.post_message(request)

        if not problems:
            start(True)
            return
        question = Confirm(
            "Start although preflight objects?", "\n".join(problems), yes="Start", no="Not yet"
        )
        self.app.push_screen(question, start)

    def action_name(self) -> None:
        """Go to the name of the run, behind what is there."""
        name = self.query_one("#name", Input)
        name.focus()
        name.cursor_position = len(name.value)

    def action_presets(self) -> None:
        """List the presets."""
        from megatron_tui.screens.setup_dialogs import preset_pick

        def take(preset: str | None) -> None:
            if preset is not None:
                self._take_preset(preset)

        self.app.push_screen(preset_pick(self.plan), take)

    def action_device(self) -> None:
        """List the devices with their free memory, those not looked at yet as they are known."""
        from megatron_tui.screens.setup_dialogs import device_pick

        def take(device: str | None) -> None:
            if device is not None:
                self._change("training.device", device)

        self.app.push_screen(device_pick(self.plan), take)
        self._list_devices()

    def action_browse(self) -> None:
        """Choose a file or folder from a tree."""
        from megatron_tui.screens.file_browser import FileBrowser

        def take(path: Path | None) -> None:
            if path is not None:
                self.query_one(CorpusPicker).take_path(str(path))

        self.app.push_screen(FileBrowser(Path.cwd()), take)

    def action_preview(self) -> None:
        """Read in the corpus: the panel takes the focus, and on a narrow screen the place."""
        panel = self.query_one(PreviewPanel)
        back = panel.has_focus
        self.set_class(not back, "-preview")
        self.query_one("#corpora" if back else "#text").focus()

    def action_xray(self) -> None:
        """Look through the corpus; the answer is another encoding."""
        from megatron_tui.screens.xray import XrayScreen

        if not self.facts.spec:
            return
        encoding = self.draft.text("data.encoding")
        fraction = self.plan.checked.config.data.validation_fraction
        self.app.push_screen(XrayScreen(self.facts.spec, encoding, fraction), self._take_encoding)

    def action_encoding(self) -> None:
        """Choose the encoding of the corpus."""
        from megatron_tui.screens.xray import encoding_pick

        pick = encoding_pick(self.facts, self.draft.text("data.encoding"))
        self.app.push_screen(pick, self._take_encoding)

    def action_find(self) -> None:
        """Find a setting."""
        self.query_one(SettingsForm).find()

    def action_changes(self) -> None:
        """List what differs from the preset, or everything again."""
        self.query_one(SettingsForm).list_changed()

    def action_undo(self) -> None:
        """Take the last change back."""
        if self.plan.undo():
            self._update()

    def action_redo(self) -> None:
        """Make the change again that was taken back last."""
        if self.plan.redo():
            self._update()

    def action_fix(self) -> None:
        """Change what the preflight objects to; one step back undoes it."""
        changes = self.plan.fix
        self.plan.change(self.draft.with_values(changes))
        self._update()
        self.say(", ".join(f"{key} is {value}" for key, value in changes.items()) + "; u undoes it")

    def action_copy_command(self) -> None:
        """Copy the command that starts this run, for a shell in any folder."""
        command = for_shell(self.plan.command(self.query_one(RunPanel).run_name))
        self.app.copy_to_clipboard(command)
        self.say(f"Copied: {command}", title="The command of this run")

    def action_save(self) -> None:
        """Write the settings to a file."""
        from megatron_tui.screens.setup_dialogs import save_dialog

        def saved(path: str | None) -> None:
            if path is not None:
                self.say(f"Settings saved in {path}")

        self.app.push_screen(save_dialog(self.plan, self.query_one(RunPanel).run_name), saved)

    def action_load(self) -> None:
        """Read settings from a file."""
        from megatron_tui.screens.setup_dialogs import load_dialog

        def loaded(path: str | None) -> None:
            if path is not None:
                self._own_preset = True
                self._take_wanted_corpus()
                self._update()
                self.say(f"Settings loaded from {path}; u takes them back")

        self.app.push_screen(load_dialog(self.plan, ""), loaded)

    def action_from_run(self) -> None:
        """Take the settings of a recorded run, or go on with it."""
        from megatron_tui.screens.setup_dialogs import run_pick

        pick = run_pick(self.workbench.runs_dir)

        def take(answer: str | None) -> None:
            if answer is None:
                return
            name = answer.removeprefix(pick.RESUME)
            folder = RunFolder(self.workbench.runs_dir / name)
            if answer.startswith(pick.RESUME):
                self.post_message(ResumeRequested(folder))
                return
            try:
                config = folder.config
            except RequestError as error:
                self.say(str(error), severity="error")
                return
            self._own_preset = True
            self.plan.change(self.draft.with_config(config))
            self.plan.wanted_corpus = config.data.corpus
            self._take_wanted_corpus()
            self._update()

        self.app.push_screen(pick, take)

    def _take_preset(self, preset: str) -> None:
        self._own_preset = True
        self.plan.change(self.draft.with_preset(preset))
        self.workbench.preferences.set("setup.preset", preset)
        self._update()

    def _take_encoding(self, encoding: str | None) -> None:
        if encoding is not None:
            self._change("data.encoding", encoding)

    def _take_wanted_corpus(self) -> None:
        spec, self.plan.wanted_corpus = self.plan.wanted_corpus, ""
        if spec:
            self.query_one(CorpusPicker).add([spec], choose=True)

    def _change(self, key: str, text: str) -> None:
        self.plan.change(self.draft.with_text(key, text))
        self._update()

    def _remember(self) -> None:
        """Keep the corpus that a run was started on for the next session."""
        preferences = self.workbench.preferences
        spec = self.plan.config.data.corpus
        preferences.set("setup.corpus", spec)
        if spec not in BUILTIN_CORPORA:
            before = preferences.get("setup.corpora", list[str]())
            preferences.set("setup.corpora", list(dict.fromkeys([spec, *before]))[:RECENT])

    @work(thread=True, group="corpus", exclusive=True, exit_on_error=False)
    def _inspect(self, spec: str, encoding: str) -> None:
        worker = get_current_worker()
        for facts in inspect_corpus(spec, encoding):
            if worker.is_cancelled:
                return
            self.post_message(CorpusInspected(facts))

    @work(thread=True, group="recent", exit_on_error=False)
    def _read_recent(self) -> None:
        recent: list[str] = []
        for folder in list_runs(self.workbench.runs_dir)[:RECENT]:
            try:
                recent.append(folder.config.data.corpus)
            except RequestError:
                continue
        fresh = [spec for spec in dict.fromkeys(recent) if spec and spec not in BUILTIN_CORPORA]
        if fresh:
            self.app.call_from_thread(self.query_one(CorpusPicker).add, fresh)

    def _update(self) -> None:
        """Show everything that follows from the plan."""
        plan, draft = self.plan, self.draft
        encoding = draft.text("data.encoding")
        if self.facts.spec and self._read != (self.facts.spec, encoding):
            self._read = (self.facts.spec, encoding)
            plan.facts = CorpusFacts(self.facts.spec, encoding)
            self._inspect(self.facts.spec, encoding)
        keys = form_fields()
        self.query_one(SettingsForm).show(
            {key: draft.text(key) for key in keys},
            set(draft.edits),
            plan.checked.errors,
            {key: draft.preset_text(key) for key in draft.edits},
        )
        self.query_one(CorpusPicker).show_facts(self.facts)
        self.query_one(PreviewPanel).show(self.facts.preview)
        self._look_at_device()
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
            self.draft.preset, for_screen(self.plan.command(name)), self.plan.name_error(name)
        )

    def _problems(self) -> list[str]:
        """Return what stands in the way of starting, device included."""
        error = self.plan.device_errors.get(self.plan.device_name, "")
        return ([error] if error else []) + self.plan.cost.problems

    def _show_cost(self) -> None:
        device, cost = self.plan.device, self.plan.cost
        label = "" if device is None else f"{device.label}, {device.name}"
        self.query_one(PreflightCard).show(
            cost,
            self._preflight_note(),
            problems=self._problems(),
            device=safe(label, one_line=True),
            fixable=bool(self.plan.fix),
        )

    def _preflight_note(self) -> str:
        if self.measuring:
            return f"measuring: {self.measuring}… m stops it"
        engine = self.workbench.engine
        if engine.state == "loading":
            return "loading torch…"
        if engine.state == "failed":
            return f"torch: {safe(engine.error, one_line=True)}"
        return ""
