"""The flipbook: one prompt through all checkpoints of a run, a page each, changes lit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.content import Content

from megatron_model.config.fields import SamplingConfig
from megatron_model.run.folder import RunFolder
from megatron_model.util.files import write_asked_for
from megatron_tui.generation.insight_panels import ProblemLabel
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.services.workbench import Workbench
from megatron_tui.ui.heat_view import PLAIN, HeatView
from megatron_tui.ui.notice import notify
from megatron_tui.ui.panel import Label, Panel
from megatron_tui.ui.pick import AskPath, write_where

if TYPE_CHECKING:
    from megatron_model.analysis.flipbook import Page

CHANGED = "heat--surprise-3"
PLAY_SECONDS = 0.8


class PagePanel(Panel):
    """One page."""

    EXPLANATION: ClassVar[str] = (
        "What each checkpoint of the run writes after the prompt, with the same seed and settings. "
        "Words that the page before had not are lit. Comma and full stop turn the pages, space "
        "plays them; w writes the film: FILE.svg plays by itself, FILE.cast in asciinema, FILE.txt "
        "is text."
    )


class FlipbookScreen(JobScreen["Page"]):
    """Pages that are turned by keys, or by themselves."""

    CSS_PATH = "insight.tcss"
    AUTO_FOCUS = "HeatView"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("full_stop,right_square_bracket", "turn(1)", "Page", key_display=".",
                tooltip="The next page", id="flipbook.next"),
        Binding("comma,left_square_bracket", "turn(-1)", "Page", key_display=",",
                tooltip="The page before", id="flipbook.previous"),
        Binding("space", "play", "Play", tooltip="Turn the pages by themselves, or stop that",
                id="flipbook.play"),
        Binding("w", "export", "Export", tooltip="Write the film: as SVG, asciinema cast or text",
                id="flipbook.export"),
    ]  # fmt: skip

    def __init__(
        self, workbench: Workbench, chosen: ModelChoice, prompt: str, sampling: SamplingConfig
    ) -> None:
        super().__init__(workbench)
        self._chosen, self._prompt, self._sampling = chosen, prompt, sampling
        self.pages: list[Page] = []
        self.number = -1
        """The page on show, by its place among all; negative before there is one."""

    def compose_body(self) -> ComposeResult:
        """The page over its place in the book."""
        with PagePanel("flipbook", id="reading"):
            yield ProblemLabel()
            yield HeatView()
        yield Label(id="legend")

    def begin(self) -> None:
        """Write every page."""
        self._player = self.set_interval(PLAY_SECONDS, lambda: self._go_to(self.number + 1),
                                         pause=True)  # fmt: skip
        self.playing = False
        folder, prompt, sampling = self._chosen.folder, self._prompt, self._sampling
        self.study([], lambda: _pages(folder, prompt, sampling))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer what can be done now."""
        return bool(self.pages) if action in ("turn", "play", "export") else True

    def take(self, items: list[Page]) -> None:
        """Put pages into the book; the newest is shown until a person turns back."""
        follows = self.number == len(self.pages) - 1
        self.pages += items
        if follows:
            self._go_to(len(self.pages) - 1)

    def _go_to(self, number: int) -> None:
        if not self.pages:
            return
        self.number = number % len(self.pages)
        page, view = self.pages[self.number], self.query_one(HeatView)
        changed = set(page.changed)
        tints = [CHANGED if place in changed else PLAIN for place in range(len(page.text))]
        view.restart()
        view.append(page.text, tints)
        self.show_state()

    def show_state(self) -> None:
        """Step and loss of the page, its place in the book, and what is wrong."""
        panel = self.query_one("#reading", Panel)
        self.query_one(ProblemLabel).show_problem(self.problem)
        if not self.pages:
            panel.set_title(f"flipbook of {self._chosen.run}")
            return
        page = self.pages[self.number]
        loss = "" if page.val_loss is None else f" · validation {page.val_loss:.4f}"
        panel.set_title(f"{self._chosen.run} · step {page.step:,}{loss}")
        writing = " …" if self.busy else ""
        panel.set_subtitle(f"page {self.number + 1} of {len(self.pages)}{writing}")
        marks = [
            (f" {one.step:,} ", "bold reverse" if place == self.number else "$quiet")
            for place, one in enumerate(self.pages)
        ]
        self.query_one("#legend", Label).show(Content.assemble(*marks[max(0, self.number - 6) :]))
        self.refresh_bindings()

    def action_turn(self, change: int) -> None:
        """Turn to another page."""
        self._go_to(max(0, min(len(self.pages) - 1, self.number + change)))

    def action_play(self) -> None:
        """Turn the pages by themselves, or stop that."""
        self.playing = not self.playing
        if self.playing:
            self._player.resume()
        else:
            self._player.pause()

    def action_export(self) -> None:
        """Write the film into a file."""

        def saved(path: str | None) -> None:
            if path is not None:
                notify(self, f"Saved in {path}")

        name = f"{self._chosen.run}-flipbook.svg"
        self.app.push_screen(AskPath("Write the film as", name, self._save_as), saved)

    def _save_as(self, typed: str, over: bool) -> str:
        from megatron_model.interop.film import EXPORTS, WRITERS, film_of_pages

        form = WRITERS.get(Path(typed.strip()).suffix.lower())
        if form is None:
            return f"The name must end in {EXPORTS}."
        film = film_of_pages(self.pages, self._prompt, self._chosen.run)
        data = form(film).encode("utf-8", "replace")
        return write_where(typed, over, lambda path: write_asked_for(path, data))


def _pages(folder: RunFolder, prompt: str, sampling: SamplingConfig) -> Iterator[Page]:
    from megatron_model.analysis.flipbook import turn_pages

    return turn_pages(folder, prompt, sampling)
