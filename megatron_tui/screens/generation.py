"""The Generation screen: a model, a prompt, how to draw characters, and the text as it comes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import TextArea

from megatron_model.config import SamplingConfig
from megatron_model.errors import RequestError
from megatron_model.run_folder import MODEL_FILE, Checkpoint, RunFolder, list_runs
from megatron_model.settings import fields_of
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.generation_service import GenerationStatus
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.setup_draft import value_text
from megatron_tui.training_service import OpenRun
from megatron_tui.widgets.choice import Choice
from megatron_tui.widgets.panel import Panel, Text
from megatron_tui.widgets.prompt_area import PromptArea
from megatron_tui.widgets.settings_form import SettingsForm
from megatron_tui.widgets.settings_list import SettingsList
from megatron_tui.widgets.stream_view import StreamView
from megatron_tui.workbench import Workbench

POLL_SECONDS = 0.1
FIELDS = {field.key: field for field in fields_of(SamplingConfig)}
HINT = "Type how the text begins and press enter. An empty prompt begins anywhere."
NO_MODEL = "No run has a checkpoint yet. Press F2 to set one up; it can write after its first."


@dataclass
class _Chosen:
    """The model to write with."""

    folder: RunFolder
    checkpoint: Checkpoint


class GenerationScreen(WorkbenchScreen):
    """Compose, keep what was chosen, hand texts to and from the generation service."""

    MODE = "generation"
    AUTO_FOCUS = "#prompt"
    CSS_PATH = "generation.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", tooltip="Stop writing", id="generation.stop"),
        Binding(
            "ctrl+r",
            "again",
            "Again",
            tooltip="Write once more from the same prompt",
            id="generation.again",
        ),
        Binding(
            "ctrl+n",
            "new_seed",
            "New seed",
            tooltip="Another seed, another text",
            id="generation.seed",
        ),
        Binding(
            "ctrl+d",
            "drop_unknown",
            "Drop unknown",
            tooltip="Take the characters the model has never seen out of the prompt",
            id="generation.drop",
            priority=True,
        ),
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self._texts = {key: value_text(field.default) for key, field in FIELDS.items()}
        self._folders: list[RunFolder] = []
        self._chosen: _Chosen | None = None
        self._last_prompt = ""
        self._seen_step: int | None = None
        """The newest checkpoint of the run on show, as of the last look."""

    def compose_body(self) -> ComposeResult:
        """The text over the prompt; the model and the sampling beside them."""
        with Horizontal(id="body"):
            with Vertical(id="writing"):
                with Panel("text", id="output"):
                    yield Text(id="hint")
                    yield StreamView()
                with Panel("prompt", id="prompt-panel"):
                    yield PromptArea(id="prompt")
                    yield Text(id="unknown")
            with Vertical(id="controls"):
                with Panel("model", id="model"):
                    with Horizontal(classes="row"):
                        yield Text("run", classes="name")
                        yield Choice([], "", id="run")
                    with Horizontal(classes="row"):
                        yield Text("weights", classes="name")
                        yield Choice(["best", "latest"], "best", id="weights")
                    yield Text(id="about-model")
                yield SettingsForm("sampling", FIELDS, id="sampling")

    def on_mount(self) -> None:
        """Poll only while there is something to poll for."""
        self._timer = self.set_interval(POLL_SECONDS, self._poll, pause=True)
        self._show_settings()

    def on_screen_resume(self) -> None:
        """Runs may have come and gone."""
        super().on_screen_resume()
        self._list_runs()

    def on_screen_suspend(self) -> None:
        """Nothing is drawn while another screen is in front; the text waits in the hub."""
        self._timer.pause()

    def show_run(self, run: OpenRun | None) -> None:
        """A new checkpoint of the chosen run changes what best and latest mean."""
        step = run.state.last_checkpoint_step if run is not None else None
        if step == self._seen_step or self.workbench.generation.busy:
            return
        self._seen_step = step
        self._list_runs()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if action == "stop":
            return self.workbench.generation.busy
        if action == "again":
            return self._chosen is not None
        if action == "drop_unknown":
            return bool(self._unknown())
        return True

    @on(Choice.Changed, "#run")
    def _run_chosen(self, message: Choice.Changed) -> None:
        for folder in self._folders:
            if safe(folder.name, one_line=True) == message.value:
                self.workbench.chosen_run = folder
        self._choose()

    @on(Choice.Changed, "#weights")
    def _weights_chosen(self) -> None:
        self._choose()

    @on(SettingsList.Edited)
    def _setting_edited(self, message: SettingsList.Edited) -> None:
        self._texts[message.key] = message.text
        self._show_settings()

    @on(TextArea.Changed, "#prompt")
    def _prompt_changed(self) -> None:
        self._show_unknown()

    @on(PromptArea.Submitted)
    def _submitted(self, message: PromptArea.Submitted) -> None:
        self._generate(message.text)

    def action_again(self) -> None:
        """Write from the same prompt."""
        self._generate(self._last_prompt or self.query_one(PromptArea).text)

    def action_new_seed(self) -> None:
        """Count the seed up and write again."""
        try:
            seed = int(self._texts["seed"]) + 1
        except ValueError:
            seed = 1
        self._texts["seed"] = str(seed)
        self._show_settings()
        self.action_again()

    def action_stop(self) -> None:
        """Stop within one character."""
        self.workbench.generation.cancel()

    def action_drop_unknown(self) -> None:
        """Take unknown characters out of the prompt."""
        tokenizer = self.workbench.generation.status.tokenizer
        prompt = self.query_one(PromptArea)
        if tokenizer is not None:
            prompt.text = tokenizer.drop_unknown(prompt.text)

    def _list_runs(self) -> None:
        self._folders = [
            folder for folder in list_runs(self.workbench.runs_dir) if folder.latest_checkpoint()
        ]
        names = [safe(folder.name, one_line=True) for folder in self._folders]
        choice = self.query_one("#run", Choice)
        choice.set_values(names)
        wanted = self.workbench.chosen_run
        chosen = safe(wanted.name, one_line=True) if wanted is not None else ""
        if chosen not in names:
            chosen = choice.value if choice.value in names else (names[0] if names else "")
        choice.value = chosen
        self._choose()

    def _choose(self) -> None:
        """Find the checkpoint that is meant, and load it so that its vocabulary is known."""
        name = self.query_one("#run", Choice).value
        best = self.query_one("#weights", Choice).value == "best"
        self._chosen = None
        for folder in self._folders:
            if safe(folder.name, one_line=True) == name:
                found = folder.best_checkpoint() if best else folder.latest_checkpoint()
                self._chosen = _Chosen(folder, found) if found is not None else None
        self._show_model()
        generation = self.workbench.generation
        if self._chosen is not None and generation.status.path != self._model_path():
            generation.load(self._model_path())
        self._timer.resume()
        self.refresh_bindings()

    def _model_path(self) -> Path:
        assert self._chosen is not None
        return self._chosen.checkpoint.path / MODEL_FILE

    def _sampling(self) -> tuple[SamplingConfig, dict[str, str]]:
        values: dict[str, object] = {}
        errors: dict[str, str] = {}
        for key, field in FIELDS.items():
            try:
                values[key] = field.parse(self._texts[key])
            except RequestError as error:
                errors[key] = str(error).removeprefix(f"{key} ")
        return SamplingConfig(**values), errors  # type: ignore[arg-type]

    def _generate(self, prompt: str) -> None:
        sampling, errors = self._sampling()
        if errors:
            self.query_one(SettingsForm).focus_error()
            return
        if self._chosen is None:
            return
        if self._unknown():
            self._show_unknown()
            self.app.bell()
            return
        self._last_prompt = prompt
        self.query_one(StreamView).restart(prompt)
        self.workbench.generation.generate(self._model_path(), prompt, sampling)
        self._timer.resume()
        self._poll()

    def _poll(self) -> None:
        generation = self.workbench.generation
        status = generation.status  # asked before the text: what came before its end is drained
        piece = generation.drain()
        if piece:
            self.query_one(StreamView).append(piece)
        self._show_status(status)
        if status.phase not in ("loading", "writing"):
            self._timer.pause()
            self._show_unknown()

    def _show_status(self, status: GenerationStatus) -> None:
        words = {
            "idle": "",
            "loading": "loading the model",
            "ready": "ready",
            "writing": "writing",
            "done": "done",
            "stopped": "stopped",
            "failed": "failed",
        }[status.phase]
        if status.characters:
            speed = f"{formatting.count(status.characters_per_second)} characters/s"
            words = f"{words}, {formatting.plural(status.characters, 'character')}, {speed}"
        panel = self.query_one("#output", Panel)
        panel.set_subtitle(words)
        hint = self.query_one("#hint", Text)
        empty = not self.query_one(StreamView).text
        if self._chosen is None:
            hint.show(NO_MODEL, layout=True)
        elif status.phase == "failed":
            hint.show(Content.styled(safe(status.error), "$error"), layout=True)
        elif empty:
            hint.show(
                "Type how the text begins and press enter. An empty prompt begins anywhere.",
                layout=True,
            )
        else:
            hint.show("", layout=True)
        hint.display = bool(hint.plain)
        self.refresh_bindings()

    def _show_model(self) -> None:
        about = self.query_one("#about-model", Text)
        if self._chosen is None:
            about.show("")
            return
        checkpoint = self._chosen.checkpoint
        loss = f", validation {checkpoint.val_loss:.3f}" if checkpoint.val_loss is not None else ""
        about.show(f"step {checkpoint.step:,}{loss}")

    def _show_settings(self) -> None:
        defaults = {key: value_text(field.default) for key, field in FIELDS.items()}
        edited = {key for key in FIELDS if self._texts[key] != defaults[key]}
        self.query_one(SettingsForm).show(self._texts, edited, self._sampling_errors())

    def _sampling_errors(self) -> dict[str, str]:
        return self._sampling()[1]

    def _unknown(self) -> list[str]:
        tokenizer = self.workbench.generation.status.tokenizer
        if tokenizer is None or not self.is_mounted:
            return []
        return tokenizer.unknown(self.query_one(PromptArea).text)

    def _show_unknown(self) -> None:
        unknown = self._unknown()
        line = self.query_one("#unknown", Text)
        line.display = bool(unknown)
        if unknown:
            names = " ".join(_name(character) for character in unknown[:12])
            line.show(
                Content.assemble(
                    ("The model has never seen ", "$warning"),
                    (names, "bold $warning"),
                    ("; ", "$warning"),
                    ("ctrl+d", "bold $primary"),
                    (" drops them.", "$warning"),
                )
            )
        self.refresh_bindings()


def _name(character: str) -> str:
    shown = safe(character)
    return (
        shown
        if shown == character and shown.isprintable() and shown != " "
        else f"U+{ord(character):04X}"
    )
