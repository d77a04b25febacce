"""Names and characters of keys, where Textual's public table has gaps.

Textual gives some keys names of its own and then does not know their characters: it would offer
``/`` as a key where a slash is typed.
"""

from __future__ import annotations

from textual.keys import KEY_TO_UNICODE_NAME, _character_to_key

_MISSING = {
    "slash": "SOLIDUS", "backslash": "REVERSE SOLIDUS", "at": "COMMERCIAL AT",
    "minus": "HYPHEN-MINUS", "plus": "PLUS SIGN", "underscore": "LOW LINE",
}  # fmt: skip


def complete_key_names() -> None:
    """Tell Textual the characters of all keys that it has names for."""
    KEY_TO_UNICODE_NAME.update(_MISSING)


def key_name(key: str) -> str:
    """Return Textual's name of a key: ``question_mark`` for ``?``; other names stay."""
    return _character_to_key(key) if len(key) == 1 else key
