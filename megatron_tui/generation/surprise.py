"""The surprise view: every character of a text tinted by how much it surprised the model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, Literal, TypeAlias

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.events import Paste

from megatron_model.util.text import plural
from megatron_tui.generation.characters import bar, bits, character_name
from megatron_tui.generation.insight_panels import FactsPanel, ProblemLabel
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.generation.validation_place import ValidationPlace, read_stretch
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.services.workbench import Workbench
from megatron_tui.ui import formatting
from megatron_tui.ui.heat_view import SURPRISE_BITS, SURPRISE_TINTS, HeatView, surprise_tint
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Label, Panel

if TYPE_CHECKING:
    from megatron_model.analysis.insight import CharacterScore
    from megatron_model.analysis.validation_text import Stretch
    from megatron_model.run.checkpoint import LoadedModel

    Item: TypeAlias = int | Stretch | CharacterScore

LONGEST = 20_000
"""Characters that are read, of a longer text the last ones."""

Source: TypeAlias = Literal["written", "validation", "pasted"]


class TextPanel(Panel):
    """The tinted text."""

    EXPLANATION: ClassVar[str] = (
        "Each character is tinted by how much it surprised the model that read all before it: "
        "quiet where it was sure, bright where it was not. One bit is the surprise of a coin toss; "
        "bits per character over a text are what training brings down."
    )


class CursorPanel(FactsPanel):
    """What is known of the character under the cursor."""

    EXPLANATION: ClassVar[str] = (
        "What the model expected at the cursor, the likeliest first, and the bits per character "
        "of the line and of the whole text."
    )


class SurpriseScreen(JobScreen["Item"]):
    """A text, its tints, and the candidates of the character under the cursor."""

    CSS_PATH = "insight.tcss"
    AUTO_FOCUS = "HeatView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g", "written", "Written", tooltip="The text the model wrote",
                id="surprise.written"),
        Binding("v", "validation(0)", "Validation", tooltip="A stretch of the validation text",
                id="surprise.validation"),
        Binding("n", "validation(1)", "Stretch", tooltip="The next stretch of the validation text",
                id="surprise.next"),
        Binding("N", "validation(-1)", "Stretch", tooltip="The stretch before it",
                id="surprise.previous"),
        Binding("i", "paste", "Paste", tooltip="Paste or type a text", id="surprise.paste"),
        Binding("asterisk", "next_peak(1)", "Peak",
                tooltip="The next character that surprised much",
                id="surprise.peak"),
        Binding("number_sign", "next_peak(-1)", "Peak", tooltip="The one before",
                id="surprise.peak_back"),
    ]  # fmt: skip

    def __init__(self, workbench: Workbench, chosen: ModelChoice, written: str) -> None:
        super().__init__(workbench)
        self._chosen = chosen
        self._written = written
        self.source: Source = "written" if written else "validation"
        self.scores: list[CharacterScore] = []
        self._place = ValidationPlace()
        self._bits = 0.0
        """Of the whole text."""
        self._dropped = 0
        """Characters that are left out because the model does not know them."""

    def compose_body(self) -> ComposeResult:
        """The text beside (or over) what is under the cursor."""
        with Horizontal(id="insight"):
            with TextPanel("surprise", id="reading"):
                yield ProblemLabel()
                yield HeatView()
            yield CursorPanel("under the cursor")
        yield Label(legend(), id="legend")

    def begin(self) -> None:
        """Read the text that was written, or else some of the validation text."""
        self._read()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if action == "written":
            return bool(self._written)
        if action == "validation" and parameters != (0,):
            return self.source == "validation"
        return True

    def action_written(self) -> None:
        """Read what the model wrote."""
        self.source = "written"
        self._read(self._written)

    def action_validation(self, change: int) -> None:
        """Read some of the validation text."""
        self.source = "validation"
        self._place.move(change)
        self._read()

    def action_paste(self) -> None:
        """Ask for a text."""
        from megatron_tui.generation.dialogs import AskText

        self.app.push_screen(AskText("Which text is the model to read?"), self._pasted)

    def on_paste(self, event: Paste) -> None:
        """Read what was pasted."""
        self._pasted(event.text)

    def _pasted(self, text: str | None) -> None:
        if text:
            self.source = "pasted"
            self._read(text.replace("\r\n", "\n").replace("\r", "\n"))

    def _read(self, text: str | None = None) -> None:
        self.scores, self._bits, self._dropped = [], 0.0, 0
        self.query_one(HeatView).restart()
        if self.source == "validation":
            start = self._place.start
            self.study([self._chosen.weights], lambda model: _of_validation(model, start))
        else:
            wanted = self._written if text is None else text
            self.study([self._chosen.weights], lambda model: _of_text(model, wanted))
        self.refresh_bindings()

    def take(self, items: list[Item]) -> None:
        """Tint what was read."""
        from megatron_model.analysis.validation_text import Stretch

        scores = []
        for item in items:
            if isinstance(item, int):
                self._dropped = item
            elif isinstance(item, Stretch):
                self._place.found(item)
            else:
                scores.append(item)
        self.scores += scores
        surprises = [bits(score.log_probability) for score in scores]
        self._bits += sum(surprises)
        text = "".join(score.character for score in scores)
        self.query_one(HeatView).append(text, [surprise_tint(each) for each in surprises])

    def show_state(self) -> None:
        """Title, totals, and what is wrong."""
        panel = self.query_one("#reading", Panel)
        panel.set_title(f"surprise of {self._chosen.title}")
        panel.set_subtitle(self._what())
        self.query_one(ProblemLabel).show_problem(self.problem)
        self._show_cursor()

    def _what(self) -> str:
        count = plural(len(self.scores), "character")
        what = {
            "written": "what it wrote",
            "pasted": "a pasted text",
            "validation": self._place.words,
        }[self.source]
        if self.source == "written" and len(self._written) > LONGEST:
            what += ", its end"
        if self._dropped:
            what += f", {self._dropped:,} unknown left out"
        return f"{what}, {count}{' …' if self.busy else ''}"

    @on(HeatView.Moved)
    def _show_cursor(self) -> None:
        index, facts = self.query_one(HeatView).cursor, self.query_one(FactsPanel)
        if index >= len(self.scores):
            facts.show("", "", "")
            return
        score = self.scores[index]
        character = Content.assemble(
            (character_name(score.character), "bold"),
            f"  {formatting.percent(math.exp(score.log_probability))}  ",
            (f"{bits(score.log_probability):.2f} bits", "bold $accent"),
        )
        whole = self._bits / len(self.scores)
        totals = Content.assemble(
            ("line   ", "$quiet"), f"{self._line_bits(index):.2f} bits/character\n",
            ("whole  ", "$quiet"), (f"{whole:.2f} bits/character", "bold"),
        )  # fmt: skip
        facts.show(character, candidate_lines(score), totals)

    def _line_bits(self, index: int) -> float:
        scores = self.scores
        first = last = index
        while first > 0 and scores[first - 1].character != "\n":
            first -= 1
        while last + 1 < len(scores) and scores[last].character != "\n":
            last += 1
        line = scores[first : last + 1]
        return sum(bits(score.log_probability) for score in line) / len(line)

    def action_next_peak(self, direction: int) -> None:
        """Go to the next character that surprised as much as the legend's last tints."""
        view = self.query_one(HeatView)
        places = range(
            view.cursor + direction, len(self.scores) if direction > 0 else -1, direction
        )
        for place in places:
            if surprise_tint(bits(self.scores[place].log_probability)) in SURPRISE_TINTS[-2:]:
                view.go_to(place)
                return
        notify(self, "No other character surprised it much.")


