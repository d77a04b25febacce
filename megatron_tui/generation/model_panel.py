"""Which model writes, what it knows, how much of the text it sees, and at which pace it shows."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.containers import Horizontal
from textual.content import Content

from megatron_model.inference.prompt import window_length
from megatron_model.util.text import safe
from megatron_tui.generation.model_selection import ModelSelection
from megatron_tui.generation.written_text import WrittenText
from megatron_tui.services.model_cache import Model
from megatron_tui.ui.choice import Choice
from megatron_tui.ui.panel import Label, Panel

METER = 6
FULL, READING = PACES = ("full", "reading")


class ModelPanel(Panel):
    """A run, its weights, their vocabulary, the context window, the pace."""

    EXPLANATION: ClassVar[str] = (
        "Which weights write. Best has the lowest validation loss, latest is the newest "
        "checkpoint; live copies the weights of the run in training between two of its steps. "
        "The meter says how much of the text the model sees: a full window is cut to its last "
        "half. The pace is full speed, or that of reading along."
    )

    DEFAULT_CSS = """
    ModelPanel {
        height: auto;
        .row { height: 1; }
        .row .name { width: 11; color: $quiet; }
        .row Choice { width: 1fr; }
        .row .fact { width: 1fr; height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
        #about-model { color: $quiet; height: auto; padding-left: 11; }
    }
    """

    def __init__(self) -> None:
        super().__init__("model", id="model")

    def compose(self) -> ComposeResult:
        """One row each."""
        with Horizontal(classes="row"):
            yield Label("run", classes="name")
            yield Choice([], "", id="run")
        with Horizontal(classes="row"):
            yield Label("weights", classes="name")
            yield Choice(["best", "latest"], "best", id="weights")
        yield Label(id="about-model")
        with Horizontal(classes="row"):
            yield Label("vocabulary", classes="name")
            yield Label(id="vocabulary", classes="fact")
        with Horizontal(classes="row"):
            yield Label("context", classes="name")
            yield Label(id="context", classes="fact")
        with Horizontal(classes="row"):
            yield Label("pace", classes="name")
            yield Choice(PACES, PACES[0], id="pace")

    def offer(self, models: ModelSelection) -> None:
        """Show which runs and weights there are to choose from, and which are chosen."""
        for name, values, value in (
            ("#run", models.run_names, models.run),
            ("#weights", models.weight_names, models.weights),
        ):
            choice = self.query_one(name, Choice)
            choice.set_values(values)
            choice.value = value

    def show(
        self, models: ModelSelection, model: Model | None, written: WrittenText | None
    ) -> None:
        """Show what is chosen, what is loaded of it, and how much of the text it sees."""
        chosen, cost = models.chosen, models.copying_cost
        about = chosen.about if chosen is not None else ""
        if cost and model is not None:
            about = f"step {model.step:,}; {cost}"
        self.query_one("#about-model", Label).show(about, layout=True)
        vocabulary, context = (
            self.query_one("#vocabulary", Label),
            self.query_one("#context", Label),
        )
        if chosen is None or model is None:
            vocabulary.show("")
            context.show("")
            return
        vocabulary.show(vocabulary_line(model.tokenizer.vocabulary))
        prompt, length = (len(written.prompt), written.length) if written else (0, 0)
        seen = window_length(prompt, length, model.block_size)
        context.show(meter(seen, model.block_size, cut=prompt + length > model.block_size))


def vocabulary_line(vocabulary: str) -> Content:
    """Return how many characters there are, and as many of them as fit."""
    shown = "".join(character for character in vocabulary if not character.isspace())
    return Content.assemble(
        (f"{len(vocabulary):,} ", "bold"), (safe(shown, one_line=True), "$quiet")
    )


def meter(seen: int, block_size: int, *, cut: bool) -> Content:
    """Return how full the context window is; `cut` says that the text is longer."""
    full = round(METER * seen / block_size)
    colour = "$accent" if cut else "$primary"
    return Content.assemble(
        ("━" * full, colour), ("╌" * (METER - full), "$line"),
        f" {'last ' if cut else ''}{seen:,} of {block_size:,}",
    )  # fmt: skip
