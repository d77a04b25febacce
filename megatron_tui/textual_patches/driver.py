"""Write past the screen: Textual's driver can be written to, but the app keeps it to itself."""

from __future__ import annotations

from typing import Any

from textual.app import App


def write_to_terminal(app: App[Any], sequence: str) -> None:
    """Send an escape sequence behind what was drawn, if there is a terminal."""
    if app._driver is not None:
        app._driver.write(sequence)