def _of_text(model: LoadedModel, text: str) -> Iterator[int | CharacterScore]:
    """Yield how many characters had to be left out, then the score of each other one."""
    from megatron_model.analysis.insight import surprise

    known = model.tokenizer.drop_unknown(text)
    yield len(text) - len(known)
    yield from surprise(model.model, model.tokenizer, known[-LONGEST:], model.block_size)


def _of_validation(model: LoadedModel, start: int) -> Iterator[Stretch | CharacterScore]:
    """Yield where the stretch is, then the score of each of its characters."""
    from megatron_model.analysis.insight import surprise

    stretch = read_stretch(model, start)
    yield stretch
    yield from surprise(model.model, model.tokenizer, stretch.text, model.block_size)


def candidate_lines(score: CharacterScore) -> Content:
    """Return the likeliest characters with their shares; the one that came is marked."""
    lines = []
    candidates = list(score.candidates)
    if all(character != score.character for character, _ in candidates):
        candidates.append((score.character, score.log_probability))
    for character, log_probability in candidates:
        share = math.exp(log_probability)
        came = character == score.character
        lines.append(
            Content.assemble(
                ("▸ " if came else "  ", "bold $accent"),
                (f"{character_name(character):<10}", "bold" if came else ""),
                f"{formatting.percent(share):>6} ",
                (bar(share, 12), "$accent" if came else "$primary"),
            )
        )
    return Content("\n").join(lines)


def legend() -> Content:
    """Return one cell of each tint with where it begins."""
    pieces: list[Content | tuple[str, str] | str] = [(" surprise in bits  ", "$quiet")]
    for border, following in zip((0.0, *SURPRISE_BITS), (*SURPRISE_BITS, None), strict=True):
        label = f"{border:g}–{following:g}" if following is not None else f"{border:g} and more"
        pieces.append((f" {label} ", LEGEND[len(pieces) - 1]))
    return Content.assemble(*pieces)


LEGEND = (
    "$quiet",
    "$foreground on $warning 12%",
    "bold $heat-ink on $warning 32%",
    "underline $heat-ink on $warning 60%",
    "bold underline $heat-ink on $error 60%",
    "bold underline $background on $error",
)
"""The tints of the widget, as the legend writes them."""
