"""The pieces of a page to read: text made harmless and visible, numbers as people read them."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence

from megatron_model.util.text import safe

MISSING = "–"
_PICTURES = {0x7F: "\u2421", **{code: chr(0x2400 + code) for code in range(0x20)}}


def visible(text: str) -> str:
    """Return text for HTML: escaped, with what a browser would obey or swallow made visible."""
    return "".join(
        f'<span class="ctl">{_name(character)}</span>'
        if character in "\n\t"
        or safe(character) != character
        or unicodedata.category(character) in ("Cf", "Cn", "Co")
        else html.escape(character)
        for character in text
    )


def line(text: str) -> str:
    """Return text for HTML in one line: what `visible` returns, without white space at its ends."""
    return visible(text.strip(" "))


def plain(text: str) -> str:
    """Return text for an attribute or a title, where no element can stand."""
    return html.escape(safe(text, one_line=True))


def character(one: str) -> str:
    """Return one character of an alphabet, to be seen even where it is white."""
    if one == "\n":
        return "⏎"
    if one == "\t":
        return "⇥"
    if one.isspace() and safe(one) == one:
        return "␣" if one == " " else f"{ord(one):04X}"
    shown = visible(one)
    # A mark that stands on another character needs one to stand on.
    return f"\u25cc{shown}" if unicodedata.combining(one) else shown


def _name(one: str) -> str:
    return _PICTURES.get(ord(one)) or f"U+{ord(one):04X}"


def whole(number: float | None) -> str:
    """Return a whole number with its thousands apart."""
    return MISSING if number is None or not math.isfinite(number) else f"{number:,.0f}"


def short(number: float) -> str:
    """Return a number with few digits, as on an axis: ``1.2k``, ``0.03``, ``3e-4``."""
    if not math.isfinite(number):
        return MISSING
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= factor:
            return f"{number / factor:.4g}{letter}"
    text = f"{number:.4g}"
    if number and abs(number) < 1e-2:
        head, _, power = f"{number:.3e}".partition("e")
        return f"{float(head):g}e{int(power)}"
    return text


def loss(number: float | None) -> str:
    """Return a loss with three decimals; a huge one would fill the line."""
    if number is None or not math.isfinite(number):
        return MISSING
    return f"{number:.3f}" if abs(number) < 1e4 else f"{number:.3g}"


def duration(seconds: float) -> str:
    """Return the two largest units: ``8.2 s``, ``1 min 48 s``, ``3 h 05 min``."""
    if not 0 <= seconds < 1e11:
        return MISSING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def size(count: float) -> str:
    """Return bytes in binary units."""
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if abs(count) < 1000 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """Return a table of cells that are HTML; the first of each row names it."""
    titles = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and what they are, in a list; both are HTML."""
    rows = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{rows}</dl>'


def section(title: str, body: str, note: str = "") -> str:
    """Return a part of the page: its title, and a sentence, beside what it holds."""
    words = f"<p>{note}</p>" if note else ""
    return (
        f'<section><header><h2>{title}</h2>{words}</header><div class="body">{body}</div></section>'
    )
