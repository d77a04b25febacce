"""The Generation screen: a model, a prompt, how to draw characters, and the text as it comes.

The screen composes, routes keys and messages, and shows; what it decides with are plain objects
that it owns: the prompt reader, the model selection, the sampling draft, the writing session.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, NamedTuple

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.events import ScreenResume
from textual.reactive import var
from textual.widgets import TextArea

from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural, safe
from megatron_tui.generation.model_panel import READING, ModelPanel, vocabulary_line
from megatron_tui.generation.model_selection import ModelSelection
from megatron_tui.generation.prompt import PromptReader
from megatron_tui.generation.prompt_area import PromptArea
from megatron_tui.generation.prompt_history import PromptHistory
from megatron_tui.generation.sampling_draft import FIELDS, PRESETS, SamplingDraft
from megatron_tui.generation.writing_session import WritingSession
from megatron_tui.generation.written_text import WrittenText
from megatron_tui.services.feed import Phase
from megatron_tui.services.generation import GenerationStatus
from megatron_tui.services.run_handle import RunHandle
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.terminal.editor import edit
from megatron_tui.ui.choice import Choice
from megatron_tui.ui.draft import value_text
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.pick import AskPath, Entry, Pick
from megatron_tui.ui.settings_form import SettingsForm
from megatron_tui.ui.settings_list import SettingsList
from megatron_tui.ui.stream_view import StreamView

if TYPE_CHECKING:
    from megatron_tui.generation.samples import Batch

POLL_SECONDS = 0.15
"""Between looks at what was written: a full panel that scrolls is painted anew each time."""

FIRST_SECONDS = 0.01
"""How soon the first character is looked for."""
FIRST_LOOKS = 60
SURELY_COPIED = 55_000
"""Bytes that terminals take from an OSC 52 sequence; xterm and tmux cut what is longer."""
HINT = (
    "Type how the text begins and press enter. An empty prompt begins anywhere.\n"
    "esc leaves the prompt; then r writes again, g goes on, H shows where the model was unsure."
)
NO_MODEL = "No run has a checkpoint yet. Press F2 to set one up; it can write after its first."


class SamplingForm(SettingsForm):
    """The settings of sampling."""

    EXPLANATION: ClassVar[str] = (
        "How each character is drawn from the model's probabilities. Left and right step the "
        "value, enter or a digit types one. Temperature 0 always takes the likeliest; the same "
        "seed writes the same text. Z locks the seed, p lists ways of sampling that go together."
    )


class OutputPanel(Panel):
    """Where the text appears."""

    EXPLANATION: ClassVar[str] = (
        "The prompt in colour, and after it what the model wrote. It is drawn character by "
        "character; esc stops it within one, g goes on as if it had never been stopped."
    )


class PromptPanel(Panel):
    """Where the prompt is typed."""

    EXPLANATION: ClassVar[str] = (
        "How the text begins. Characters that the model has never seen are marked; ctrl+d says "
        "whether they block, are dropped, or are replaced by what is most alike. Up and down "
        "recall earlier prompts, ctrl+r searches them, ctrl+g opens your own editor."
    )


class Progress(NamedTuple):
    """What decides which keys are offered and which characters of the prompt are marked."""

    phase: Phase = "idle"
    unread: bool = False
    written: bool = False
    loaded: bool = False


def _key(
    name: str, keys: str, action: str, word: str, tip: str, *, show: bool = True,
    priority: bool = False,
) -> Binding:  # fmt: skip
    return Binding(
        keys, action, word, show=show, priority=priority, tooltip=tip, id=f"generation.{name}"
    )


class GenerationScreen(WorkbenchScreen):
    """A letter acts wherever nothing is typed; the text is written by the generation service."""

    MODE = "generation"
    AUTO_FOCUS = "#prompt"
    CSS_PATH = "generation.tcss"
    BINDINGS: ClassVar[list[BindingType]] = [
        # Priority while a text is being written: it must stop wherever the focus is.
        _key("stop", "escape,ctrl+c", "stop", "Stop", "Stop writing", priority=True),
        _key("unknown", "ctrl+d", "unknown", "Drop unknown", "What to do with characters that the "
             "model never saw: block, drop or replace", priority=True),
        _key("leave", "escape", "leave", "Keys", "Leave the prompt for the text, where letters "
             "act"),
        _key("prompt", "i", "prompt", "Prompt", "Type a prompt"),
        _key("again", "r", "again", "Again", "Write once more from the same prompt, with the next "
             "seed unless it is locked"),
        _key("continue", "g", "continue", "Go on", "Go on with the text"),
        _key("surprise", "H", "surprise", "Surprise", "See what surprised the model, character by "
             "character"),
        _key("microscope", "x", "microscope", "Microscope", "Look at each character as it is drawn "
             "and go on from another one"),
        _key("lines", "E", "lines", "Each line", "Go on with each line of the prompt by itself"),
        _key("fill", "f", "fill", "Fill in", "Write what stands between the prompt and another "
             "text"),
        _key("flipbook", "F", "flipbook", "Flipbook", "The prompt through all checkpoints of the "
             "run"),
        _key("attention", "A", "attention", "Attention", "See where the model looks"),
        _key("duel", "V", "duel", "Duel", "Let two models write side by side"),
        _key("several", "B", "several", "Several", "Write several texts at once"),
        _key("ladder", "I", "ladder", "Ladder", "The same prompt at rising temperatures"),
        _key("model", "W", "model", "Weights", "Choose among all checkpoints"),
        _key("copy", "y", "copy", "Copy", "Copy the text"),
        _key("save", "w", "save", "Save", "Save the text with all it takes to write it again"),
        _key("presets", "p", "presets", "Presets", "Choose a way of sampling"),
        _key("search", "ctrl+r", "search", "History", "Search earlier prompts"),
        _key("editor", "ctrl+g", "editor", "Editor", "Edit the prompt in your own editor"),
        _key("pace", "full_stop", "pace", "Pace",
             "Show the text at full speed, or at reading speed", show=False),
        _key("cooler", "t", "nudge('temperature', -1)", "Temperature", "Lower the temperature",
             show=False),
        _key("hotter", "T", "nudge('temperature', 1)", "Temperature", "Raise the temperature",
             show=False),
        _key("fewer", "k", "nudge('top_k', -1)", "Top k", "Draw from fewer of the likeliest",
             show=False),
        _key("more", "K", "nudge('top_k', 1)", "Top k", "Draw from more of the likeliest",
             show=False),
        _key("narrower", "o", "nudge('top_p', -1)", "Top p", "Draw from a smaller share",
             show=False),
        _key("wider", "O", "nudge('top_p', 1)", "Top p", "Draw from a larger share", show=False),
        _key("greedy", "0", "greedy", "Greedy", "Always take the likeliest, or draw again",
             show=False),
        _key("seed", "z,ctrl+n", "new_seed", "New seed", "Another seed, another text", show=False),
        _key("lock", "Z", "lock", "Lock seed", "Keep the seed from text to text, or let it go on",
             show=False),
    ]  # fmt: skip

    progress: var[Progress] = var(Progress(), init=False)

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.draft = SamplingDraft(workbench.preferences)
        self.history = PromptHistory(workbench.preferences)
        self.reader = PromptReader(
            workbench.preferences, lambda: workbench.generation.status.tokenizer
        )
        self.models = ModelSelection(workbench)
        self.session = WritingSession(workbench.generation)
        self._offered_for: tuple[int | None, bool] | None = None
        """The newest checkpoint of the run on show and whether it trains, when runs were listed."""
        self._looks = 0
        """How often the first character was looked for."""

    def compose_body(self) -> ComposeResult:
        """The text over the prompt; the model and the sampling beside them."""
        with Horizontal(id="body"):
            with Vertical(id="writing"):
                with OutputPanel("text", id="output"):
                    yield Label(HINT, id="hint")
                    yield StreamView()
                with PromptPanel("prompt", id="prompt-panel"):
                    yield PromptArea(id="prompt")
                    yield Label(id="unknown")
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

    def show_run(self, run: RunHandle | None) -> None:
        """A new checkpoint of the chosen run changes what best and latest mean."""
        trains = self.workbench.training.training is not None
        present = (run.state.last_checkpoint_step if run is not None else None, trains)
        if present != self._offered_for and not self.busy:
            self._offered_for = present
            self._list_runs()

    @property
    def busy(self) -> bool:
        """Whether a text is being written, or shown more slowly than it was."""
        return self.session.busy

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if not self.is_mounted:
            return True
        typing = isinstance(self.focused, PromptArea)
        written = self.session.text is not None and bool(self.session.text.text)
        chosen = self.models.chosen is not None
        offered = {
            "stop": self.busy,
            "leave": typing and not self.busy,
            "prompt": not typing,
            "again": chosen,
            "continue": written and not self.busy,
            "unknown": bool(self.reader.unknown(self._typed)),
            "copy": written,
            "save": written,
            "attention": written,
            "surprise": chosen,
            "microscope": chosen,
            "lines": chosen and bool(self._typed),
            "fill": chosen,
            "flipbook": chosen,
            "duel": chosen,
            "several": chosen,
            "ladder": chosen,
            "search": bool(self.history.prompts),
        }
        return offered.get(action, True)

    # What is chosen

    @on(Choice.Changed, "#run")
    def _run_chosen(self, message: Choice.Changed) -> None:
        self.models.choose_run(message.value)
        self._update_models()

    @on(Choice.Changed, "#weights")
    def _weights_chosen(self, message: Choice.Changed) -> None:
        self.choose_weights(message.value)

    @on(Choice.Changed, "#pace")
    def _pace_chosen(self) -> None:
        self.session.at_reading_pace = self.query_one("#pace", Choice).value == READING
        self._poll()

    def choose_weights(self, name: str) -> None:
        """Write with the weights of that name from now on."""
        self.models.weights = name
        self._update_models()

    def _list_runs(self) -> None:
        self.models.list_runs()
        # A new best checkpoint is no reason to end the text that is being written.
        text = self.session.text
        writing = self.busy and text is not None and text.run == self.models.run
        self._update_models(load=not writing)

    def _update_models(self, *, load: bool = True) -> None:
        status = self.workbench.generation.status
        if self.models.is_damaged:
            notify(self, status.error, error=True)  # the next best are chosen in their place
        self.models.update(load=load)
        self.query_one(ModelPanel).offer(self.models)
        self._show_status(self.workbench.generation.status)
        self._timer.resume()
        self.refresh_bindings()

    @on(SettingsList.Edited)
    def _setting_edited(self, message: SettingsList.Edited) -> None:
        self.draft.put(message.key, message.text)
        self.show_settings()

    # The prompt

    @property
    def _typed(self) -> str:
        return self.query_one(PromptArea).text

    @on(PromptArea.Submitted)
    def _submitted(self, message: PromptArea.Submitted) -> None:
        self.generate(message.text)

    @on(PromptArea.Recalled)
    def _recalled(self, message: PromptArea.Recalled) -> None:
        earlier = message.direction < 0
        found = self.history.older(self._typed) if earlier else self.history.newer()
        if found is not None:
            self.query_one(PromptArea).put(found)

    @on(TextArea.Changed, "#prompt")
    def _show_unknown(self) -> None:
        prompt, line = self.query_one(PromptArea), self.query_one("#unknown", Label)
        prompt.mark(self.reader.find_unknown)
        about = self.reader.describe_unknown(prompt.text)
        line.display = bool(about.plain)
        if about.plain:
            line.show(about, layout=True)
        self.refresh_bindings()

    # The text as it comes

    def generate(self, prompt: str) -> None:
        """Write a text after `prompt`, unless something about it is wrong."""
        if self.draft.errors:
            self.query_one(SettingsForm).focus_error()
            return
        if self.models.chosen is None:
            return
        readable = self.reader.readable(prompt)
        if self.reader.unknown(readable):
            self._show_unknown()
            self.app.bell()
            return
        self.history.add(prompt)
        self.query_one(StreamView).restart(readable)
        self.session.start(self.models.chosen, readable, self.draft.sampling)
        self._watch()

    def _watch(self) -> None:
        """Show what comes from now on; its first character at once."""
        self._looks = 0
        self._timer.resume()
        self._poll()
        self.set_timer(FIRST_SECONDS, self._look_for_first)

    def _look_for_first(self) -> None:
        status, self._looks = self.workbench.generation.status, self._looks + 1
        if not status.characters and self.busy and self._looks < FIRST_LOOKS:
            self.set_timer(FIRST_SECONDS, self._look_for_first)
        else:
            self._poll()

    def catch_up(self) -> None:
        """Show what was written since the last look."""
        self._poll()

    def _poll(self) -> None:
        status = self.workbench.generation.status  # before the text: all before its end is drained
        piece = self.session.advance(POLL_SECONDS)
        if piece:
            self.query_one(StreamView).append(piece)
        self._show_status(status)
        if not self.busy:
            self._timer.pause()
        if status.phase == "failed" and self.models.is_damaged:
            self._update_models()

    def _show_status(self, status: GenerationStatus) -> None:
        text = self.session.text
        output = self.query_one("#output", Panel)
        output.set_title(text.provenance if text is not None else "text")
        output.set_subtitle(self.session.describe(status))
        self._show_hint(status)
        self.query_one(ModelPanel).show(self.models, status.model, text)
        self.progress = Progress(
            status.phase,
            unread=self.session.has_unread,
            written=text is not None and bool(text.length),
            loaded=status.model is not None,
        )

    def watch_progress(self) -> None:
        """Another model knows other characters, and other keys have something to act on."""
        self._show_unknown()

    def _show_hint(self, status: GenerationStatus) -> None:
        hint = self.query_one("#hint", Label)
        if status.phase == "failed":
            hint.show(Content.styled(safe(status.error), "$error"), layout=True)
        elif self.models.chosen is None:
            hint.show(NO_MODEL, layout=True)
        else:
            hint.show(HINT if self.query_one(StreamView).empty else "", layout=True)
        hint.display = bool(hint.plain)

    def show_settings(self) -> None:
        """Show the values of the form."""
        draft = self.draft
        form = self.query_one(SettingsForm)
        form.show(draft.texts, draft.edited, draft.errors)
        form.set_title("sampling, seed locked" if draft.seed_locked else "sampling")

    # Keys: writing

    def action_stop(self) -> None:
        """Stop within one character."""
        self.session.stop()

    def action_again(self) -> None:
        """Write from the same prompt, with the next seed unless it is locked."""
        if self.session.text is None or self.draft.seed_locked:
            self._rewrite()
        else:
            self.action_new_seed()

    def action_new_seed(self) -> None:
        """Count the seed up and write again."""
        self.draft.next_seed()
        self.show_settings()
        self._rewrite()

    def _rewrite(self) -> None:
        text = self.session.text
        self.generate(text.prompt if text is not None else self._typed)

    def action_continue(self) -> None:
        """Go on as if the text had never stopped; changed settings go on from all of it."""
        self.catch_up()
        text, chosen = self.session.text, self.models.chosen
        if text is None or chosen is None:
            return
        if self.session.extend(chosen, self.draft.sampling):
            self._watch()
        else:
            self.generate(text.text)

    def action_lock(self) -> None:
        """Keep the seed from text to text, or let it go on."""
        self.draft.seed_locked = not self.draft.seed_locked
        self.show_settings()

    # Keys: settings

    def action_nudge(self, key: str, direction: int) -> None:
        """Choose the next value of a setting."""
        self.draft.nudge(key, direction)
        self.show_settings()

    def action_greedy(self) -> None:
        """Always take the likeliest, or draw as before."""
        self.draft.toggle_greedy()
        self.show_settings()

    def action_presets(self) -> None:
        """Choose a way of sampling."""
        entries = [
            Entry(name, name, ", ".join(f"{k.replace('_', ' ')} {v}" for k, v in values.items())
                  or "temperature 0.8", words)
            for name, (words, values) in PRESETS.items()
        ]  # fmt: skip

        def apply(name: str | None) -> None:
            if name is not None:
                self.draft.take(PRESETS[name][1])
                self.show_settings()

        self.app.push_screen(Pick("Which way of sampling?", entries, self.draft.preset), apply)

    def action_pace(self) -> None:
        """Show the text at full speed, or at reading speed."""
        self.query_one("#pace", Choice).action_step(1)
        self._pace_chosen()  # before any other key: its message may still be under way
        speed = "reading" if self.session.at_reading_pace else "full"
        notify(self, f"The text is shown at {speed} speed.")

    def action_model(self) -> None:
        """Choose among all weights of the run."""
        model = self.workbench.generation.status.model
        knows = (
            f"The loaded one knows {vocabulary_line(model.tokenizer.vocabulary)}" if model else ""
        )
        more = "\n".join(filter(None, (knows, self.models.why_not_live)))
        entries = [Entry(one.name, one.name, one.about, more) for one in self.models.choices]

        def apply(name: str | None) -> None:
            if name is not None:
                self.choose_weights(name)

        chosen = self.models.chosen
        present = chosen.name if chosen is not None else ""
        self.app.push_screen(Pick("Write with which weights?", entries, present), apply)

    # Keys: the prompt

    def action_leave(self) -> None:
        """Go from the prompt to the text, where letters act."""
        self.query_one(StreamView).focus()

    def action_prompt(self) -> None:
        """Type a prompt."""
        self.query_one(PromptArea).focus()

    def action_unknown(self) -> None:
        """Do something else with characters that the model has never seen."""
        self.reader.choose_next_policy()
        self._show_unknown()

    def action_search(self) -> None:
        """Search earlier prompts."""
        from megatron_tui.generation.dialogs import HistoryScreen

        def apply(prompt: str | None) -> None:
            if prompt is not None:
                self.query_one(PromptArea).put(prompt)
                self.query_one(PromptArea).focus()

        self.app.push_screen(HistoryScreen(self.history), apply)

    def action_editor(self) -> None:
        """Edit the prompt in the person's own editor."""
        prompt = self.query_one(PromptArea)
        try:
            prompt.put(edit(self.app, prompt.text))
        except RequestError as error:
            notify(self, str(error), error=True)
        prompt.focus()

    # Keys: the text

    def action_copy(self) -> None:
        """Put the text on the clipboard of the terminal."""
        self.catch_up()
        if self.session.text is None:
            return
        text = self.session.text.text
        self.app.copy_to_clipboard(text)
        size = len(text.encode("utf-8", "replace"))
        doubt = "; many terminals take less, w saves all of it" if size > SURELY_COPIED else ""
        notify(self, f"Copied {plural(len(text), 'character')}{doubt}.")

    def action_save(self) -> None:
        """Write the text into a file, with all it takes to write it again on top."""
        self.catch_up()
        text = self.session.text
        if text is None:
            return

        def saved(path: str | None) -> None:
            if path is not None:
                notify(self, f"Saved in {path}")

        self.app.push_screen(AskPath("Save the text as", text.file_name, text.save_as), saved)

    # Keys: other views

    def action_surprise(self) -> None:
        """See what surprised the model."""
        from megatron_tui.generation.surprise import SurpriseScreen

        self.catch_up()
        chosen, text = self.models.chosen, self.session.text
        if chosen is not None:
            written = text.text if text is not None else ""
            self.app.push_screen(SurpriseScreen(self.workbench, chosen, written))

    def action_attention(self) -> None:
        """See where the model looks."""
        from megatron_tui.generation.attention import AttentionScreen

        self.catch_up()
        chosen, text = self.models.chosen, self.session.text
        if chosen is not None and text is not None:
            self.app.push_screen(AttentionScreen(self.workbench, chosen, text.text))

    def action_microscope(self) -> None:
        """Watch the text being drawn: the one there is, or one that begins with the prompt."""
        from megatron_tui.generation.microscope import MicroscopeScreen

        chosen = self.models.chosen
        if chosen is None:
            return
        under_way = self.workbench.generation.busy
        self.catch_up()
        text = self.session.text
        if text is None or not text.text:
            prompt, under_way = self._prompt_for_others(), True
            text = WrittenText(
                chosen.weights, chosen.run, chosen.words, self.draft.sampling, prompt
            )
        self.app.push_screen(
            MicroscopeScreen(self.workbench, text, self.take_text, go_on=under_way)
        )

    def action_lines(self) -> None:
        """Go on with each line of the prompt by itself."""
        from megatron_tui.generation.lines import LinesScreen

        chosen = self.models.chosen
        if chosen is not None:
            prompt = self._prompt_for_others()
            self.app.push_screen(LinesScreen(self.workbench, chosen, prompt, self.draft.sampling))

    def action_flipbook(self) -> None:
        """Write the prompt with every checkpoint of the run."""
        from megatron_tui.generation.flipbook import FlipbookScreen

        chosen, prompt = self.models.chosen, self._prompt_for_others()
        if chosen is not None:
            self.app.push_screen(
                FlipbookScreen(self.workbench, chosen, prompt, self.draft.sampling)
            )

    def action_fill(self) -> None:
        """Ask what comes after the gap, and look for what may stand in it."""
        from megatron_tui.generation.dialogs import AskText
        from megatron_tui.generation.filling import FillingScreen

        chosen, before = self.models.chosen, self._prompt_for_others()

        def asked(after: str | None) -> None:
            if chosen is not None and after:
                self.app.push_screen(
                    FillingScreen(
                        self.workbench, chosen, before, self.reader.readable(after),
                        self.draft.sampling, self.query_one(PromptArea).put,
                    )
                )  # fmt: skip

        self.app.push_screen(
            AskText("What comes after the gap? The prompt stands before it."), asked
        )

    def action_duel(self) -> None:
        """Let two models write side by side."""
        from megatron_tui.generation.duel import choose_opponent

        if self.models.chosen is not None:
            prompt, sampling = self._prompt_for_others(), self.draft.sampling
            choose_opponent(self, self.models.chosen, prompt, sampling)

    def action_several(self) -> None:
        """Write several texts at once."""
        from megatron_tui.generation.samples import seeds

        self._write_batch(seeds(self.draft.sampling))

    def action_ladder(self) -> None:
        """Write the same prompt at rising temperatures."""
        from megatron_tui.generation.samples import ladder

        self._write_batch(ladder(self.draft.sampling))

    def _write_batch(self, batch: Batch) -> None:
        from megatron_tui.generation.samples import SamplesScreen

        chosen = self.models.chosen
        if chosen is not None:
            prompt = self._prompt_for_others()
            self.app.push_screen(
                SamplesScreen(self.workbench, chosen, prompt, batch, self.take_text)
            )

    def _prompt_for_others(self) -> str:
        """Return the prompt for a view that writes: the one in the box, else that of the text."""
        text = self.session.text
        if self._typed or text is None:
            return self.reader.readable(self._typed)
        return text.prompt

    def take_text(self, text: WrittenText) -> None:
        """Go on with a text that was written in another view."""
        self.catch_up()  # what is under way belongs to the text before
        self.session.replace(text)
        view = self.query_one(StreamView)
        view.restart(text.prompt)
        view.append(text.written)
        for key in ("seed", "temperature"):
            self.draft.put(key, value_text(getattr(text.sampling, key)))
        self.show_settings()
        view.focus()
