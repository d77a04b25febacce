"""What the keys of the Generation screen do; the screen itself is in generation.py."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from megatron_model.errors import RequestError
from megatron_model.prompting import Policy
from megatron_tui.external_editor import edit
from megatron_tui.model_choice import ModelChoice, why_not_live
from megatron_tui.prompt_history import PromptHistory
from megatron_tui.sampling_draft import PRESETS, SamplingDraft
from megatron_tui.screens.pick import AskPath, Entry, Pick
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.setup_draft import value_text
from megatron_tui.unknown_line import POLICIES
from megatron_tui.widgets.choice import Choice
from megatron_tui.widgets.model_panel import PACES, vocabulary_line
from megatron_tui.widgets.prompt_area import PromptArea
from megatron_tui.widgets.stream_view import StreamView
from megatron_tui.written_text import WrittenText

if TYPE_CHECKING:
    from megatron_tui.screens.samples import Batch

SURELY_COPIED = 55_000
"""Bytes that terminals take from an OSC 52 sequence; xterm and tmux cut what is longer."""


class GenerationActions(WorkbenchScreen):
    """The actions, over what the screen keeps."""

    draft: SamplingDraft
    history: PromptHistory
    chosen: ModelChoice | None
    written: WrittenText | None
    seed_locked: bool

    @property
    def policy(self) -> Policy:
        """What happens to characters that the model never saw."""
        raise NotImplementedError

    @property
    def choices(self) -> list[ModelChoice]:
        """All weights of the chosen run."""
        raise NotImplementedError

    def generate(self, prompt: str) -> None:
        """Write a text after `prompt`."""
        raise NotImplementedError

    def begin_watching(self) -> None:
        """Show what comes from now on."""
        raise NotImplementedError

    def catch_up(self) -> None:
        """Take in what was written since the last look."""
        raise NotImplementedError

    def forget_unread(self) -> None:
        """Drop what was written but not shown."""
        raise NotImplementedError

    def take_weights(self, name: str) -> None:
        """Write with other weights of the chosen run."""
        raise NotImplementedError

    def show_settings(self) -> None:
        """Show the values of the form."""
        raise NotImplementedError

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Tell something in passing."""
        raise NotImplementedError

    # Writing

    def action_stop(self) -> None:
        """Stop within one character; what nobody has read yet is dropped."""
        generation = self.workbench.generation
        generation.cancel()
        if self.query_one("#pace", Choice).value == "reading":
            generation.drain()
            self.forget_unread()

    def action_again(self) -> None:
        """Write from the same prompt, with the next seed unless it is locked."""
        if self.written is not None and not self.seed_locked:
            self.draft.next_seed()
            self.show_settings()
        prompt = self.written.prompt if self.written else self.query_one(PromptArea).text
        self.generate(prompt)

    def action_continue(self) -> None:
        """Go on as if the text had never stopped; changed settings go on from all of it."""
        self.catch_up()
        written, chosen = self.written, self.chosen
        if written is None or chosen is None:
            return
        asked = self.draft.sampling
        same = msgspec.structs.replace(asked, max_new_tokens=0) == msgspec.structs.replace(
            written.sampling, max_new_tokens=0
        )
        ended = bool(asked.stop) and written.written.endswith(asked.stop)
        if not same or ended or written.weights != chosen.weights or not written.length:
            self.generate(written.text)
            return
        sampling = msgspec.structs.replace(
            asked, max_new_tokens=written.length + asked.max_new_tokens
        )
        self.workbench.generation.generate(
            written.weights, written.prompt, sampling, written.written
        )
        self.begin_watching()

    def action_new_seed(self) -> None:
        """Count the seed up and write again."""
        self.draft.next_seed()
        self.show_settings()
        self.generate(self.written.prompt if self.written else self.query_one(PromptArea).text)

    def action_lock(self) -> None:
        """Keep the seed from text to text, or let it go on."""
        self.seed_locked = not self.seed_locked
        self.show_settings()

    # Settings

    def action_nudge(self, key: str, direction: int) -> None:
        """Take the next value of a setting."""
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

        def take(name: str | None) -> None:
            if name is not None:
                self.draft.take(PRESETS[name][1])
                self.show_settings()

        self.app.push_screen(Pick("Sample in which way?", entries, "balanced"), take)

    def action_pace(self) -> None:
        """As fast as it goes, or as fast as one reads."""
        choice = self.query_one("#pace", Choice)
        choice.action_step(1)
        self.say("Shown as fast as it comes." if choice.value == PACES[0]
                 else "Shown as fast as one reads.")  # fmt: skip

    def action_model(self) -> None:
        """Choose among all weights of the run."""
        model = self.workbench.generation.status.model
        knows = (
            f"The loaded one knows {vocabulary_line(model.tokenizer.vocabulary)}" if model else ""
        )
        folder = self.choices[0].folder if self.choices else None
        why = why_not_live(folder, self.workbench.training) if folder is not None else ""
        more = "\n".join(filter(None, (knows, why)))
        entries = [Entry(one.name, one.name, one.about, more) for one in self.choices]

        def take(name: str | None) -> None:
            if name is not None:
                self.take_weights(name)

        present = self.chosen.name if self.chosen is not None else ""
        self.app.push_screen(Pick("Write with which weights?", entries, present), take)

    # The prompt

    def action_leave(self) -> None:
        """Go from the prompt to the text, where letters act."""
        self.query_one(StreamView).focus()

    def action_prompt(self) -> None:
        """Type a prompt."""
        self.query_one(PromptArea).focus()

    def action_unknown(self) -> None:
        """Take the next way with characters that the model never saw."""
        following = POLICIES[(POLICIES.index(self.policy) + 1) % len(POLICIES)]
        self.workbench.preferences.set("generation.unknown", following)
        self._show_unknown()

    def _show_unknown(self) -> None:
        raise NotImplementedError

    def action_search(self) -> None:
        """Search the prompts of the past."""
        from megatron_tui.screens.history import HistoryScreen

        def take(prompt: str | None) -> None:
            if prompt is not None:
                self.query_one(PromptArea).put(prompt)
                self.query_one(PromptArea).focus()

        self.app.push_screen(HistoryScreen(self.history), take)

    def action_editor(self) -> None:
        """Edit the prompt in the person's own editor."""
        prompt = self.query_one(PromptArea)
        try:
            prompt.put(edit(self.app, prompt.text))
        except RequestError as error:
            self.say(str(error), wrong=True)
        prompt.focus()

    # The text

    def action_copy(self) -> None:
        """Put the text on the clipboard of the terminal."""
        self.catch_up()
        if self.written is None:
            return
        text = self.written.text
        self.app.copy_to_clipboard(text)
        size = len(text.encode("utf-8", "replace"))
        doubt = "; many terminals take less, w saves all of it" if size > SURELY_COPIED else ""
        self.say(f"Copied {len(text):,} characters{doubt}.")

    def action_save(self) -> None:
        """Write the text into a file, with all it takes to write it again on top."""
        self.catch_up()
        written = self.written
        if written is None:
            return

        def save(typed: str, again: bool) -> str:
            path = Path(typed.strip()).expanduser()
            if not typed.strip() or path.is_dir():
                return "Give the name of a file."
            try:
                written.save(path, over=again)
            except RequestError as error:
                return str(error)
            return ""

        def saved(path: str | None) -> None:
            if path is not None:
                self.say(f"Saved in {path}")

        self.app.push_screen(AskPath("Save the text as", written.file_name, save), saved)

    # Other views

    def action_surprise(self) -> None:
        """See what surprised the model."""
        from megatron_tui.screens.surprise import SurpriseScreen

        self.catch_up()
        if self.chosen is not None:
            self.app.push_screen(SurpriseScreen(self.workbench, self.chosen, self.written))

    def action_attention(self) -> None:
        """See where the model looks."""
        from megatron_tui.screens.attention import AttentionScreen

        self.catch_up()
        if self.chosen is not None and self.written is not None:
            self.app.push_screen(AttentionScreen(self.workbench, self.chosen, self.written.text))

    def action_duel(self) -> None:
        """Let two models write side by side."""
        from megatron_tui.screens.duel import choose_opponent

        if self.chosen is not None:
            choose_opponent(self, self.chosen, self._prompt_for_others(), self.draft.sampling)

    def action_several(self) -> None:
        """Write several texts at once."""
        from megatron_tui.screens.samples import seeds

        self._compare(seeds(self.draft.sampling))

    def action_ladder(self) -> None:
        """Write the same prompt at rising temperatures."""
        from megatron_tui.screens.samples import ladder

        self._compare(ladder(self.draft.sampling))

    def _compare(self, batch: Batch) -> None:
        from megatron_tui.screens.samples import SamplesScreen

        if self.chosen is not None:
            prompt = self._prompt_for_others()
            self.app.push_screen(
                SamplesScreen(self.workbench, self.chosen, prompt, batch, self.take_text)
            )

    def take_text(self, written: WrittenText) -> None:
        """Go on with a text that was written in another view."""
        self.catch_up()  # what is under way belongs to the text before
        self.forget_unread()
        self.written = written
        view = self.query_one(StreamView)
        view.restart(written.prompt)
        view.append(written.written)
        for key in ("seed", "temperature"):
            self.draft.put(key, value_text(getattr(written.sampling, key)))
        self.show_settings()
        view.focus()

    def _prompt_for_others(self) -> str:
        """Return the prompt for a view that writes: the one in the box, else that of the text."""
        typed = self.query_one(PromptArea).text
        if typed or self.written is None:
            return self.readable(typed)
        return self.written.prompt

    def readable(self, prompt: str) -> str:
        """Return a prompt as the model can read it."""
        raise NotImplementedError
