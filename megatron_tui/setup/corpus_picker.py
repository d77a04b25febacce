"""Choose a corpus: from those of recent runs, the built-in ones, or by typing a path."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from megatron_model.util.errors import RequestError
from megatron_model.util.text import plural, safe
from megatron_model.util.user_folders import expanded
from megatron_tui.setup.corpus_facts import CorpusFacts, EncodingProblem
from megatron_tui.ui import formatting
from megatron_tui.ui.modal import Options
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.path_input import PathInput


class CorpusPicker(Panel):
    """A path to type, a list to choose from, and what is known of the choice."""

    EXPLANATION: ClassVar[str] = (
        "The text to learn from. Up and down choose one of those of recent runs and the built-in "
        "ones; a path can be typed above the list (tab completes it) or browsed for. Below stands "
        "what is known of the text; its X-ray tells more, and reads it in another encoding."
    )

    DEFAULT_CSS = """
    CorpusPicker {
        OptionList { height: 1fr; margin-top: 1; text-wrap: nowrap; text-overflow: ellipsis; }
        .facts { height: 2; color: $quiet; margin-top: 1; }
        /* Whole: what helps stands at the end of the sentence. */
        .facts.-error { color: $error; height: auto; min-height: 2; }
    }
    """

    @dataclass
    class Chosen(Message):
        """A corpus was chosen."""

        spec: str

    def __init__(self) -> None:
        super().__init__("corpus", id="corpus")
        self._specs: list[str] = []
        self._facts: CorpusFacts | None = None
        self._refusal: CorpusFacts | None = None
        """Of what was typed and cannot be read, until something else is typed or chosen."""

    def compose(self) -> ComposeResult:
        """Path, list, facts."""
        yield PathInput(placeholder="path of a text or folder", id="path")
        yield Options(id="corpora", markup=False)
        yield Label(classes="facts")

    @property
    def chosen(self) -> str | None:
        """The corpus under the cursor."""
        index = self.query_one(OptionList).highlighted
        return self._specs[index] if index is not None and index < len(self._specs) else None

    def add(self, specs: Iterable[str], *, choose: bool = False) -> None:
        """Put corpora that are not listed yet on top; the first one may become the choice."""
        asked = list(specs)
        fresh = [spec for spec in asked if spec not in self._specs]
        if not (fresh or choose):
            return
        chosen = asked[0] if choose and asked else self.chosen
        self._specs = fresh + self._specs
        options = self.query_one(OptionList)
        options.clear_options()
        options.add_options(Option(_title(spec)) for spec in self._specs)
        if chosen in self._specs:
            options.highlighted = self._specs.index(chosen)
        elif self._specs:
            options.highlighted = 0

    def show_facts(self, facts: CorpusFacts) -> None:
        """Say what is known of the chosen corpus, unless what was typed since is no corpus."""
        if self._facts is not None and self._facts.spec != facts.spec:
            self._refusal = None
        self._facts = facts
        self._show()

    def _refuse(self, refusal: CorpusFacts | None) -> None:
        self._refusal = refusal
        self._show()

    def _show(self) -> None:
        facts = self._refusal or self._facts
        if facts is None:
            return
        line = self.query_one(".facts", Label)
        line.set_class(bool(facts.error), "-error")
        self.screen.set_class(bool(facts.error), "-unread")
        line.show(facts_line(facts), layout=True)

    @on(OptionList.OptionHighlighted)
    def _highlight(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        # What is under the cursor now: the list may have been refilled since it moved.
        if self.chosen is not None:
            self.post_message(self.Chosen(self.chosen))

    @on(Input.Changed)
    def _typing(self, event: Input.Changed) -> None:
        event.stop()
        if self._refusal is not None and event.value.strip() != self._refusal.spec:
            self._refuse(None)

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        event.stop()
        self.take_path(event.value)

    def take_path(self, typed: str) -> None:
        """Choose the corpus at a path, or say what is wrong with it."""
        from megatron_model.data.corpus import find_corpus

        typed = typed.strip()
        spec = str(expanded(typed)) if typed.startswith("~") else typed
        try:
            find_corpus(spec)
        except RequestError as error:
            self._refuse(CorpusFacts(typed, error=str(error)))
            return
        self._refusal = None
        self.query_one(PathInput).value = ""
        self.add([spec], choose=True)
        self.query_one(OptionList).focus()


def facts_line(facts: CorpusFacts) -> Content:
    """Return what is known of a corpus in a few words."""
    if facts.problem is not None:
        return _problem_line(facts.problem)
    if facts.error:
        return Content("✗ " + safe(facts.error, one_line=True))
    words = [formatting.size(facts.size)] if facts.size is not None else []
    if facts.files > 1:
        words.append(plural(facts.files, "file"))
    if facts.complete and facts.vocabulary is not None:
        words.append(plural(facts.characters or 0, "character"))
        words.append(plural(facts.lines or 0, "line"))
        words.append(f"vocabulary {len(facts.vocabulary)}")
        words.append(safe(facts.encodings or facts.encoding, one_line=True))
    elif facts.progress is not None:
        if facts.estimate is not None:
            words.append(f"about {formatting.count(facts.estimate)} characters")
        words.append(f"reading {formatting.percent(facts.progress)}")
    return Content(", ".join(words))


def _problem_line(problem: EncodingProblem) -> Content:
    """Say in two lines what the full sentence says in three; the X-ray has the whole."""
    line = f"✗ not {problem.encoding}: line {problem.line:,}, byte {problem.offset:,}; "
    if not problem.guess:
        return Content.assemble(safe(line, one_line=True), " ", ("e", "bold $primary"), " chooses")
    line += f"looks like {problem.guess} ({formatting.percent(problem.confidence)}),"
    return Content.assemble(safe(line, one_line=True), " ", ("e", "bold $primary"), " chooses")


def _title(spec: str) -> Content:
    """Return a corpus as the list shows it: the end of a path says more than its beginning."""
    text = safe(spec, one_line=True)
    if text.startswith("builtin:"):
        return Content.assemble((text.removeprefix("builtin:"), ""), ("  built-in", "$quiet"))
    path = Path(text)
    folder = _folder(path)
    return Content.assemble(path.name, (f"  {folder}" if folder != "." else "", "$quiet"))


def _folder(path: Path) -> str:
    return formatting.homely(path.parent)
