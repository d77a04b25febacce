"""The Setup screen: a corpus, a preset, settings, what the run will cost, and the start."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Button, Input
from textual.worker import get_current_worker

from megatron_model.config import with_settings
from megatron_model.corpus import BUILTIN_CORPORA
from megatron_model.errors import RequestError
from megatron_model.preflight import Preflight, preflight
from megatron_model.presets import PRESETS
from megatron_model.run_folder import check_run_name, free_name, list_runs
from megatron_model.text import safe
from megatron_tui.corpus_facts import CorpusFacts, inspect_corpus
from megatron_tui.messages import CorpusInspected, RunRequested
from megatron_tui.screens.dialogs import Confirm
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.setup_draft import Checked, SetupDraft, form_fields
from megatron_tui.widgets.choice import Choice
from megatron_tui.widgets.corpus_picker import CorpusPicker
from megatron_tui.widgets.panel import Panel, Text
from megatron_tui.widgets.preflight_card import PreflightCard
from megatron_tui.widgets.settings_form import SettingsForm
from megatron_tui.widgets.settings_list import SettingsList
from megatron_tui.workbench import Workbench

NEXT = {"corpora": "preset", "preset": "start"}
"""Where enter goes from a part of the screen, by their ids."""

RECENT_RUNS = 12
"""How many recorded runs are asked for their corpora."""


class SetupScreen(WorkbenchScreen):
    """Compose the parts, keep the draft, show what follows from it."""

    MODE = "setup"
    AUTO_FOCUS = "#corpora"
    CSS_PATH = "setup.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "ctrl+r,R",
            "start",
            "Start",
            key_display="^r",
            tooltip="Start the run",
            id="setup.start",
        ),
        # Priority, so that keys typed ahead find the focus where the one before put it.
        Binding("enter", "next", "Next", tooltip="Take it", id="setup.next", priority=True),
        Binding("ctrl+o", "browse", "Browse", tooltip="Browse for a corpus", id="setup.browse"),
        Binding(
            "ctrl+t",
            "preview",
            "Text",
            tooltip="Read in the corpus",
            id="setup.preview",
        ),
    ]

    def __init__(self, workbench: Workbench, corpus: str = "") -> None:
        super().__init__(workbench)
        self.draft = SetupDraft("cpu")
        self.facts = CorpusFacts("")
        self._checked: Checked = self.draft.check()
        self._first_corpus = corpus
        self._own_preset = False
        self._suggested_name = ""

    def compose_body(self) -> ComposeResult:
        """Corpus and cost on the left, the run and its settings on the right."""
        with Horizontal(id="body"):
            with Vertical(id="left"):
                yield CorpusPicker()
                with Panel("text", id="text"):
                    yield Text()
                yield PreflightCard()
            with Vertical(id="right"):
                with Panel("run", id="about"):
                    with Horizontal(classes="row"):
                        yield Text("preset", classes="name")
                        yield Choice(list(PRESETS), self.draft.preset, id="preset")
                        yield Button("Start", id="start", variant="primary", compact=True)
                    yield Text(classes="description")
                    with Horizontal(classes="row"):
                        yield Text("name", classes="name")
                        yield Input(id="name", compact=True, select_on_focus=False)
                    yield Text(classes="name-error")
                yield SettingsForm("settings", form_fields(), id="settings")

    def on_mount(self) -> None:
        """List the corpora; those of recorded runs follow when they were read."""
        picker = self.query_one(CorpusPicker)
        picker.add(BUILTIN_CORPORA)
        if self._first_corpus:
            picker.add([self._first_corpus], choose=True)
        self._update()
        self._read_recent()

    def on_screen_resume(self) -> None:
        """The device may be known by now, and a run may have taken the name."""
        super().on_screen_resume()
        self.engine_loaded()

    def engine_loaded(self) -> None:
        """Choose the preset for this machine's device, unless one was chosen by hand."""
        device = self.workbench.engine.device
        if device is not None and device.kind != "cpu" and not self._own_preset:
            self.draft = self.draft.with_preset("small")
        self._update()

    @on(CorpusPicker.Chosen)
    def _corpus_chosen(self, message: CorpusPicker.Chosen) -> None:
        self.facts = CorpusFacts(message.spec)
        self._update()
        self._inspect(message.spec, self.draft.text("data.encoding"))

    @on(Choice.Changed, "#preset")
    def _preset_chosen(self, message: Choice.Changed) -> None:
        self._own_preset = True
        self.draft = self.draft.with_preset(message.value)
        self._update()

    @on(SettingsList.Edited)
    def _setting_edited(self, message: SettingsList.Edited) -> None:
        self.draft = self.draft.with_text(message.key, message.text)
        self._update()
        if message.key == "data.encoding" and self.facts.spec:
            self._inspect(self.facts.spec, message.text)

    @on(Input.Changed, "#name")
    def _name_typed(self) -> None:
        self._show_name_error()

    @on(CorpusInspected)
    def _facts_found(self, message: CorpusInspected) -> None:
        if message.facts.spec == self.facts.spec:
            self.facts = message.facts
            self._update()

    @on(Button.Pressed, "#start")
    def _start_pressed(self) -> None:
        self.action_start()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Enter goes on to the next step from a list only; elsewhere it has its own meaning."""
        if action == "next":
            return self.focused is not None and self.focused.id in NEXT
        return True

    def action_next(self) -> None:
        """Take the corpus, then the preset, then start."""
        if self.focused is not None and self.focused.id in NEXT:
            self.set_focus(self.query_one(f"#{NEXT[self.focused.id]}"))

    def action_start(self) -> None:
        """Start the run, or go to what stands in its way."""
        name = self.query_one("#name", Input).value.strip()
        if not self._checked.valid:
            self.query_one(SettingsForm).focus_error()
            return
        if self._show_name_error():
            self.query_one("#name").focus()
            return
        if self.facts.error or not self.facts.spec:
            self.query_one("#corpora").focus()
            return
        config = with_settings(self._checked.config, {"data.corpus": self.facts.spec})
        request = RunRequested(name, config)
        result = self._preflight()
        if not result.problems:
            self.post_message(request)
            return

        def start(confirmed: bool | None) -> None:
            if confirmed:
                self.post_message(request)

        problems = "\n".join(result.problems)
        question = Confirm("Start although preflight objects?", problems, yes="Start", no="Not yet")
        self.app.push_screen(question, start)

    def action_browse(self) -> None:
        """Choose a file or folder from a tree."""
        from megatron_tui.screens.file_browser import FileBrowser

        def take(path: Path | None) -> None:
            if path is not None:
                self.query_one(CorpusPicker).take_path(str(path))

        self.app.push_screen(FileBrowser(Path.cwd()), take)

    def action_preview(self) -> None:
        """Show the beginning of the corpus in place of the settings, or put them back."""
        self.toggle_class("-preview")

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
        for folder in list_runs(self.workbench.runs_dir)[:RECENT_RUNS]:
            try:
                recent.append(folder.config.data.corpus)
            except RequestError:
                continue
        fresh = [spec for spec in dict.fromkeys(recent) if spec and spec not in BUILTIN_CORPORA]
        if fresh:
            self.app.call_from_thread(self.query_one(CorpusPicker).add, fresh)

    def _update(self) -> None:
        """Show everything that follows from the draft and the corpus."""
        self._checked = self.draft.check()
        self.query_one("#preset", Choice).value = self.draft.preset
        self.query_one(".description", Text).show(PRESETS[self.draft.preset].description)
        texts = {key: self.draft.text(key) for key in form_fields()}
        form = self.query_one(SettingsForm)
        form.show(texts, set(self.draft.edits), self._checked.errors)
        form.set_subtitle(f"{len(self.draft.edits)} changed" if self.draft.edits else "")
        self.query_one(CorpusPicker).show_facts(self.facts)
        self.query_one("#text Text", Text).show(safe(self.facts.preview).expandtabs(4), layout=True)
        self.query_one(PreflightCard).show(self._preflight(), self._preflight_note())
        name = self.query_one("#name", Input)
        if name.value in ("", self._suggested_name):
            # Nobody typed another one.
            name.value = self._suggested_name = self._default_name()
        self._show_name_error()

    def _preflight(self) -> Preflight:
        facts = self.facts
        return preflight(
            self._checked.config,
            characters=facts.characters,
            vocabulary_size=len(facts.vocabulary) if facts.vocabulary is not None else None,
            device=self.workbench.engine.device,
        )

    def _preflight_note(self) -> str:
        engine = self.workbench.engine
        if engine.state == "loading":
            return "loading torch…"
        if engine.state == "failed":
            return f"torch: {safe(engine.error, one_line=True)}"
        return ""

    def _default_name(self) -> str:
        stem = self.facts.name or self.facts.spec.removeprefix("builtin:")
        return free_name(self.workbench.runs_dir, f"{Path(stem).stem}-{self.draft.preset}")

    def _show_name_error(self) -> bool:
        name = self.query_one("#name", Input).value.strip()
        error = ""
        try:
            check_run_name(name)
            if (self.workbench.runs_dir / name).exists():
                error = "A run of this name exists; choose another."
        except RequestError as refusal:
            error = str(refusal)
        self.query_one(".name-error", Text).show(
            Content.styled(safe(error, one_line=True), "$error")
        )
        return bool(error)
