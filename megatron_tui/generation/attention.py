"""The attention view: where the model looked when it read the character under the cursor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal
from textual.content import Content

from megatron_tui.generation.characters import bar, character_name
from megatron_tui.generation.insight_panels import FactsPanel, ProblemLabel
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.services.workbench import Workbench
from megatron_tui.ui import formatting
from megatron_tui.ui.heat_view import PLAIN, HeatView, share_tint
from megatron_tui.ui.panel import Panel

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from megatron_model.analysis.insight import AttentionView
    from megatron_model.run.checkpoint import LoadedModel

    Answer: TypeAlias = tuple[int, AttentionView]

LONGEST = 4_000
"""Characters shown, of a longer text the last ones."""
SOON = 0.02
"""How soon an answer is looked for after the cursor moved."""
HEIGHTS = "▁▂▃▄▅▆▇█"
MANY = 5


class ReadingPanel(Panel):
    """The tinted text."""

    EXPLANATION: ClassVar[str] = (
        "The brighter a character, the more the chosen head looks at it while the model reads the "
        "one under the cursor. A head may look at itself; it never sees what comes later."
    )


class LooksPanel(FactsPanel):
    """Where it looks, in figures."""

    EXPLANATION: ClassVar[str] = (
        "Layer and head, how far each head of the layer looks back on average, and the characters "
        "that get the largest shares."
    )


class AttentionScreen(JobScreen["Answer"]):
    """A text with a cursor; layer and head are chosen by keys."""

    CSS_PATH = "insight.tcss"
    AUTO_FOCUS = "HeatView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right_square_bracket", "layer(1)", "Layer", key_display="]",
                tooltip="The next layer", id="attention.layer"),
        Binding("left_square_bracket", "layer(-1)", "Layer", key_display="[",
                tooltip="The layer before", id="attention.layer_back"),
        Binding("greater_than_sign", "head(1)", "Head", key_display=">",
                tooltip="The next head", id="attention.head"),
        Binding("less_than_sign", "head(-1)", "Head", key_display="<",
                tooltip="The head before", id="attention.head_back"),
        Binding("0", "all_heads", "All heads", tooltip="The mean over the heads of the layer",
                id="attention.all"),
    ]  # fmt: skip

    def __init__(self, workbench: Workbench, chosen: ModelChoice, text: str) -> None:
        super().__init__(workbench)
        self._chosen = chosen
        self._text = text[-LONGEST:]
        self.depth = 0
        """The layer on show."""
        self.head: int | None = None
        """The head on show; None is the mean over all."""
        self._asked = self._answered = -1
        """Places of the characters asked for last, and answered last."""
        self.view: AttentionView | None = None

    def compose_body(self) -> ComposeResult:
        """The text beside (or over) the figures."""
        with Horizontal(id="insight"):
            with ReadingPanel("attention", id="reading"):
                yield ProblemLabel()
                yield HeatView()
            yield LooksPanel("looks at")

    def begin(self) -> None:
        """Look from the last character."""
        view = self.query_one(HeatView)
        view.append(self._text, [PLAIN] * len(self._text))
        view.go_to(len(self._text) - 1)
        self._look()

    @on(HeatView.Moved)
    def _look(self) -> None:
        place, text = self.query_one(HeatView).cursor, self._text
        if place == self._asked:
            return
        self._asked = place
        self.study([self._chosen.weights], lambda model: _look_from(model, text, place))
        self.set_timer(SOON, self.poll)

    def take(self, items: list[Answer]) -> None:
        """Show the latest answer."""
        self._answered, self.view = items[-1]
        self.depth = min(self.depth, len(self._weights) - 1)
        self._tint()

    @property
    def _weights(self) -> NDArray[np.float32]:
        """Return the shares of the present answer: (layers, heads, characters)."""
        assert self.view is not None
        return self.view.weights

    def action_layer(self, change: int) -> None:
        """Go to another layer."""
        if self.view is not None:
            self.depth = (self.depth + change) % len(self._weights)
            self._tint()

    def action_head(self, change: int) -> None:
        """Go to another head; before the first one is the mean over all."""
        if self.view is not None:
            heads = self._weights.shape[1]
            place = (0 if self.head is None else self.head + 1) + change
            place %= heads + 1
            self.head = None if place == 0 else place - 1
            self._tint()

    def action_all_heads(self) -> None:
        """Show the mean over all heads."""
        self.head = None
        self._tint()

    def shares(self) -> list[float]:
        """Return the share of each character that the model saw, as chosen."""
        layer = self._weights[self.depth]
        row = layer.mean(0) if self.head is None else layer[self.head]
        return [float(share) for share in row]

    def _tint(self) -> None:
        if self.view is None:
            return
        shares = self.shares()
        highest = max(shares)
        tints = [PLAIN] * self.view.start + [share_tint(share, highest) for share in shares]
        self.query_one(HeatView).tint(tints)
        self.show_state()

    def show_state(self) -> None:
        """Title, figures, and what is wrong."""
        panel = self.query_one("#reading", Panel)
        panel.set_title(f"attention of {self._chosen.title}")
        self.query_one(ProblemLabel).show_problem(self.problem)
        if self.view is None:
            return
        layers, heads, _ = self._weights.shape
        head = "all heads" if self.head is None else f"head {self.head + 1} of {heads}"
        panel.set_subtitle(f"layer {self.depth + 1} of {layers}, {head}")
        character = Content.assemble(
            ("from ", "$quiet"),
            (character_name(self._text[self._answered]), "bold"),
            ("  looks back ", "$quiet"),
            (f"{looks_back(self.shares()):.1f}", "bold $accent"),
        )
        self.query_one(FactsPanel).show(character, self._largest(), self._heads())

    def _largest(self) -> Content:
        assert self.view is not None
        shares = self.shares()
        places = sorted(range(len(shares)), key=lambda place: -shares[place])[:MANY]
        lines = []
        for place in places:
            back = len(shares) - 1 - place
            character = character_name(self._text[self.view.start + place])
            lines.append(
                Content.assemble(
                    (f"{f'-{back}' if back else 'self':>5} ", "$quiet"),
                    (f"{character:<10}", "bold"),
                    f"{formatting.percent(shares[place]):>6} ",
                    (bar(shares[place], 9), "$primary"),
                )
            )
        return Content("\n").join(lines)

    def _heads(self) -> Content:
        """Return how far each head of the layer looks back, as a row of bars."""
        far = [looks_back([float(share) for share in row]) for row in self._weights[self.depth]]
        highest = max(max(far), 1e-9)
        bars: list[tuple[str, str]] = []
        for head, distance in enumerate(far):
            chosen = self.head is None or head == self.head
            height = HEIGHTS[min(7, int(distance / highest * 7.99))]
            bars.append((height, "bold $accent" if chosen else "$quiet"))
        return Content.assemble(
            ("heads look back ", "$quiet"), *bars, (f"  to {highest:.1f}", "$quiet")
        )


def looks_back(shares: list[float]) -> float:
    """Return how many characters back the attention lies on average."""
    last = len(shares) - 1
    return sum(share * (last - place) for place, share in enumerate(shares))


def _look_from(model: LoadedModel, text: str, place: int) -> Iterator[Answer]:
    from megatron_model.analysis.insight import attention_of

    yield place, attention_of(model.model, model.tokenizer, text, place)
