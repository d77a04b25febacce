"""A view over the Generation screen: it gives the service a job and shows what comes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

from textual.binding import Binding, BindingType
from textual.content import Content

from megatron_model.text import safe
from megatron_tui.feed import Feed
from megatron_tui.model_shelf import Weights
from megatron_tui.screens.workbench_screen import WorkbenchScreen
from megatron_tui.workbench import Workbench

POLL_SECONDS = 0.1


class View(WorkbenchScreen):
    """Escape leads back; closing it ends its job."""

    MODE = "generation"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "close", "Back", tooltip="Back to the text", id="view.close"),
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.feed: Feed[Any] | None = None

    def on_mount(self) -> None:
        """Poll only while there is something to poll for."""
        self._timer = self.set_interval(POLL_SECONDS, self.poll, pause=True)
        self.begin()

    def on_unmount(self) -> None:
        """Nobody looks any more."""
        if self.feed is not None:
            self.feed.cancel()

    def begin(self) -> None:
        """Give the service its first job."""

    def take(self, items: list[Any]) -> None:
        """Show what came."""

    def show_state(self) -> None:
        """Show how far the job is."""

    def study(
        self, weights: Sequence[Weights], work: Callable[..., Iterator[Any]], *, anew: bool = False
    ) -> None:
        """Give the service another job; the one before ends."""
        self.feed = self.workbench.generation.study(weights, work, anew=anew)
        self._timer.resume()
        self.poll()

    def poll(self) -> None:
        """Take in what came."""
        feed = self.feed
        if feed is None:
            return
        busy = feed.busy  # asked first: what came before its end is then drained
        items = feed.drain()
        if items:
            self.take(items)
        self.show_state()
        if not busy:
            self._timer.pause()

    @property
    def problem(self) -> Content | None:
        """Why there is nothing to show, if that is so."""
        if self.feed is not None and self.feed.phase == "failed":
            return Content.styled(safe(self.feed.error), "$error")
        return None

    def action_close(self) -> None:
        """Go back."""
        if self.is_active:
            self.dismiss()

    def say(self, text: str, *, wrong: bool = False) -> None:
        """Tell something in passing."""
        severity = "error" if wrong else "information"
        self.notify(safe(text), severity=severity, markup=False)  # type: ignore[arg-type]


def bar(share: float, width: int) -> str:
    """Return a bar as long as a share of a width, to an eighth of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]


def character_name(character: str) -> str:
    """Return one character as it can be read in a list."""
    names = {"\n": "↵ line end", " ": "␣ space", "\t": "⇥ tab"}
    if character in names:
        return names[character]
    shown = safe(character)
    return shown if shown == character and shown.isprintable() else f"U+{ord(character):04X}"
