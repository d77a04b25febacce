"""Find things out in a thread, and take them in on the thread of a widget."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

from textual.dom import DOMNode
from textual.worker import get_current_worker

Found = TypeVar("Found")


class InBackground(Protocol):
    """Runs something in a thread and hands over what it finds; tests run it at once."""

    def __call__(
        self,
        find: Callable[[], Iterable[Found]],
        take: Callable[[Found], object],
        done: Callable[[], object] | None = None,
        *,
        group: str,
        exclusive: bool = False,
    ) -> None:
        """Call `find` in a thread, and `take` here with each thing that it yields.

        Args:
            find: yields what it finds; it is stopped by not being asked for more.
            take: called on the caller's thread.
            done: called there after the last thing, unless the work was cancelled.
            group: names the kind of work.
            exclusive: whether it cancels other work of its group.
        """


def background_of(node: DOMNode) -> InBackground:
    """Return the background of a widget or screen: its work is cancelled when `node` goes."""

    def in_background(
        find: Callable[[], Iterable[Found]],
        take: Callable[[Found], object],
        done: Callable[[], object] | None = None,
        *,
        group: str,
        exclusive: bool = False,
    ) -> None:
        def work() -> None:
            worker = get_current_worker()
            for found in find():
                if worker.is_cancelled:
                    return
                node.call_later(take, found)
            if done is not None and not worker.is_cancelled:
                node.call_later(done)

        node.run_worker(work, thread=True, group=group, exclusive=exclusive, exit_on_error=False)

    return in_background
