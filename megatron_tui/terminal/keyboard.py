"""Hand out keys one at a time, and tell those that a hand pressed from those of a paste.

Textual passes a key on as soon as it comes. What it does (move the focus, open a dialog) happens in
several queues, and a key that is close behind would still go to where the one before came from.
Here it waits until everything that followed from the one before has come to rest.

A paste that the terminal does not announce arrives as keys, and one of them may mean anything. So
an action that cannot be taken back is marked `irreversible`, and the app does not let it follow
from a key that came together with others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from textual.actions import ActionParseResult, parse
from textual.app import App
from textual.dom import DOMNode
from textual.events import Key
from textual.widgets import Button

from megatron_tui.textual_patches.chunks import HAND_SECONDS, Chunk, chunk_of
from megatron_tui.textual_patches.key_names import complete_key_names
from megatron_tui.textual_patches.message_queue import has_work

PATIENCE_SECONDS = 2.0
"""How long a key waits at most for what the one before has begun."""
QUICK_LOOKS = 200

Action = TypeVar("Action", bound=Callable[..., Any])


_irreversible: set[object] = set()
_answers: set[object] = set()


def irreversible(action: Action) -> Action:
    """Mark the action of a key as one that cannot be taken back."""
    _irreversible.add(action)
    return action


def answers(action: Action) -> Action:
    """Mark the action of a dialog that ends it; the keys that opened the dialog must not do it."""
    _answers.add(action)
    return action


class Keyboard:
    """The keys of an app, in their order.

    Args:
        app: whose keys they are.
        ready: whether there is a screen to take them.
    """

    def __init__(self, app: App[Any], ready: Callable[[], bool]) -> None:
        complete_key_names()
        self._app, self._ready = app, ready
        self._waiting: deque[Key] = deque()
        self._passed: list[Key] = []
        """Keys whose turn has come, on their way through the app."""
        self._handed: Key | None = None
        """The key that was let through last."""
        self._task: asyncio.Task[None] | None = None

    def holds(self, key: Key) -> bool:
        """Whether a key that came is kept until its turn; it is posted to the app once more then.

        Called by the app while it takes in the key.
        """
        if key in self._passed:
            self._passed.remove(key)
            self._handed = key
            return False
        at_once = not self._waiting and (
            self._at_rest() if self._task is None else self._goes_on(key)
        )
        if at_once:
            self._handed = key
        else:
            self._waiting.append(key)
        if self._task is None:
            self._task = asyncio.create_task(self._hand_out())
        return not at_once

    def forget(self) -> None:
        """Something else than a key was used: what comes of it does not come of a key."""
        self._handed = None

    @property
    def burst(self) -> int | None:
        """The number of the burst that the last key belongs to; one key may be a burst."""
        return self._chunk.burst if self._chunk is not None else None

    async def permits(
        self,
        action: str | ActionParseResult,
        node: DOMNode,
        namespaces: Mapping[str, DOMNode] | None = None,
    ) -> bool:
        """Whether an action, of `node` unless it names another, may follow from the last key."""
        namespace, name, _ = parse(action) if isinstance(action, str) else action
        owner = (namespaces or {}).get(namespace) or self._named(namespace) or node
        method = getattr(getattr(owner, f"action_{name}", None), "__func__", None)
        if method in _irreversible or (isinstance(owner, Button) and name == "press"):
            return await self.by_hand()  # a button answers a question, or starts a run
        opened_in = getattr(owner, "opened_in", None)
        return method not in _answers or opened_in is None or opened_in != self.burst

    def _named(self, namespace: str) -> DOMNode | None:
        """Return the node that an action names, as in ``app.quit``."""
        places = {"app": self._app, "screen": self._app.screen, "focused": self._app.focused}
        return places.get(namespace)

    async def by_hand(self) -> bool:
        """Whether the last key came alone: waits for as long as others would follow it."""
        chunk = self._chunk
        if chunk is None:
            return True
        if not chunk.hurried:
            await asyncio.sleep(HAND_SECONDS)
        return not chunk.hurried

    @property
    def _chunk(self) -> Chunk | None:
        return chunk_of(self._handed)

    async def _hand_out(self) -> None:
        """Let the last key take effect, and then one after the other."""
        try:
            while True:
                await self._come_to_rest()
                if not self._waiting:
                    return
                self._pass_on()
                while self._waiting and self._goes_on(self._waiting[0]):
                    self._pass_on()
        finally:
            self._task = None

    def _pass_on(self) -> None:
        key = self._handed = self._waiting.popleft()
        if self._app.post_message(key):
            self._passed.append(key)

    def _goes_on(self, key: Key) -> bool:
        """Whether a key is one more letter for the field that the last one was for."""
        field, before = self._app.focused, self._handed
        return (
            before is not None
            and field is not None
            and field.check_consume_key(before.key, before.character)
            and field.check_consume_key(key.key, key.character)
        )

    async def _come_to_rest(self) -> None:
        """Wait until nothing more follows from what came before."""
        looks, end = 0, time.monotonic() + PATIENCE_SECONDS
        while not self._ready() or time.monotonic() < end:
            if self._at_rest():
                await self._probe()
                if self._at_rest():
                    return
            looks += 1
            # A handful of turns is what a key takes; a handler that waits for a disk, longer.
            await asyncio.sleep(0 if looks < QUICK_LOOKS else 0.005)

    def _at_rest(self) -> bool:
        """Whether no message waits anywhere on the screen in front, and that screen is made."""
        app = self._app
        if not (self._ready() and app.screen_stack and app.screen.is_mounted):
            return False
        return not any(has_work(node) for node in (app, *app.screen.walk_children(with_self=True)))

    async def _probe(self) -> None:
        """Wait until those that a key passes through have done what they are at."""
        screen = self._app.screen
        inner = screen.focused or screen
        for node in inner.ancestors_with_self:
            done = asyncio.Event()
            if node.call_later(done.set):
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(done.wait(), PATIENCE_SECONDS)
