"""What the terminal can show, as far as its environment tells."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

ASCII_VARIABLE = "MEGATRON_ASCII"
"""Set to 1 to draw with plain characters, to 0 to draw with braille whatever the terminal says."""

_PLAIN = ("linux", "dumb", "vt", "cons")
"""Beginnings of TERM of terminals whose fonts have no braille."""


def draws_braille(
    environment: Mapping[str, str] | None = None, encoding: str | None = None
) -> bool:
    """Whether curves can be drawn in braille characters."""
    variables = os.environ if environment is None else environment
    wish = variables.get(ASCII_VARIABLE, "")
    if wish in ("0", "1"):
        return wish == "0"
    if variables.get("TERM", "").startswith(_PLAIN):
        return False
    if encoding is None:
        encoding = getattr(sys.__stderr__, "encoding", None) or "utf-8"
    return encoding.lower().replace("-", "").replace("_", "") in ("utf8", "utf16", "utf32")


def has_colours(environment: Mapping[str, str] | None = None) -> bool:
    """Whether colours may be used; see https://no-color.org."""
    return not (os.environ if environment is None else environment).get("NO_COLOR")
