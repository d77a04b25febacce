"""Choose a corpus: from those of recent runs, the built-in ones, or by typing a path."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input, OptionList
from textual.widgets.option_list import Option

from megatron_model.errors import RequestError
from megatron_model.text import safe
from megatron_tui import formatting
from megatron_tui.corpus_facts import CorpusFacts, EncodingProblem
from megatron_tui.screens.modal import Options
from megatron_tui.widgets.panel import Panel, Text


class PathSuggester(Suggester):
    """Completes the path that is being typed with the first name that fits."""

    def __init__(self) -> None:
        super().__init__(use_cache=False, case_sensitive=True)

    async def get_suggestion(self, value: str) -> str | None:
        """Return the whole path, or None."""
        return await asyncio.to_thread(complete_path, value)


def complete_path(value: str) -> str | None:
    """Return `value` completed by the first entry of its folder that fits; folders get a slash."""
    folder, slash, beginning = value.rpartition("/")
    if not value:
        return None
    try:
        with os.scandir(Path((folder + slash) or ".").expanduser()) as entries:
            fitting = sorted(
                (entry.name, entry.is_dir())
                for entry in entries
                if entry.name.startswith(beginning)
                and entry.name.startswith(".") <= beginning.startswith(".")
            )
    except OSError:
        return None
    if not fitting:
        return None
    name, is_folder = fitting[0]
    return f"{folder}{slash}{name}{'/' if is_folder else ''}"


class PathInput(Input):
    """A path that tab completes, as in a shell; without a completion tab goes on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(
            "tab", "complete", "Complete", tooltip="Complete the path", id="path.complete",
            priority=True,
        ),
        Binding("down", "leave", "List", show=False, tooltip="Go to the list", id="path.list"),
        Binding("escape", "clear", "Clear", show=False, tooltip="Clear the path", id="path.clear"),
    ]  # fmt: skip

    def __init__(self, value: str = "", *, id: str, placeholder: str = "") -> None:
        super().__init__(
            value, placeholder=placeholder, compact=True, suggester=PathSuggester(), id=id
        )
        self.cursor_blink = False

    def action_complete(self) -> None:
        """Take what the path is completed with, asked for anew: keys may be ahead of it."""
        found = complete_path(self.value)
        if found is None or found == self.value:
            self.screen.focus_next()
        else:
            self.value = found
            self.cursor_position = len(found)

    def action_leave(self) -> None:
        """Go to what comes next."""
        self.screen.focus_next()

    def action_clear(self) -> None:
        """Forget what was typed, and go on."""
        self.value = ""
        self.screen.focus_next()


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
        .facts.-error { color: $error; }
    }
    """

    @dataclass
    class Chosen(Message):
        """A corpus was chosen."""

        spec: str

    def __init__(self) -> None:
        super().__init__("corpus", id="corpus")
        self._specs: list[str] = []

    def compose(self) -> ComposeResult:
        """Path, list, facts."""
        yield PathInput(placeholder="path of a text or folder", id="path")
        yield Options(id="corpora", markup=False)
        yield Text(classes="facts")

    @property
    def chosen(self) -> str | None:
        """The corpus under the cursor."""
        index = self.query_one(OptionList).highlighted
        return self._specs[index] if index is not None and index < len(self._specs) else None

    def add(self, specs: Iterable[str], *, choose: bool = False) -> None:
        """Put corpora that are not listed yet on top; the first one may become the choice."""
        asked = list(specs)
        fresh = [spec for spec in asked if spec not in self._specs]
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
        """Say what is known of the chosen corpus."""
        line = self.query_one(".facts", Text)
        line.set_class(bool(facts.error), "-error")
        line.show(facts_line(facts))

    @on(OptionList.OptionHighlighted)
    def _highlight(self, event: OptionList.OptionHighlighted) -> None:
        event.stop()
        # What is under the cursor now: the list may have been filled anew since it moved.
        if self.chosen is not None:
            self.post_message(self.Chosen(self.chosen))

    @on(Input.Submitted)
    def _typed(self, event: Input.Submitted) -> None:
        event.stop()
        self.take_path(event.value)

    def take_path(self, typed: str) -> None:
        """Choose the corpus at a path, or say what is wrong with it."""
        from megatron_model.corpus import find_corpus

        spec = typed.strip()
        if spec.startswith("~"):
            spec = str(Path(spec).expanduser())
        try:
            find_corpus(spec)
        except RequestError as error:
            self.show_facts(CorpusFacts(spec, error=str(error)))
            return
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
        words.append(formatting.plural(facts.files, "file"))
    if facts.complete and facts.vocabulary is not None:
        words.append(f"{formatting.exact(facts.characters)} characters")
        words.append(f"{formatting.exact(facts.lines)} lines")
        words.append(f"vocabulary {len(facts.vocabulary)}")
        words.append("UTF-8" if facts.encoding == "auto" else safe(facts.encoding, one_line=True))
    elif facts.progress is not None:
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
    parent = str(path.parent)
    home = str(Path.home())
    return "~" + parent.removeprefix(home) if parent.startswith(home) else parent
