"""The X-ray of a corpus: encoding, line ends, characters, and how predictable the text is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.content import Content

from megatron_model.config.fields import PRESENT_RULES
from megatron_model.util.text import plural, safe
from megatron_tui.setup.character_table import CharacterTable
from megatron_tui.setup.corpus_facts import CorpusFacts, EncodingProblem
from megatron_tui.setup.encoding_pick import encoding_pick
from megatron_tui.setup.xray_facts import XrayFacts, xray
from megatron_tui.ui import formatting
from megatron_tui.ui.background import background_of
from megatron_tui.ui.key_hints import KeyHints
from megatron_tui.ui.modal import ModalScreen
from megatron_tui.ui.panel import Label, Panel

if TYPE_CHECKING:
    from megatron_model.config.fields import Errors
    from megatron_model.data.report import CharacterCount, CorpusReport

ORDERS = {"count": "most frequent first", "rare": "rarest first", "code": "by code point"}


class XrayScreen(ModalScreen[str | None]):
    """Everything about one text; the answer is another encoding to read it in, or None."""

    CSS_PATH = "xray.tcss"
    AUTO_FOCUS = "CharacterTable"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("E", "encoding", "Encoding", tooltip="Choose an encoding", id="xray.encoding"),
        Binding("o", "sort", "Sort", tooltip="Change the order of the characters", id="xray.sort"),
        Binding("escape,X,q", "close", "Close", tooltip="Close the X-ray", id="xray.close"),
    ]  # fmt: skip

    def __init__(
        self,
        spec: str,
        encoding: str,
        validation_fraction: float,
        errors: Errors = "stop",
        rules: int = PRESENT_RULES,
    ) -> None:
        super().__init__()
        self._validation_fraction = validation_fraction
        self.facts = XrayFacts(spec, encoding, errors, rules)
        self.order = "count"

    def compose(self) -> ComposeResult:
        """Facts beside the table of characters."""
        with Vertical(classes="xray"):
            with Horizontal():
                with (
                    VerticalScroll(classes="facts", can_focus=False),
                    Panel("text", id="xray-text"),
                ):
                    yield Label()
                with Panel("characters", id="xray-characters"):
                    yield CharacterTable()
            yield KeyHints()

    def on_mount(self) -> None:
        """Begin to read."""
        self._show()
        self._look()

    def _look(self) -> None:
        facts = self.facts
        background_of(self)(
            lambda: xray(
                facts.spec, facts.encoding, self._validation_fraction, facts.errors, facts.rules
            ),
            self._take,
            group="xray",
        )

    def _take(self, facts: XrayFacts) -> None:
        # The same facts come again and again while the text is read, so that it can be stopped.
        if facts is not self.facts:
            self.facts = facts
            self._show()

    def action_sort(self) -> None:
        """Take the next order."""
        orders = list(ORDERS)
        self.order = orders[(orders.index(self.order) + 1) % len(orders)]
        self._show()

    def action_encoding(self) -> None:
        """Choose an encoding; the X-ray closes with it."""
        report = self.facts.report
        problem = None
        if report is not None and report.problem is not None:
            found = report.problem
            guess = found.guess
            problem = EncodingProblem(
                found.file, "utf-8", found.offset, found.line,
                guess.encoding if guess else "", guess.confidence if guess else 0.0,
            )  # fmt: skip
        facts = CorpusFacts(self.facts.spec, self.facts.encoding, problem=problem)

        def take(encoding: str | None) -> None:
            if encoding is not None:
                self.dismiss(encoding)

        self.app.push_screen(encoding_pick(facts, self.facts.encoding), take)

    def action_close(self) -> None:
        """Keep the encoding."""
        self.dismiss(None)

    def _show(self) -> None:
        facts = self.facts
        panel = self.query_one("#xray-text", Panel)
        panel.set_title(f"X-ray of {facts.name or facts.spec}")
        panel.query_one(Label).show(Content("\n").join(xray_lines(facts)), layout=True)
        table = self.query_one("#xray-characters", Panel)
        table.set_title(plural(len(facts.table), "character") if facts.table else "characters")
        table.set_subtitle(ORDERS[self.order] if facts.table else "")
        self.query_one(CharacterTable).show(ordered(facts.table, self.order))
        doing = Content.styled(f"{facts.doing}…", "$accent") if facts.doing else ""
        self.query_one(KeyHints).show_note(doing)


def ordered(table: tuple[CharacterCount, ...], order: str) -> tuple[CharacterCount, ...]:
    """Return the rows in another order."""
    if order == "rare":
        return tuple(reversed(table))
    if order == "code":
        return tuple(sorted(table, key=lambda row: row.character))
    return table


def xray_lines(facts: XrayFacts) -> list[Content]:
    """Return everything that is known, in words and figures."""
    lines = [_row("size", f"{formatting.size(facts.size)}{_files(facts.files)}")]
    if facts.error:
        lines.append(Content.styled(f"✗ {safe(facts.error)}", "$error"))
    if facts.report is not None:
        lines += _encoding_lines(facts.report)
    if facts.characters is not None:
        lines += [
            _row("characters", formatting.exact(facts.characters)),
            _row("vocabulary", f"{len(facts.table):,}"),
        ]
    if facts.text is not None:
        text = facts.text
        lines += [
            _row("lines", formatting.exact(text.lines)),
            _row("longest", f"{text.longest_line:,} in line {text.longest_line_number:,}"),
            _row("repeated", f"{formatting.percent(text.repeated_lines)} of the lines"),
            _row("rare", f"{len(text.rare):,} below 10 times"),
            _row("control", _controls(text.controls)),
        ]
    lines += _entropy_lines(facts)
    return lines


def _encoding_lines(report: CorpusReport) -> list[Content]:
    lines = [
        _row("encoding", f"{use.encoding}, {use.decided}{_files(use.files)}")
        for use in report.encodings[:4]
    ]
    problem = report.problem
    if problem is not None:
        lines.append(Content.styled(f"✗ {safe(problem.message)}", "$error"))
        lines.append(_row("where", f"line {problem.line:,}, byte {problem.offset:,}"))
        if problem.guess is not None:
            sure = formatting.percent(problem.guess.confidence)
            lines.append(_row("guess", f"{problem.guess.encoding}, {sure} sure"))
            lines.append(Content.assemble(("e", "bold $primary"), " chooses that or another"))
    ends = report.line_ends
    if ends is not None:
        kinds = [
            f"{number:,} {name}"
            for name, number in (
                ("LF", ends.line_feeds), ("CRLF", ends.pairs), ("CR", ends.carriage_returns),
            )
            if number
        ]  # fmt: skip
        mixed = ", mixed" if len(kinds) > 1 else ""
        lines.append(_row("line ends", (" and ".join(kinds) or "none") + mixed))
    return lines


def _entropy_lines(facts: XrayFacts) -> list[Content]:
    if facts.unigram_entropy is None:
        return []
    lines = [
        Content(""),
        Content.styled("bits per character", "bold"),
        _row("uniform", f"{_bits(math.log(len(facts.table)))}"),
        _row("unigram", f"{_bits(facts.unigram_entropy)}  by frequency"),
    ]
    if facts.text is not None:
        trigram = facts.text.trigram_entropy
        known = formatting.MISSING if trigram is None else _bits(trigram)
        lines.append(_row("trigram", f"{known}  from two before"))
        lines.append(Content.styled("A trained model is below all three.", "$quiet"))
    return lines


def _controls(controls: tuple[CharacterCount, ...]) -> str:
    if not controls:
        return "none"
    named = ", ".join(f"U+{ord(row.character):04X} x {row.count:,}" for row in controls[:3])
    return named + (f" and {len(controls) - 3:,} more" if len(controls) > 3 else "")


def _files(number: int) -> str:
    return f" in {number:,} files" if number > 1 else ""


def _bits(nats: float) -> str:
    return f"{nats / math.log(2):.3f}"


def _row(label: str, value: str) -> Content:
    return Content.assemble((f"{label:<11}", "$quiet"), safe(value, one_line=False))
