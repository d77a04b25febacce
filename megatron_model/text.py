"""Makes text from outside (corpora, samples, file names, exceptions) harmless to a terminal."""

from __future__ import annotations

_REPLACEMENT = 0xFFFD
_HARMFUL = [
    *range(0x00, 0x09),  # C0 controls but tab and line feed
    *range(0x0B, 0x20),
    *range(0x7F, 0xA0),  # DEL and the C1 controls, CSI among them
    0x061C,  # Arabic letter mark
    *range(0x200B, 0x2010),  # zero-width characters and direction marks
    *range(0x2028, 0x202F),  # line and paragraph separators, bidi embeddings and overrides
    *range(0x2060, 0x2070),  # invisible operators, bidi isolates
    0xFEFF,
    *range(0xD800, 0xE000),  # lone surrogates
    *range(0xE0000, 0xE0080),  # tags
]
_TABLE = dict.fromkeys(_HARMFUL, _REPLACEMENT)


def safe(text: str, *, one_line: bool = False) -> str:
    """Return `text` with everything a terminal would obey replaced by U+FFFD.

    Tabs and line feeds stay, unless `one_line` folds all white space into single spaces.
    """
    if not (text.isascii() and text.isprintable()):
        text = text.translate(_TABLE)
    return " ".join(text.split()) if one_line else text
