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
