"""A view over the Generation screen: it gives the service a job and shows what comes of it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Generic, TypeVar

from textual.binding import Binding, BindingType
from textual.content import Content

from megatron_model.util.text import safe
from megatron_tui.services.feed import JobFeed
from megatron_tui.services.model_cache import Weights
from megatron_tui.services.workbench import Workbench
from megatron_tui.shell.workbench_screen import WorkbenchScreen

POLL_SECONDS = 0.1

Item = TypeVar("Item")
"""What the jobs of a view yield."""


class JobScreen(WorkbenchScreen, Generic[Item]):
    """Escape leads back; closing it ends its job."""

    MODE = "generation"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "close", "Back", tooltip="Back to the text", id="view.close"),
    ]

    def __init__(self, workbench: Workbench) -> None:
        super().__init__(workbench)
        self.feed: JobFeed[Item] | None = None

    @abstractmethod
    def begin(self) -> None:
        """Give the service its first job."""

    @abstractmethod
    def take(self, items: list[Item]) -> None:
        """Show what came."""

    @abstractmethod
    def show_state(self) -> None:
        """Show how far the job is."""

    def on_mount(self) -> None:
        """Poll only while there is something to poll for."""
        self._timer = self.set_interval(POLL_SECONDS, self.poll, pause=True)
        self.begin()

    def on_unmount(self) -> None:
        """End the job: its items would be shown nowhere."""
        self.action_halt()

    def study(
        self,
        weights: Sequence[Weights],
        work: Callable[..., Iterator[Item]],
        *,
        refresh: bool = False,
    ) -> None:
        """Give the service another job; the one before ends."""
        self.feed = self.workbench.generation.study(weights, work, refresh=refresh)
        self._timer.resume()
        self.poll()

    def poll(self) -> None:
        """Show what came since the last look."""
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
    def busy(self) -> bool:
        """Whether more may come."""
        return self.feed is not None and self.feed.busy

    @property
    def problem(self) -> Content:
        """Why there is nothing to show, if that is so; else nothing."""
        if self.feed is not None and self.feed.phase == "failed":
            return Content.styled(safe(self.feed.error), "$error")
        return Content("")

    def action_halt(self) -> None:
        """End the job within one item."""
        if self.feed is not None:
            self.feed.cancel()

    def action_close(self) -> None:
        """Go back."""
        if self.is_active:
            self.dismiss()
