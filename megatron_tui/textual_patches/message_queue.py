"""Whether a node of Textual still has something to do.

Textual tells in public how many messages wait, but not of the one that it took out of the queue to
compare it with the next, nor of callbacks.
"""

from __future__ import annotations

from textual.message_pump import MessagePump


def has_work(node: MessagePump) -> bool:
    """Whether a message or a callback waits for its turn."""
    waits = node.message_queue_size or node._pending_message is not None
    return bool(waits or node._next_callbacks)
