"""What the keys of the Setup screen do; the screen itself is in setup.py."""

from __future__ import annotations

from pathlib import Path

from textual.widgets import Input

from megatron_model.corpus import BUILTIN_CORPORA
from megatron_model.errors import RequestError
from megatron_model.run_folder import RunFolder
from megatron_tui.corpus_facts import CorpusFacts
from megatron_tui.messages import ResumeRequested, RunRequested
from megatron_tui.screens.dialogs import Confirm
from megatron_tui.screens.setup_measuring import SetupMeasuring
from megatron_tui.setup_draft import SetupDraft
from megatron_tui.train_command import for_shell
from megatron_tui.widgets.corpus_picker import CorpusPicker
from megatron_tui.widgets.preview_panel import PreviewPanel
from megatron_tui.widgets.run_panel import RunPanel
from megatron_tui.widgets.settings_form import SettingsForm

NEXT = {"corpora": "preset", "preset": "start"}
"""Where enter goes from a part of the screen, by their ids."""

RECENT = 12
"""How many recorded runs are looked at, and how many corpora are remembered."""


class SetupActions(SetupMeasuring):
    """The actions, over what the screen keeps."""

    _own_preset: bool
    """Whether the preset was chosen by hand."""
    _start_asked: bool
    """Whether the run is to start as soon as its corpus is known."""

    @property
    def facts(self) -> CorpusFacts:
        """What is known of the corpus."""
        return self.plan.facts

    @property
    def draft(self) -> SetupDraft:
        """What is typed."""
        return self.plan.draft

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
        """List the devices with their free memory, alone and together, as they are known."""
        from megatron_tui.screens.device_pick import device_changes, device_pick

        def take(entry: str | None) -> None:
            if entry is not None:
                self.plan.change(self.draft.with_values(device_changes(entry)))
                self._update()

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

    def _problems(self) -> list[str]:
        """Return what stands in the way of starting, device included."""
        error = self.plan.device_errors.get(self.plan.device_name, "")
        return ([error] if error else []) + self.plan.cost.problems
