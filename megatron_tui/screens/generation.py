"""The Generation screen: a model, a prompt, how to draw characters, and the text as it comes."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import ScreenResume
from textual.widgets import TextArea

from megatron_model.prompting import Policy, fit_prompt, replacements
from megatron_model.run_folder import RunFolder
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.generation_service import GenerationStatus
from megatron_tui.model_choice import (
    LIVE,
    ModelChoice,
    cost_of_lending,
    list_writing_runs,
    model_choices,
)
from megatron_tui.open_run import OpenRun
from megatron_tui.prompt_history import PromptHistory
from megatron_tui.sampling_draft import FIELDS, SamplingDraft
from megatron_tui.screens.generation_actions import GenerationActions
from megatron_tui.screens.generation_keys import GENERATION_KEYS
from megatron_tui.unknown_line import POLICIES, unknown_line
from megatron_tui.widgets.choice import Choice
from megatron_tui.widgets.model_panel import ModelPanel
from megatron_tui.widgets.panel import Panel, Text
from megatron_tui.widgets.prompt_area import PromptArea
from megatron_tui.widgets.settings_form import SettingsForm
from megatron_tui.widgets.settings_list import SettingsList
from megatron_tui.widgets.stream_view import StreamView
from megatron_tui.workbench import Workbench
from megatron_tui.written_text import WrittenText

POLL_SECONDS = 0.15
"""Between looks at what was written: a full panel that scrolls is painted anew each time."""

FIRST_SECONDS = 0.01
"""How soon the first character is looked for."""
FIRST_LOOKS = 60
READING = 30.0
"""Characters a second that one can read along with: some 300 words a minute."""
HINT = (
    "Type how the text begins and press enter. An empty prompt begins anywhere.\n"
    "esc leaves the prompt; then r writes again, a goes on, H shows where the model was unsure."
)
NO_MODEL = "No run has a checkpoint yet. Press F2 to set one up; it can write after its first."


class SamplingForm(SettingsForm):
    """The settings of sampling."""

    EXPLANATION: ClassVar[str] = (
        "How each character is drawn from what the model holds likely. Left and right step the "
        "value, enter or a digit types one. Temperature 0 always takes the likeliest; the same "
        "seed writes the same text. Z locks the seed, p lists ways of sampling that go together."
    )


class OutputPanel(Panel):
    """Where the text comes."""

    EXPLANATION: ClassVar[str] = (
        "The prompt in colour, and after it what the model wrote. It is drawn character by "
        "character; esc stops it within one, a goes on as if it had never been stopped."
    )


class PromptPanel(Panel):
    """Where the prompt is typed."""

    EXPLANATION: ClassVar[str] = (
        "How the text begins. Characters that the model has never seen are marked; ctrl+d says "
        "whether they block, are dropped, or are replaced by what is most alike. Up and down go "
        "through the prompts of the past, ctrl+r searches them, ctrl+g opens your own editor."
    )


class GenerationScreen(GenerationActions):
    """Compose, keep what was chosen, hand texts to and from the generation service."""

    MODE = "generation"
    AUTO_FOCUS = "#prompt"
    CSS_PATH = "generation.tcss"
    BINDINGS: ClassVar[list[BindingType]] = GENERATION_KEYS

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.draft = SamplingDraft(workbench.preferences)
        self.history = PromptHistory(workbench.preferences)
        self.chosen: ModelChoice | None = None
        self.written: WrittenText | None = None
        self.seed_locked = False
        self._folders: list[RunFolder] = []
        self._waiting = ""
        """Written, but not shown yet: nobody reads that fast."""
        self._allowance = 0.0
        self._seen: tuple[object, ...] = ()
        """The newest checkpoint of the run on show, and whether it trains, as of the last look."""
        self._shown: tuple[object, ...] = ()

    def compose_body(self) -> ComposeResult:
        """The text over the prompt; the model and the sampling beside them."""
        with Horizontal(id="body"):
            with Vertical(id="writing"):
                with OutputPanel("text", id="output"):
                    yield Text(HINT, id="hint")
                    yield StreamView()
                with PromptPanel("prompt", id="prompt-panel"):
                    yield PromptArea(id="prompt")
                    yield Text(id="unknown")
            with Vertical(id="controls"):
                yield ModelPanel()
                yield SamplingForm("sampling", FIELDS, id="sampling")

    def on_mount(self) -> None:
        """Poll only while there is something to poll for."""
        self._timer = self.set_interval(POLL_SECONDS, self._poll, pause=True)
        self.show_settings()

    def on_screen_resume(self, event: ScreenResume | None = None) -> None:
        """Runs may have come and gone."""
        super().on_screen_resume(event)
        self._list_runs()

    def on_screen_suspend(self) -> None:
        """Nothing is drawn while another screen is in front; the text waits in the feed."""
        super().on_screen_suspend()
        self._timer.pause()

    def show_run(self, run: OpenRun | None) -> None:
        """A new checkpoint of the chosen run changes what best and latest mean."""
        trains = self.workbench.training.training is not None
        seen = (run.state.last_checkpoint_step if run is not None else None, trains)
        if seen == self._seen or self.busy:
            return
        self._seen = seen
        self._list_runs()

    @property
    def busy(self) -> bool:
        """Whether a text is being written, or shown slower than it was."""
        return self.workbench.generation.busy or bool(self._waiting)

    @property
    def policy(self) -> Policy:
        """What happens to characters that the model never saw."""
        kept = self.workbench.preferences.get("generation.unknown", "block")
        return next((policy for policy in POLICIES if policy == kept), "block")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if not self.is_mounted:
            return True
        typing = isinstance(self.focused, PromptArea)
        written = self.written is not None and bool(self.written.text)
        offered = {
            "stop": self.busy,
            "leave": typing and not self.busy,
            "prompt": not typing,
            "again": self.chosen is not None,
            "continue": written and not self.busy,
            "unknown": bool(self._unknown()),
            "copy": written,
            "save": written,
            "attention": written,
            "surprise": self.chosen is not None,
            "duel": self.chosen is not None,
            "several": self.chosen is not None,
            "ladder": self.chosen is not None,
            "search": bool(self.history.prompts),
        }
        return offered.get(action, True)

    @on(Choice.Changed, "#run")
    def _run_chosen(self, message: Choice.Changed) -> None:
        for folder in self._folders:
            if safe(folder.name, one_line=True) == message.value:
                self.workbench.chosen_run = folder
        self._choose()

    @on(Choice.Changed, "#weights")
    def _weights_chosen(self) -> None:
        self._choose()

    @on(Choice.Changed, "#pace")
    def _pace_chosen(self) -> None:
        self._poll()

    @on(SettingsList.Edited)
    def _setting_edited(self, message: SettingsList.Edited) -> None:
        self.draft.put(message.key, message.text)
        self.show_settings()

    @on(TextArea.Changed, "#prompt")
    def _prompt_changed(self) -> None:
        self._show_unknown()

    @on(PromptArea.Submitted)
    def _submitted(self, message: PromptArea.Submitted) -> None:
        self.generate(message.text)

    @on(PromptArea.Wandered)
    def _wandered(self, message: PromptArea.Wandered) -> None:
        prompt = self.query_one(PromptArea)
        found = self.history.older(prompt.text) if message.direction < 0 else self.history.newer()
        if found is not None:
            prompt.put(found)

    def _list_runs(self) -> None:
        self._folders = list_writing_runs(self.workbench.training, self.workbench.runs_dir)
        names = [safe(folder.name, one_line=True) for folder in self._folders]
        choice = self.query_one("#run", Choice)
        choice.set_values(names)
        wanted = self.workbench.chosen_run
        chosen = safe(wanted.name, one_line=True) if wanted is not None else ""
        if chosen not in names:
            chosen = choice.value if choice.value in names else (names[0] if names else "")
        choice.value = chosen
        # A new best checkpoint is no reason to end the text that is being written.
        going_on = self.busy and self.written is not None and self.written.run == chosen
        self._choose(load=not going_on)

    @property
    def choices(self) -> list[ModelChoice]:
        """All weights of the chosen run."""
        name = self.query_one("#run", Choice).value
        for folder in self._folders:
            if safe(folder.name, one_line=True) == name:
                return model_choices(folder, self.workbench.training)
        return []

    def take_weights(self, name: str) -> None:
        """Write with the weights of that name from now on."""
        self.query_one("#weights", Choice).value = name
        self._choose()

    def _choose(self, *, load: bool = True) -> None:
        """Find the weights that are meant, and load them so that their vocabulary is known."""
        choices = self.choices
        weights = self.query_one("#weights", Choice)
        short = [choice.name for choice in choices if not choice.name.startswith("step")]
        weights.set_values(short)
        found = [choice for choice in choices if choice.name == weights.value] or choices[:1]
        self.chosen = found[0] if found else None
        if self.chosen is not None:
            weights.value = self.chosen.name
        generation = self.workbench.generation
        chosen = self.chosen
        if load and chosen is not None and generation.status.weights != chosen.weights:
            generation.load(chosen.weights)
        self._show_status(generation.status)
        self._timer.resume()
        self.refresh_bindings()

    def generate(self, prompt: str) -> None:
        """Write a text after `prompt`, unless something about it is wrong."""
        if self.draft.errors:
            self.query_one(SettingsForm).focus_error()
            return
        if self.chosen is None:
            return
        tokenizer = self.workbench.generation.status.tokenizer
        prompt_read = self.readable(prompt)
        if tokenizer is not None and tokenizer.unknown(prompt_read):
            self._show_unknown()
            self.app.bell()
            return
        self.history.add(prompt)
        chosen = self.chosen
        self.written = WrittenText(
            chosen.weights, chosen.run, chosen.words, self.draft.sampling, prompt_read
        )
        self.query_one(StreamView).restart(prompt_read)
        self.workbench.generation.generate(chosen.weights, prompt_read, self.draft.sampling)
        self.begin_watching()

    def readable(self, prompt: str) -> str:
        """Return a prompt as the model can read it, if what it never saw is not to block."""
        tokenizer = self.workbench.generation.status.tokenizer
        return prompt if tokenizer is None else fit_prompt(tokenizer, prompt, self.policy)

    def begin_watching(self) -> None:
        """Show what comes from now on; its first character at once."""
        self._waiting, self._allowance, self._looks = "", 1.0, 0
        self._timer.resume()
        self._poll()
        self.set_timer(FIRST_SECONDS, self._look_for_first)

    def _look_for_first(self) -> None:
        status, self._looks = self.workbench.generation.status, self._looks + 1
        if not status.characters and self.busy and self._looks < FIRST_LOOKS:
            self.set_timer(FIRST_SECONDS, self._look_for_first)
        else:
            self._poll()

    def forget_unread(self) -> None:
        """Drop what was written but not shown: the text ends where it was stopped."""
        self._waiting = ""

    def catch_up(self) -> None:
        """Take in what was written since the last look."""
        self._poll()

    def _poll(self) -> None:
        generation = self.workbench.generation
        status = generation.status  # asked before the text: what came before its end is drained
        self._waiting += generation.drain()
        if self.query_one("#pace", Choice).value == "reading":
            self._allowance = min(self._allowance + READING * POLL_SECONDS, READING)
            count = int(self._allowance)
            self._allowance -= min(count, len(self._waiting))
        else:
            count = len(self._waiting)
        piece, self._waiting = self._waiting[:count], self._waiting[count:]
        if piece and self.written is not None:
            self.written.append(piece)
            self.query_one(StreamView).append(piece)
        self._show_status(status)
        if not self.busy:
            self._timer.pause()

    def _show_status(self, status: GenerationStatus) -> None:
        words = {"idle": "", "loading": "loading the model", "failed": "failed"}.get(
            status.phase, status.phase
        )
        if self._waiting:
            words = "reading along"
        length = self.written.length if self.written is not None else 0
        if length:
            speed = formatting.count(status.characters_per_second)
            words = f"{words}, {formatting.plural(length, 'character')}"
            words += f", {speed} characters/s" if status.characters_per_second else ""
        self.query_one("#output", Panel).set_subtitle(words)
        self._show_hint(status)
        cost = ""
        if status.lent_seconds is not None and self.chosen and self.chosen.name == LIVE:
            cost = cost_of_lending(status.lent_seconds, self.workbench.training)
        self.query_one(ModelPanel).show(self.chosen, status.model, self.written, cost)
        shown = (status.phase, bool(self._waiting), bool(length), status.model is None)
        if shown != self._shown:
            self._shown = shown
            self._show_unknown()

    def _show_hint(self, status: GenerationStatus) -> None:
        hint = self.query_one("#hint", Text)
        if status.phase == "failed":
            hint.show(Content.styled(safe(status.error), "$error"), layout=True)
        elif self.chosen is None:
            hint.show(NO_MODEL, layout=True)
        else:
            hint.show(HINT if self.query_one(StreamView).empty else "", layout=True)
        hint.display = bool(hint.plain)

    def show_settings(self) -> None:
        """Show the values of the form."""
        draft = self.draft
        form = self.query_one(SettingsForm)
        form.show(draft.texts, draft.edited, draft.errors)
        form.set_title("sampling, seed locked" if self.seed_locked else "sampling")

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Tell something in passing."""
        severity = "error" if wrong else "information"
        self.notify(safe(text), severity=severity, markup=False)  # type: ignore[arg-type]

    def _unknown(self) -> list[str]:
        tokenizer = self.workbench.generation.status.tokenizer
        if tokenizer is None or not self.is_mounted:
            return []
        return tokenizer.unknown(self.query_one(PromptArea).text)

    def _show_unknown(self) -> None:
        tokenizer = self.workbench.generation.status.tokenizer
        prompt = self.query_one(PromptArea)
        prompt.mark(tokenizer.unknown if tokenizer is not None else None)
        unknown = self._unknown()
        line = self.query_one("#unknown", Text)
        line.display = bool(unknown)
        if unknown and tokenizer is not None:
            alike = replacements(tokenizer, prompt.text) if self.policy == "replace" else {}
            line.show(unknown_line(unknown, alike, self.policy), layout=True)
        self.refresh_bindings()
