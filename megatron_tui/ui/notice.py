"""A notice in the corner of the screen: plain text, wherever it comes from."""

from __future__ import annotations

from typing import Protocol

from textual.widget import Widget

from megatron_model.util.text import safe

SECONDS = 8.0
"""How long a notice stays: a copied command takes a while to read."""


class Say(Protocol):
    """Shows a notice; what a controller is given instead of a widget."""

    def __call__(self, text: str, *, error: bool = False, title: str = "") -> None:
        """Show a notice for a few seconds; an `error` stands out."""


def notify(widget: Widget, text: str, *, error: bool = False, title: str = "") -> None:
    """Show a notice for a few seconds; an `error` stands out."""
    widget.notify(
        safe(text),
        title=title,
        severity="error" if error else "information",
        timeout=SECONDS,
        markup=False,
    )
