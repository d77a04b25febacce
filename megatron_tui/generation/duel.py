"""The duel: two models, one prompt, the same draws; and how they differ over the same real text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content

from megatron_model.config.fields import SamplingConfig
from megatron_model.util.text import plural
from megatron_tui.generation.characters import bits, character_name
from megatron_tui.generation.insight_panels import FactsPanel
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.generation.sampling_draft import with_later_seed
from megatron_tui.generation.validation_place import ValidationPlace, read_stretch
from megatron_tui.services.model_choice import ModelChoice, list_writing_runs, model_choices
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.workbench_screen import WorkbenchScreen
from megatron_tui.ui import formatting
from megatron_tui.ui.heat_view import HeatView, lead_tint
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.pick import Entry, Pick
from megatron_tui.ui.stream_view import StreamView

if TYPE_CHECKING:
    from megatron_model.analysis.insight import CharacterScore, DuelStep
    from megatron_model.analysis.validation_text import Stretch
    from megatron_model.run.checkpoint import LoadedModel

    Pair: TypeAlias = tuple[CharacterScore, CharacterScore]
    Item: TypeAlias = DuelStep | Stretch | Pair

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

    def begin(number: str | None) -> None:
        if number is not None:
            screen.app.push_screen(
                DuelScreen(workbench, first, offered[int(number)], prompt, sampling)
            )

    if offered:
        title = f"Duel of {first.title}, against"
        screen.app.push_screen(Pick(title, entries, verb="Start duel"), begin)
    else:
        notify(screen, "There are no other weights yet: a duel takes two.")


class SidePanel(Panel):
    """What one of the two writes."""

    EXPLANATION: ClassVar[str] = (
        "Both models get the same prompt and the same random draws, so that they write the same "
        "until they disagree. The place where they part is marked."
    )


class DifferencePanel(Panel):
    """The real text, tinted by who knew it better."""

    EXPLANATION: ClassVar[str] = (
        "Text that neither learned from. A character is tinted for the model that expected "
        "it more: bold for the first one, underlined for the second; brighter where it is clear."
    )


class DuelScreen(JobScreen["Item"]):
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
        Binding("tilde", "swap", "Swap", tooltip="Change sides", id="duel.swap"),
        Binding("S", "halt", "Stop", tooltip="Stop writing", id="duel.stop"),
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
        self.scores: list[Pair] = []
        self._place = ValidationPlace()

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
                yield FactsPanel("under the cursor")
            yield Label(id="outcome")

    def begin(self) -> None:
        """Let both write."""
        self.reading, self.diverged_at, self._count = False, None, 0
        self._show_which()
        for name, side in zip(("first", "second"), self.sides, strict=True):
            panel = self.query_one(f"#{name}", Panel)
            panel.set_title(side.title)
            panel.query_one(StreamView).restart(self._prompt)
        prompt, sampling = self._prompt, self._sampling
        self.study(
            [side.weights for side in self.sides],
            lambda first, second: _write(first, second, prompt, sampling),
            refresh=True,
        )

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if action == "difference":
            return self.reading == (parameters != (0,))
        if action == "again":
            return not self.reading
        if action == "halt":
            return not self.reading and self.busy
        if action == "texts":
            return self.reading
        return True

    def action_again(self) -> None:
        """Write with the next seed."""
        self._sampling = with_later_seed(self._sampling)
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

    def action_difference(self, change: int) -> None:
        """Compare them on a stretch of the real text."""
        self._place.move(change)
        self._compare()

    def _compare(self) -> None:
        start = self._place.start
        self.reading, self.scores = True, []
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

    def take(self, items: list[Item]) -> None:
        """Show what came, of the texts or of the real text."""
        from megatron_model.analysis.insight import DuelStep
        from megatron_model.analysis.validation_text import Stretch

        steps: list[DuelStep] = []
        pairs: list[Pair] = []
        for item in items:
            if isinstance(item, DuelStep):
                steps.append(item)
            elif isinstance(item, Stretch):
                self._place.found(item)
            else:
                pairs.append(item)
        if self.reading:
            self._show_pairs(pairs)
        else:
            self._show_steps(steps)

    def _show_steps(self, steps: list[DuelStep]) -> None:
        cut: int | None = None
        """Where among these steps the texts part."""
        if self.diverged_at is None:
            parted = [index for index, step in enumerate(steps) if step.diverged_at is not None]
            cut = next(iter(parted), None)
        for side, name in enumerate(("first", "second")):
            view = self.query_one(f"#{name} StreamView", StreamView)
            pieces = [(step.first, step.second)[side] for step in steps]
            view.append("".join(pieces[:cut]))
            if cut is not None:
                view.set_apart()
                view.append("".join(pieces[cut:]))
        if cut is not None:
            self.diverged_at = steps[cut].diverged_at
            self._parted = (steps[cut].first, steps[cut].second)
        self._count += len(steps)

    def _show_pairs(self, pairs: list[Pair]) -> None:
        self.scores += pairs
        tints = [lead_tint(difference(pair)) for pair in pairs]
        self.query_one(HeatView).append("".join(pair[0].character for pair in pairs), tints)

    def show_state(self) -> None:
        """What came of it, in one line."""
        line = self._difference() if self.reading else self._outcome()
        self.query_one("#outcome", Label).show(
            self.problem if self.problem.plain else line, layout=True
        )
        if self.reading:
            first, second = self.sides
            panel = self.query_one("#reading", Panel)
            panel.set_title(f"{first.title} against {second.title}")
            panel.set_subtitle(self._place.words)
            self._show_cursor()
        self.refresh_bindings()

    def _outcome(self) -> Content:
        seed = f"seed {self._sampling.seed}"
        if self.feed is not None and self.feed.phase == "loading":
            return Content(" loading the models")
        if self.diverged_at is None:
            return Content(f" the same {plural(self._count, 'character')} so far, {seed}")
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
            sum(bits(pair[side].log_probability) for pair in self.scores) / len(self.scores)
            for side in (0, 1)
        )
        better = "first" if first < second else "second"
        return Content.assemble(
            (" first ", "bold $background on $primary"), f" {first:.3f} bits/character  ",
            (" second ", "underline $background on $accent"), f" {second:.3f}  ",
            (f"the {better} is better by {abs(first - second):.3f}", "bold"),
            f", {plural(len(self.scores), 'character')}",
        )  # fmt: skip

    @on(HeatView.Moved)
    def _show_cursor(self) -> None:
        index, facts = self.query_one(HeatView).cursor, self.query_one(FactsPanel)
        if index >= len(self.scores):
            facts.show("", "", "")
            return
        pair = self.scores[index]
        lines = [
            _score_line(name, score) for name, score in zip(("first", "second"), pair, strict=True)
        ]
        lead = difference(pair)
        knew = "the second" if lead > 0 else "the first"
        facts.show(
            Content.styled(character_name(pair[0].character), "bold"),
            Content("\n").join(lines),
            f"{knew} knew it better by {abs(lead):.2f} bits",
        )


def _score_line(name: str, score: CharacterScore) -> Content:
    likeliest = score.candidates[0][0]
    rather = likeliest != score.character
    return Content.assemble(
        (f"{name:<7}", "$quiet"), (f"{bits(score.log_probability):5.2f} bits ", "bold"),
        f"{formatting.percent(math.exp(score.log_probability)):>6}  ",
        ("rather ", "$quiet") if rather else "", character_name(likeliest) if rather else "",
    )  # fmt: skip


def difference(pair: Pair) -> float:
    """Return how many bits fewer a character cost the second model."""
    return bits(pair[0].log_probability) - bits(pair[1].log_probability)


def _write(
    first: LoadedModel, second: LoadedModel, prompt: str, sampling: SamplingConfig
) -> Iterator[DuelStep]:
    from megatron_model.analysis.insight import duel

    return duel(first, second, prompt, sampling)


def _read(first: LoadedModel, second: LoadedModel, start: int) -> Iterator[Stretch | Pair]:
    """Yield where the stretch is, then what each made of every character that both know."""
    from megatron_model.analysis.insight import compare_surprise

    stretch = read_stretch(first, start)
    yield stretch
    text = second.tokenizer.drop_unknown(stretch.text)
    block = min(first.block_size, second.block_size)
    yield from compare_surprise(first, second, text, block)
