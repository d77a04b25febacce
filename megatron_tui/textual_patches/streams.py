"""Have Textual draw on a stream of our choice.

Its drivers take none: they draw on what ``sys.__stderr__`` is when the app starts, and learn the
size of the terminal from the descriptor of ``sys.__stdout__``.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper


def draw_on(stream: TextIOWrapper) -> None:
    """Have the app that is started next draw on this stream; call before it is made.

    A crash is printed there too, after Textual has put the terminal back.
    """
    sys.__stderr__ = sys.__stdout__ = sys.stderr = stream  # type: ignore[misc]
