"""The microscope: each character beside those that might have come, and ways on from there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import msgspec
from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content
from textual.events import DescendantFocus

from megatron_model.config.fields import SamplingConfig
from megatron_model.util.text import plural
from megatron_tui.generation.characters import bar, character_name
from megatron_tui.generation.insight_panels import FactsPanel, ProblemLabel
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.generation.written_text import WrittenText
from megatron_tui.services.workbench import Workbench
from megatron_tui.ui import formatting
from megatron_tui.ui.heat_view import PLAIN, HeatView, surprise_tint
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Panel

if TYPE_CHECKING:
    from megatron_model.analysis.insight import Moment, Rival
    from megatron_model.run.checkpoint import LoadedModel

LONGEST = 4_000
"""Characters of a text that are shown, of a longer one the last ones."""
MOST = 4
"""Branches side by side."""
RIVALS = 9
AT_ONCE = 200
"""Characters that are written on at a time."""
A_LOOK = 3
"""Characters shown at a look at reading pace: with ten looks a second, one can follow."""


@dataclass
class Branch:
    """One text under the microscope."""

    text: WrittenText
    label: str
    goal: int
    """How many characters it is to have after the prompt."""
    begin: int
    """Place in the whole text of the first character on show."""
    moments: list[Moment] = field(default_factory=list)
    """Of the written characters on show, in their order."""
    end: Moment | None = None
    """What might come next, once it is over."""

    @property
    def skipped(self) -> int:
        """Written characters before those on show."""
        return max(0, self.begin - len(self.text.prompt))

    @property
    def first_written(self) -> int:
        """Place on show of the first written character."""
        return max(0, len(self.text.prompt) - self.begin)

    def moment(self, place: int) -> Moment | None:
        """Return what is known of a place on show; nothing of the prompt."""
        number = place - self.first_written
        if 0 <= number < len(self.moments):
            return self.moments[number]
        return self.end if number == len(self.moments) else None


def of_text(text: WrittenText, label: str, goal: int) -> Branch:
    """Return a branch that begins with all that there is of a text."""
    return Branch(text, label, goal, max(0, len(text.text) - LONGEST))


def branch_at(branch: Branch, place: int, character: str) -> Branch:
    """Return what a text becomes with another character at a place on show."""
    old = branch.text
    at = branch.begin + place
    name = character_name(character)
    # All before it is a prompt now, so that the same command writes the same text again.
    prompt = old.text[:at] + character
    text = WrittenText(old.weights, old.run, old.which, old.sampling, prompt)
    return Branch(text, f"{name} at {at + 1:,}", AT_ONCE, branch.begin)


class BranchPanel(Panel):
    """One of the texts."""

    EXPLANATION: ClassVar[str] = (
        "A text tinted by how unlikely each character was for the model; the prompt is plain. h "
        "and l move the cursor; a digit puts the rival of that number in place of the character "
        "under it, C any other one, and a new text goes on from there beside this one. Tab goes "
        "from text to text; g goes on, n writes one character, enter takes the text along."
    )


class RivalsPanel(FactsPanel):
    """What might stand at the cursor."""

    EXPLANATION: ClassVar[str] = (
        "The likeliest characters at the cursor: how likely the model holds each, and in how many "
        "of a hundred draws it comes under the settings of this text (temperature, filters and "
        "penalty); the bar is that. At the end of the text: what might come next."
    )


class MicroscopeScreen(JobScreen["Moment"]):
    """Texts side by side, and the rivals of the character under the cursor."""

    CSS_PATH = "insight.tcss"
    AUTO_FOCUS = "#branch-0 HeatView"
    BINDINGS: ClassVar[list[BindingType]] = [
        *(
            Binding(str(number), f"rival({number})", "Branch", show=number == 1,
                    key_display="1-9" if number == 1 else None,
                    tooltip=f"Go on with rival {number} at the cursor",
                    id=f"microscope.rival_{number}")
            for number in range(1, RIVALS + 1)
        ),
        Binding("C", "change", "Change", tooltip="Go on with another character at the cursor",
                id="microscope.change"),
        Binding("g", f"go_on({AT_ONCE})", "Go on", tooltip="Write on", id="microscope.continue"),
        Binding("n", "go_on(1)", "One", tooltip="Write one character", id="microscope.one"),
        Binding("enter", "take", "Take", tooltip="Go on with this text on Generation",
                id="microscope.take"),
        Binding("D", "drop", "Drop", tooltip="Close this branch", id="microscope.drop"),
        Binding("S", "stop", "Stop", tooltip="Stop writing", id="microscope.stop"),
        Binding("v", "pace", "Pace", tooltip="Show the text at full speed, or at reading speed",
                id="microscope.pace"),
    ]  # fmt: skip

    def __init__(
        self,
        workbench: Workbench,
        text: WrittenText,
        choose: Callable[[WrittenText], None],
        *,
        go_on: bool,
    ) -> None:
        """`choose` is called with the text a person goes on with; `go_on` writes this one to its
        end.
        """
        super().__init__(workbench)
        self._choose = choose
        goal = text.sampling.max_new_tokens if go_on else text.length
        self.branches = [of_text(text, "the text", max(goal, text.length))]
        self.active = 0
        """The branch with the cursor."""
        self._worked_on: Branch | None = None
        self._waiting: list[Moment] = []
        """What came, and is not shown yet."""
        self.at_reading_pace = True

    def compose_body(self) -> ComposeResult:
        """As many panels as there can be; those without a branch are hidden."""
        with Horizontal(id="insight"):
            with Horizontal(id="reading"):
                for number in range(MOST):
                    with BranchPanel("", id=f"branch-{number}", classes="branch"):
                        if number == 0:
                            yield ProblemLabel()
                        yield HeatView()
            yield RivalsPanel("at the cursor")

    def begin(self) -> None:
        """Read the text, or write it."""
        self._show_branches()
        view = self._view(0)
        view.go_to(view.length - 1)
        self._work_on(self.branches[0])

    # The work: one branch at a time, the one that was asked for last first

    def _work_on(self, branch: Branch) -> None:
        self._worked_on, self._waiting = branch, []
        branch.end = None
        text, skip = branch.text, branch.skipped + len(branch.moments)
        sampling = msgspec.structs.replace(text.sampling, max_new_tokens=branch.goal)
        prompt, written = text.prompt, text.written
        self.study([text.weights], lambda model: _watch(model, prompt, sampling, written, skip))
        self.refresh_bindings()

    def poll(self) -> None:
        """Show what came, as fast as it can be read; then take up what is unfinished."""
        feed = self.feed
        if feed is None:
            return
        busy = feed.busy  # asked first: what came before its end is then drained
        self._waiting += feed.drain()
        shown = self._shown_now()
        if shown:
            self.take(shown)
        self.show_state()
        if not busy and not self._waiting:
            unfinished = [one for one in self.branches if one.end is None]
            if feed.phase == "done" and unfinished:
                self._work_on(unfinished[0])
            else:
                self._timer.pause()

    def _shown_now(self) -> list[Moment]:
        branch = self._worked_on
        if branch is None:
            return []
        known = branch.text.length - branch.skipped - len(branch.moments)
        count = known + A_LOOK if self.at_reading_pace else len(self._waiting)
        now, self._waiting = self._waiting[:count], self._waiting[count:]
        return now

    @property
    def busy(self) -> bool:
        """Whether more may come."""
        return super().busy or bool(self._waiting)

    def take(self, items: list[Moment]) -> None:
        """Put what came behind the text that is worked on."""
        branch = self._worked_on
        if branch is None or branch not in self.branches:
            return
        view = self._view(self.branches.index(branch))
        follows = view.cursor >= view.length - 1
        known = branch.first_written + len(branch.moments)
        for moment in items:
            if not moment.came.character:
                branch.end = moment
                view.append(" ", [PLAIN])  # where the next character would be
                continue
            branch.moments.append(moment)
            if branch.skipped + len(branch.moments) > branch.text.length:
                branch.text.append(moment.came.character)
                view.append(moment.came.character, [PLAIN])
        if known != branch.first_written + len(branch.moments):
            view.tint(self._tints(branch))
        if follows:
            view.go_to(view.length - 1)

    @staticmethod
    def _tints(branch: Branch) -> list[str]:
        written = [
            surprise_tint(-math.log2(max(m.came.probability, 1e-30))) for m in branch.moments
        ]
        return [PLAIN] * branch.first_written + written

    # What is on show

    def _view(self, number: int) -> HeatView:
        return self.query_one(f"#branch-{number} HeatView", HeatView)

    def _show_branches(self) -> None:
        """Put every branch into its panel, the cursor where it was or where it was changed."""
        for number in range(MOST):
            panel, view = self.query_one(f"#branch-{number}", Panel), self._view(number)
            panel.display = number < len(self.branches)
            if not panel.display:
                continue
            branch = self.branches[number]
            cursor = view.cursor
            view.restart()
            shown = branch.text.text[branch.begin :] + (" " if branch.end is not None else "")
            view.append(shown, [PLAIN] * len(shown))
            view.tint(self._tints(branch))
            view.go_to(cursor)
        self.query_one("#reading").set_class(len(self.branches) > 2, "-many")

    def show_state(self) -> None:
        """Titles, the rivals at the cursor, and what is wrong."""
        for number, branch in enumerate(self.branches):
            panel = self.query_one(f"#branch-{number}", Panel)
            panel.set_title(branch.label)
            writing = branch is self._worked_on and self.busy
            panel.set_subtitle(plural(branch.text.length, "character") + (" …" if writing else ""))
        self.query_one(ProblemLabel).show_problem(self.problem)
        self._show_cursor()
        self.refresh_bindings()

    @on(DescendantFocus)
    def _focus_moved(self) -> None:
        for number in range(len(self.branches)):
            if self.query_one(f"#branch-{number}", Panel).has_focus_within:
                self.active = number
        self._show_cursor()

    @on(HeatView.Moved)
    def _show_cursor(self) -> None:
        branch, facts = self.branches[self.active], self.query_one(FactsPanel)
        place = self._view(self.active).cursor
        moment = branch.moment(place)
        source = Content.styled(branch.text.provenance, "$quiet")
        if moment is None:
            given = "given, not written" if place < branch.first_written else ""
            facts.show(Content.styled(given, "$quiet"), "", source)
            return
        came = moment.came
        head = Content.styled("what might come next", "bold")
        if came.character:
            head = Content.assemble(
                (character_name(came.character), "bold"),
                f"  {formatting.percent(came.probability)}  drawn ",
                (formatting.percent(came.drawn), "bold $accent"),
            )
        facts.show(head, rival_lines(moment), source)

    # Keys

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        if not self.is_mounted:
            return True
        if action == "stop":
            return self.busy
        if action == "drop":
            return len(self.branches) > 1
        if action in ("rival", "change"):
            return len(self.branches) < MOST
        return True

    def action_rival(self, number: int) -> None:
        """Go on with one of the rivals at the cursor."""
        moment = self.branches[self.active].moment(self._view(self.active).cursor)
        if moment is not None and number <= len(moment.rivals):
            self._branch(moment.rivals[number - 1].character)

    def action_change(self) -> None:
        """Go on with any character at the cursor."""
        from megatron_tui.generation.dialogs import AskCharacter

        if self.feed is None or not self.feed.models:
            return
        vocabulary = self.feed.models[0].tokenizer.vocabulary

        def changed(character: str | None) -> None:
            if character is not None:
                self._branch(character)

        self.app.push_screen(AskCharacter("Which character stands here?", vocabulary), changed)

    def _branch(self, character: str) -> None:
        if len(self.branches) == MOST:
            notify(self, f"There is room for {MOST} texts; D closes the one with the cursor.")
            return
        place = self._view(self.active).cursor
        self._let_go()
        branch = branch_at(self.branches[self.active], place, character)
        self.branches.append(branch)
        self.active = len(self.branches) - 1
        self._show_branches()
        view = self._view(self.active)
        view.go_to(view.length - 1)
        view.focus()
        self._work_on(branch)

    def _let_go(self) -> None:
        """End the text that is worked on where it was shown to: a person acts on what is seen."""
        self._waiting = []
        if self._worked_on is not None:
            self._worked_on.goal = self._worked_on.text.length

    def action_go_on(self, count: int) -> None:
        """Write on with the text that has the cursor."""
        self._let_go()
        branch = self.branches[self.active]
        branch.goal, branch.end = branch.text.length + count, None
        self._show_branches()
        view = self._view(self.active)
        view.go_to(view.length - 1)
        self._work_on(branch)

    def action_stop(self) -> None:
        """Stop where the text was shown to."""
        if self._worked_on is not None:
            self._let_go()
            self._work_on(self._worked_on)  # what might come next is still to be told

    def action_pace(self) -> None:
        """Show the text at full speed, or at reading speed."""
        self.at_reading_pace = not self.at_reading_pace
        speed = "reading" if self.at_reading_pace else "full"
        notify(self, f"The text is shown at {speed} speed.")

    def action_drop(self) -> None:
        """Close the branch with the cursor."""
        dropped = self.branches.pop(self.active)
        self.active = max(0, self.active - 1)
        self._show_branches()
        self._view(self.active).focus()
        if self._worked_on is dropped:
            self._waiting = []
            self._work_on(self.branches[self.active])
        self.show_state()

    def action_take(self) -> None:
        """Go back with the text that has the cursor."""
        self._choose(self.branches[self.active].text)
        self.action_close()


def rival_lines(moment: Moment) -> Content:
    """Return the rivals, each with its number, both shares and a bar; the one that came marked."""
    rivals: list[tuple[str, Rival]] = [
        (str(number), one) for number, one in enumerate(moment.rivals, 1)
    ]
    came = moment.came.character
    if came and all(one.character != came for _, one in rivals):
        rivals.append((" ", moment.came))
    lines = [Content.styled("               model  drawn", "$quiet")]
    for number, one in rivals:
        here = one.character == came
        lines.append(
            Content.assemble(
                (number, "bold $primary"),
                ("▸" if here else " ", "bold $accent"),
                (f"{character_name(one.character):<11}", "bold" if here else ""),
                (f"{formatting.percent(one.probability):>7}", "$quiet"),
                f"{formatting.percent(one.drawn):>7} ",
                (bar(one.drawn, 7), "$accent" if here else "$primary"),
            )
        )
    return Content("\n").join(lines)


def _watch(
    model: LoadedModel, prompt: str, sampling: SamplingConfig, written: str, skip: int
) -> Iterator[Moment]:
    from megatron_model.analysis.insight import watch

    return watch(
        model.model, model.tokenizer, prompt, sampling, written, skip=skip, candidates=RIVALS
    )
