"""Wall time spent, without the pauses."""

from __future__ import annotations

from collections.abc import Callable


class Stopwatch:
    """Counts seconds of `clock` while it runs, on top of what was counted before."""

    def __init__(self, clock: Callable[[], float], *, before: float = 0.0) -> None:
        self._clock = clock
        self._counted = before
        self._since: float | None = clock()

    def seconds(self) -> float:
        """Return the seconds counted so far."""
        running = self._clock() - self._since if self._since is not None else 0.0
        return self._counted + running

    def pause(self) -> None:
        """Stop counting."""
        self._counted, self._since = self.seconds(), None

    def resume(self) -> None:
        """Count on."""
        if self._since is None:
            self._since = self._clock()
