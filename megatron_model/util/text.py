"""Makes text from outside (corpora, samples, file names, exceptions) harmless to a terminal.

What a terminal obeys is harmful (controls), and what makes a reader see another text than is there:
overrides and isolates of direction, which move what stands beside them (our frames too), and tags,
in which a whole sentence can be hidden. What is merely invisible is not: joiners, non-joiners and
zero-width spaces are needed by Persian, Indic scripts, Khmer, Thai and emoji, variation selectors
and the soft hyphen (which a terminal shows) by others. None of these obeys or moves anything, and
Textual gives each the width that terminals do: none, and one for the soft hyphen. That there are
any in a corpus is said where it is looked through; see data/report.py.
"""

from __future__ import annotations

import os
import unicodedata

_REPLACEMENT = 0xFFFD
_HARMFUL = [
    *range(0x00, 0x09),  # C0 controls but tab and line feed
    *range(0x0B, 0x20),
    *range(0x7F, 0xA0),  # DEL and the C1 controls, CSI among them
    0x061C,  # Arabic letter mark
    *range(0x200E, 0x2010),  # direction marks
    *range(0x2028, 0x202F),  # line and paragraph separators, bidi embeddings and overrides
    *range(0x2065, 0x2070),  # bidi isolates, and deprecated switches of shaping and digits
    0xFEFF,  # byte-order mark: never a part of a text, so it is to be seen
    *range(0xD800, 0xE000),  # lone surrogates
    *range(0xE0000, 0xE0080),  # tags: hidden text, but for three flags, which show as black ones
]
_TABLE = dict.fromkeys(_HARMFUL, _REPLACEMENT)


def with_line_feeds(text: str) -> str:
    """Return `text` with every line end made ``\\n``, as corpora are read."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def cut_to_bytes(text: str, most: int) -> str:
    """Return the beginning of `text` that takes `most` bytes at most as (part of) a file name.

    Cut between characters, and not before a mark that belongs to the one before it.
    """
    if len(os.fsencode(text)) <= most:
        return text
    cut = most
    while len(os.fsencode(text[:cut])) > most:
        cut -= 1
    while cut and unicodedata.combining(text[cut]):
        cut -= 1
    return text[:cut]


def safe(text: str, *, one_line: bool = False) -> str:
    """Return `text` with everything a terminal would obey replaced by U+FFFD.

    Tabs and line feeds stay, unless `one_line` folds all white space into single spaces.
    """
    if not (text.isascii() and text.isprintable()):
        text = text.translate(_TABLE)
    return " ".join(text.split()) if one_line else text


def plural(number: int, word: str) -> str:
    """Return ``1 step``, ``2 steps``."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def bytes_text(number: float) -> str:
    """Return a size as people read it: ``512 B``, ``1.5 MiB``."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while number >= 1000 and len(units) > 1:
        number /= 1024
        del units[0]
    digits = 0 if units[0] == "B" or number >= 100 else 1
    return f"{number:,.{digits}f} {units[0]}"


def duration_text(seconds: float) -> str:
    """Return a stretch of time by its two largest units: ``8s``, ``3m 05s``, ``2h 10m``."""
    for name, small, size in (("d", "h", 86_400), ("h", "m", 3_600), ("m", "s", 60)):
        if seconds >= size:
            part = {"h": 3_600, "m": 60, "s": 1}[small]
            return f"{seconds // size:,.0f}{name} {seconds % size // part:02.0f}{small}"
    return f"{seconds:.0f}s"
