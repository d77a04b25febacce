"""How characters and their probabilities are written in a list: names, bits and bars."""

from __future__ import annotations

import math

from megatron_model.util.text import safe

LN2 = math.log(2)


def character_name(character: str) -> str:
    """Return one character as it can be read in a list."""
    names = {"\n": "↵ line end", " ": "␣ space", "\t": "⇥ tab"}
    if character in names:
        return names[character]
    shown = safe(character)
    return shown if shown == character and shown.isprintable() else code_points(character)


def code_points(text: str) -> str:
    """Return the code points of a text, such as ``U+00E9``."""
    return " ".join(f"U+{ord(character):04X}" for character in text)


def bits(log_probability: float) -> float:
    """Return the surprise of a natural logarithm of a probability, in bits."""
    return -log_probability / LN2


def bar(share: float, width: int) -> str:
    """Return a bar as long as a share of a width, to an eighth of a cell."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + ("", "▏", "▎", "▍", "▌", "▋", "▊", "▉")[rest]
