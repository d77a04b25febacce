"""Tell with each key what else the terminal sent in the same read.

Textual's driver has no public place between its parser and the keys, and a key event does not say
what it was read together with. So the driver's parser is replaced by one that says it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from textual._xterm_parser import XTermParser
from textual.drivers import linux_driver
from textual.events import Key
from textual.message import Message

HAND_SECONDS = 0.03
"""Keys that are closer together were not pressed one after the other."""


@dataclass(eq=False)
class Chunk:
    """What was read from the terminal at once."""

    at: float
    burst: int
    """Number of the burst it belongs to: chunks that follow each other closely are one."""
    hurried: bool
    """Whether its keys came together with others."""


class MarkingParser(XTermParser):
    """Reads the terminal; its keys tell with what they came."""

    now: ClassVar[Callable[[], float]] = time.monotonic

    def __init__(self, debug: bool = False) -> None:
        super().__init__(debug)
        self._newest: Chunk | None = None

    def feed(self, data: str) -> Iterable[Message]:
        """Return what was read, each key with its chunk."""
        found = list(super().feed(data))
        keys = [message for message in found if isinstance(message, Key)]
        if keys:
            chunk = self._chunk(len(keys))
            for key in keys:
                setattr(key, _CHUNK, chunk)
        return found

    def tick(self) -> Iterable[Message]:
        """Return the escape that nothing followed."""
        for message in super().tick():
            if isinstance(message, Key):
                setattr(message, _CHUNK, self._chunk(1))
            yield message

    def _chunk(self, keys: int) -> Chunk:
        now, last = type(self).now(), self._newest
        close = last is not None and now - last.at < HAND_SECONDS
        if close and last is not None:
            last.hurried = True
        number = 0 if last is None else last.burst + (not close)
        self._newest = Chunk(now, number, hurried=close or keys > 1)
        return self._newest


_CHUNK = "megatron_chunk"


def chunk_of(key: Key | None) -> Chunk | None:
    """Return what a key came with; None for one that no terminal sent."""
    return getattr(key, _CHUNK, None)


def read_in_chunks() -> None:
    """Have Textual's driver read the terminal with a `MarkingParser`; call before the app runs."""
    vars(linux_driver)["XTermParser"] = MarkingParser
