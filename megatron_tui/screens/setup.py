"""The Setup screen: a corpus, a preset, settings, what the run will cost, and the start.

What follows from what is worked out in setup_plan.py; the screen shows it and passes keys on.
"""

from __future__ import annotations

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
from megatron_model.run_folder import list_runs
from megatron_model.text import safe
from megatron_tui.corpus_facts import CorpusFacts, inspect_corpus
from megatron_tui.known_pace import read_paces
from megatron_tui.messages import CorpusInspected, DeviceDescribed, PacesRead
from megatron_tui.screens.setup_actions import RECENT, SetupActions
from megatron_tui.screens.setup_keys import SETUP_KEYS
from megatron_tui.setup_draft import form_fields
from megatron_tui.setup_plan import SetupPlan
from megatron_tui.train_command import for_screen
from megatron_tui.widgets.choice import Choice
from megatron_tui.widgets.corpus_picker import CorpusPicker
from megatron_tui.widgets.preflight_card import PreflightCard
from megatron_tui.widgets.preview_panel import PreviewPanel
from megatron_tui.widgets.run_panel import RunPanel
from megatron_tui.widgets.settings_form import SettingsForm
from megatron_tui.widgets.settings_list import SettingsList
from megatron_tui.workbench import Workbench


class SetupScreen(SetupActions):
    """Compose the parts, keep the plan, show what follows from it; keys are in its parent."""

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
        self._read_paces()

    def engine_loaded(self) -> None:
        """Choose the preset for this machine's device, unless one was chosen by hand."""
        if not self.query("#settings"):
            return  # still being made; it looks again when it is there
        device = self.workbench.engine.device
        if device is not None:
            self.plan.devices.update({"auto": device, device.kind: device})
            self.plan.cards = self.workbench.engine.cards
            # Once: the screen looks again whenever it is in front, and what is typed stays.
            if device.kind != "cpu" and not self._own_preset and not self.draft.edits:
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

    @on(PacesRead)
    def _paces_found(self, message: PacesRead) -> None:
        self.plan.paces = message.paces
        self._show_cost()

    @on(Button.Pressed, "#start")
    def _start_pressed(self) -> None:
        self.action_start()

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

    @work(thread=True, group="paces", exclusive=True, exit_on_error=False)
    def _read_paces(self) -> None:
        self.post_message(PacesRead(read_paces(list_runs(self.workbench.runs_dir)[:RECENT])))

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

    def _show_cost(self) -> None:
        device, cost = self.plan.device, self.plan.cost
        label = "" if device is None else f"{device.label}, {device.name}"
        self.query_one(PreflightCard).show(
            cost,
            self._preflight_note(),
            problems=self._problems(),
            device=safe(label, one_line=True),
            fixable=bool(self.plan.fix),
            each=self.plan.each_device,
            pace=self.plan.pace,
            compiles=self.plan.compiles,
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
