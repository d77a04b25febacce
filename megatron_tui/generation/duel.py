"""The duel: two models, one prompt, the same draws; and how they differ over the same real text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content

from megatron_model.config import SamplingConfig
from megatron_model.prompting import drop_unknown
from megatron_tui import formatting
from megatron_tui.model_choice import ModelChoice, list_writing_runs, model_choices
from megatron_tui.screens.pick import Entry, Pick
from megatron_tui.screens.view import View, character_name
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.widgets.heat_view import HeatView, lead_tint
from megatron_tui.widgets.panel import Panel, Text
from megatron_tui.widgets.stream_view import StreamView
from megatron_tui.workbench import Workbench

if TYPE_CHECKING:
    from megatron_model.insight import CharacterScore
    from megatron_model.validation_text import Stretch

STRETCH = 2_000
LN2 = math.log(2)
MANY_RUNS = 30


def choose_opponent(
    screen: WorkbenchScreen, first: ModelChoice, prompt: str, sampling: SamplingConfig
) -> None:
    """Ask for the weights that write against `first`, then let them."""
    workbench = screen.workbench
    runs = list_writing_runs(workbench.training, workbench.runs_dir)[:MANY_RUNS]
    runs.sort(key=lambda run: run.path != first.folder.path)  # its own other weights first
    offered = [
        choice
        for run in runs
        for choice in model_choices(run, workbench.training)
        if choice.weights != first.weights
    ]
    entries = [
        Entry(str(number), f"{choice.run}, {choice.name}", choice.about)
        for number, choice in enumerate(offered)
    ]

    def take(number: str | None) -> None:
        if number is not None:
            screen.app.push_screen(
                DuelScreen(workbench, first, offered[int(number)], prompt, sampling)
            )

    if offered:
        title = f"Duel of {first.run}, {first.words}, against"
        screen.app.push_screen(Pick(title, entries, verb="Let them write"), take)
    else:
        screen.notify("There are no other weights yet: a duel takes two.")


class SidePanel(Panel):
    """What one of the two writes."""

    EXPLANATION: ClassVar[str] = (
        "Both models get the same prompt and the same random draws, so that they write the same "
        "until they disagree. The place where they part is marked."
    )


class DifferencePanel(Panel):
    """The real text, tinted by who knew it better."""

    EXPLANATION: ClassVar[str] = (
        "Text that neither learned from. A character is tinted for the model that held it "
        "likelier: bold for the first one, underlined for the second; brighter where it is clear."
    )


class DuelScreen(View):
    """Two texts side by side, or one real text that both have read."""

    CSS_PATH = ["insight.tcss", "duel.tcss"]
    AUTO_FOCUS = "#first StreamView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "again", "Again", tooltip="Write with the next seed", id="duel.again"),
        Binding("v", "difference(0)", "Real text", tooltip="Compare them on the validation text",
                id="duel.difference"),
        Binding("g", "texts", "Texts", tooltip="Back to what they wrote", id="duel.texts"),
        Binding("n", "difference(1)", "Stretch", tooltip="The next stretch of it",
                id="duel.next"),
        Binding("N", "difference(-1)", "Stretch", tooltip="The stretch before",
                id="duel.previous"),
        Binding("x", "swap", "Swap", tooltip="Change sides", id="duel.swap"),
        Binding("s", "halt", "Stop", tooltip="Stop writing", id="duel.stop"),
    ]  # fmt: skip

    def __init__(
        self,
        workbench: Workbench,
        first: ModelChoice,
        second: ModelChoice,
        prompt: str,
        sampling: SamplingConfig,
    ) -> None:
        super().__init__(workbench)
        self.sides = (first, second)
        self._prompt, self._sampling = prompt, sampling
        self.diverged_at: int | None = None
        self._count = 0
        self._parted = ("", "")
        self.reading = False
        """Whether the real text is on show."""
        self.scores: list[tuple[CharacterScore, CharacterScore]] = []
        self._stretch: Stretch | None = None
        self._start = 0
        """Where the stretch of the real text begins, or will."""

    def compose_body(self) -> ComposeResult:
        """The texts, or the real text and its figures; below, what came of it."""
        with Vertical(id="duel"):
            with Horizontal(id="texts"):
                for name in ("first", "second"):
                    with SidePanel(name, id=name):
                        yield StreamView(follow=False)
            with Horizontal(id="insight"):
                with DifferencePanel("real text", id="reading"):
                    yield HeatView()
                with Panel("under the cursor", id="facts"):
                    yield Text(id="character")
                    yield Text(id="candidates")
                    yield Text(id="totals")
            yield Text(id="outcome")

    def begin(self) -> None:
        """Let both write."""
        self.reading, self.diverged_at, self._count = False, None, 0
        self._show_which()
        for name, side in zip(("first", "second"), self.sides, strict=True):
            panel = self.query_one(f"#{name}", Panel)
            panel.set_title(f"{side.run}, {side.words}")
            panel.query_one(StreamView).restart(self._prompt)
        prompt, sampling = self._prompt, self._sampling
        self.study(
            [side.weights for side in self.sides],
            lambda first, second: _write(first, second, prompt, sampling),
            anew=True,
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if action == "difference":
            return self.reading == (parameters != (0,))
        if action == "again":
            return not self.reading
        if action == "halt":
            return not self.reading and self.feed is not None and self.feed.busy
        if action == "texts":
            return self.reading
        return True

    def action_again(self) -> None:
        """Write with the next seed."""
        seed = (self._sampling.seed + 1) % 2**63
        self._sampling = msgspec.structs.replace(self._sampling, seed=seed)
        self.begin()

    def action_swap(self) -> None:
        """Change sides."""
        self.sides = self.sides[::-1]
        if self.reading:
            self._compare()
        else:
            self.begin()

    def action_texts(self) -> None:
        """Show what they write."""
        self.begin()

    def action_halt(self) -> None:
        """Stop within one character."""
        if self.feed is not None:
            self.feed.cancel()

    def action_difference(self, change: int) -> None:
        """Compare them on a stretch of the real text."""
        self._start += change * STRETCH
        self._compare()

    def _compare(self) -> None:
        start = self._start
        self.reading, self.scores, self._stretch = True, [], None
        self._show_which()
        self.query_one(HeatView).restart()
        self.study(
            [side.weights for side in self.sides],
            lambda first, second: _read(first, second, start),
        )

    def _show_which(self) -> None:
        self.query_one("#texts").display = not self.reading
        self.query_one("#insight").display = self.reading
        self.query_one(HeatView if self.reading else "#first StreamView").focus()
        self.refresh_bindings()

    def take(self, items: list[Any]) -> None:
        """Show what came, of the texts or of the real text."""
        if self.reading:
            self._take_scores(items)
        else:
            self._take_steps(items)

    def _take_steps(self, steps: list[Any]) -> None:
        parts = [step for step in steps if step.diverged_at == self._count + steps.index(step)]
        for side, name in enumerate(("first", "second")):
            view = self.query_one(f"#{name} StreamView", StreamView)
            pieces = [(step.first, step.second)[side] for step in steps]
            if parts and self.diverged_at is None:
                cut = parts[0].diverged_at - self._count
                view.append("".join(pieces[:cut]))
                view.set_apart()
                pieces = pieces[cut:]
            view.append("".join(pieces))
        if parts and self.diverged_at is None:
            self.diverged_at = parts[0].diverged_at
            self._parted = (parts[0].first, parts[0].second)
        self._count += len(steps)

    def _take_scores(self, items: list[Any]) -> None:
        from megatron_model.validation_text import Stretch

        pairs = [item for item in items if not isinstance(item, Stretch)]
        for item in items:
            if isinstance(item, Stretch):
                self._stretch = item
                self._start = item.start
        self.scores += pairs
        tints = [lead_tint(difference(pair)) for pair in pairs]
        self.query_one(HeatView).append("".join(pair[0].character for pair in pairs), tints)

    def show_state(self) -> None:
        """What came of it, in one line."""
        feed = self.feed
        if feed is None:
            return
        line = self.problem or (self._difference() if self.reading else self._outcome())
        self.query_one("#outcome", Text).show(line, layout=True)
        if self.reading:
            first, second = self.sides
            panel = self.query_one("#reading", Panel)
            panel.set_title(f"{first.run}, {first.words} against {second.run}, {second.words}")
            if self._stretch is not None:
                start, total = self._stretch.start, self._stretch.total
                panel.set_subtitle(f"validation text from {start:,} of {total:,}")
            self._show_cursor()
        self.refresh_bindings()

    def _outcome(self) -> Content:
        assert self.feed is not None
        seed = f"seed {self._sampling.seed}"
        if self.feed.phase == "loading":
            return Content(" loading the models")
        if self.diverged_at is None:
            return Content(f" the same {self._count:,} characters so far, {seed}")
        first, second = (character_name(one) if one else "the end" for one in self._parted)
        return Content.assemble(
            " the same ", (f"{self.diverged_at:,}", "bold $accent"),
            f" character{'s' * (self.diverged_at != 1)}, then {first} against {second}; "
            f"{self._count:,} written, {seed}",
        )  # fmt: skip

    def _difference(self) -> Content:
        if not self.scores:
            return Content(" reading")
        first, second = (
            -sum(pair[side].log_probability for pair in self.scores) / LN2 / len(self.scores)
            for side in (0, 1)
        )
        better = "first" if first < second else "second"
        return Content.assemble(
            (" first ", "bold $background on $primary"), f" {first:.3f} bits/character  ",
            (" second ", "underline $background on $accent"), f" {second:.3f}  ",
            (f"the {better} is better by {abs(first - second):.3f}", "bold"),
            f", {len(self.scores):,} characters",
        )  # fmt: skip

    @on(HeatView.Moved)
    def _show_cursor(self) -> None:
        index = self.query_one(HeatView).cursor
        if index >= len(self.scores):
            return
        first, second = self.scores[index]
        self.query_one("#character", Text).show(
            Content.assemble((character_name(first.character), "bold"))
        )
        lines = [
            Content.assemble(
                (f"{name:<7}", "$quiet"), (f"{-score.log_probability / LN2:5.2f} bits ", "bold"),
                f"{formatting.percent(math.exp(score.log_probability)):>6}  ",
                ("rather ", "$quiet") if score.candidates[0][0] != score.character else "",
                character_name(score.candidates[0][0])
                if score.candidates[0][0] != score.character else "",
            )
            for name, score in (("first", first), ("second", second))
        ]  # fmt: skip
        self.query_one("#candidates", Text).show(Content("\n").join(lines), layout=True)
        lead = difference(self.scores[index])
        knew = "the second" if lead > 0 else "the first"
        self.query_one("#totals", Text).show(
            f"{knew} knew it better by {abs(lead):.2f} bits", layout=True
        )


def difference(pair: tuple[CharacterScore, CharacterScore]) -> float:
    """Return how many bits fewer a character cost the second model."""
    return (pair[1].log_probability - pair[0].log_probability) / LN2


def _write(first: Any, second: Any, prompt: str, sampling: SamplingConfig) -> Iterator[Any]:
    from megatron_model.insight import duel

    return duel(first, second, prompt, sampling)


def _read(first: Any, second: Any, start: int) -> Iterator[Any]:
    """Yield where the stretch is, then what each made of every character that both know."""
    from megatron_model.insight import compare_surprise
    from megatron_model.validation_text import validation_stretch

    stretch = validation_stretch(first, start, STRETCH)
    yield stretch
    text = drop_unknown(second.tokenizer, stretch.text)
    block = min(first.block_size, second.block_size)
    yield from compare_surprise(first, second, text, block)
