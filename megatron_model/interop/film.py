"""Films of a terminal: rows of coloured text as an animated SVG, an asciinema cast, or text."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from typing import NamedTuple

from megatron_model.analysis.flipbook import Page
from megatron_model.util.text import safe

CELL, LINE, SIZE = 8.4, 18, 14
"""Width of a character, height of a row, height of the letters, in pixels of the SVG."""
INK, PAPER = "#d8dee9", "#0d1117"
LIT, QUIET, PROMPT = "#5f4b1e", "#7d8794", "#4cc3b0"
PAGE_SECONDS = 1.2


class Span(NamedTuple):
    """A stretch of a row in one style; colours are ``#rrggbb``, or empty for the usual ones."""

    text: str
    colour: str = ""
    background: str = ""
    bold: bool = False
    underline: bool = False
    cells: int = 0
    """Columns it takes, where they are not as many as its characters."""

    @property
    def width(self) -> int:
        """Columns it takes."""
        return self.cells or len(self.text)


class Frame(NamedTuple):
    """What is on the screen for a while."""

    rows: tuple[tuple[Span, ...], ...]
    seconds: float


class Film(NamedTuple):
    """Frames of one size, in characters."""

    title: str
    width: int
    height: int
    frames: Sequence[Frame]


def film_of_pages(pages: Sequence[Page], prompt: str, title: str, *, width: int = 80) -> Film:
    """Return a flipbook as a film: step and loss over each page, what changed lit."""
    frames = []
    for number, page in enumerate(pages, 1):
        head = f"step {page.step:,}"
        if page.val_loss is not None:
            head += f"   validation {page.val_loss:.4f}"
        place = f"{number} of {len(pages)}"
        gap = " " * max(1, width - len(head) - len(place))
        top = (Span(head, bold=True), Span(gap), Span(place, QUIET))
        rows = [top, (), *_page_rows(page, len(prompt), width)]
        last = number == len(pages)
        frames.append(Frame(tuple(rows), PAGE_SECONDS * (3 if last else 1)))
    height = max((len(frame.rows) for frame in frames), default=1)
    return Film(safe(title, one_line=True), width, height, frames)


def _page_rows(page: Page, prompt: int, width: int) -> list[tuple[Span, ...]]:
    changed = set(page.changed)
    rows: list[tuple[Span, ...]] = []
    row: list[Span] = []
    column = 0
    for place, character in enumerate(safe(page.text)):
        if character == "\n" or column == width:
            rows.append(tuple(row))
            row, column = [], 0
        if character == "\n":
            continue
        shown = " " if character == "\t" else character
        colour, lit = PROMPT if place < prompt else "", LIT if place in changed else ""
        last = row[-1] if row else None
        if last is not None and (last.colour, last.background) == (colour, lit):
            row[-1] = last._replace(text=last.text + shown)
        else:
            row.append(Span(shown, colour, lit))
        column += 1
    return [*rows, tuple(row)]


def as_text(film: Film) -> str:
    """Return the frames one below the other, without colours."""
    pages = ["\n".join(_plain(row) for row in frame.rows).rstrip("\n") for frame in film.frames]
    return f"\n\n{'-' * film.width}\n".join(pages) + "\n"


def _plain(row: Iterable[Span]) -> str:
    return "".join(span.text for span in row).rstrip()


def as_cast(film: Film) -> str:
    """Return an asciinema recording, version 2; each frame draws the rows that changed."""
    header = {"version": 2, "width": film.width, "height": film.height, "title": film.title}
    lines = [json.dumps(header, ensure_ascii=False)]
    time, before = 0.0, tuple[tuple[Span, ...], ...]()
    for number, frame in enumerate(film.frames):
        data = "" if number else "\x1b[?25l\x1b[2J"
        for place in range(film.height):
            row = frame.rows[place] if place < len(frame.rows) else ()
            if not number or row != (before[place] if place < len(before) else ()):
                data += f"\x1b[{place + 1};1H" + "".join(map(_coded, row)) + "\x1b[0m\x1b[K"
        lines.append(json.dumps([round(time, 3), "o", data], ensure_ascii=False))
        time, before = time + frame.seconds, frame.rows
    lines.append(json.dumps([round(time, 3), "o", ""]))
    return "\n".join(lines) + "\n"


def _coded(span: Span) -> str:
    codes = ["0"]
    codes += ["1"] * span.bold + ["4"] * span.underline
    for kind, colour in ((38, span.colour), (48, span.background)):
        if colour:
            red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
            codes.append(f"{kind};2;{red};{green};{blue}")
    return f"\x1b[{';'.join(codes)}m{span.text}"


def as_svg(film: Film) -> str:
    """Return one SVG that plays the frames over and over, by itself and without a script.

    The frames lie side by side, and a step of an animation moves the next one into sight. A row
    that several frames have in common is stored once.
    """
    width, height = round(film.width * CELL), film.height * LINE
    paper = _commonest_background(film)
    styles: dict[tuple[str, bool, bool], str] = {}
    rows: dict[tuple[Span, ...], str] = {}
    drawn: list[str] = []
    shown: list[str] = []
    for number, frame in enumerate(film.frames):
        uses = []
        for place, row in enumerate(frame.rows[: film.height]):
            if not row:
                continue
            if row not in rows:
                rows[row] = f"r{len(rows)}"
                drawn.append(f'<g id="{rows[row]}">{_drawn(row, paper, styles)}</g>')
            uses.append(f'<use href="#{rows[row]}" y="{place * LINE}"/>')
        shown.append(f'<g transform="translate({number * width} 0)">{"".join(uses)}</g>')
    classes = "".join(
        f".{name}{{fill:{colour or INK}{';font-weight:bold' * bold}"
        f"{';text-decoration:underline' * underline}}}"
        for (colour, bold, underline), name in styles.items()
    )
    whole = sum(frame.seconds for frame in film.frames) or 1.0
    stops, time = [], 0.0
    for number, frame in enumerate(film.frames):
        stops.append(f"{100 * time / whole:.3f}%{{transform:translateX({-number * width}px)}}")
        time += frame.seconds
    last = len(film.frames) - 1
    stops.append(f"100%{{transform:translateX({-last * width}px)}}")
    style = (
        f"text{{font:{SIZE}px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;"
        f"white-space:pre}}{classes}@keyframes play{{{''.join(stops)}}}"
        f".film{{animation:play {whole:.2f}s steps(1,end) infinite}}"
    )
    edge = 10
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" '
        f'viewBox="0 0 {width + 2 * edge} {height + 2 * edge}" '
        f'width="{width + 2 * edge}" height="{height + 2 * edge}">'
        f"<title>{escape(film.title)}</title><style>{style}</style><defs>{''.join(drawn)}</defs>"
        f'<rect width="100%" height="100%" rx="8" fill="{paper or PAPER}"/>'
        f'<svg x="{edge}" y="{edge}" width="{width}" height="{height}">'
        f'<g class="film">{"".join(shown)}</g></svg></svg>\n'
    )


def _commonest_background(film: Film) -> str:
    """Return the background that need not be drawn."""
    cells: Counter[str] = Counter()
    for frame in film.frames:
        for row in frame.rows:
            for span in row:
                cells[span.background] += span.width
    return cells.most_common(1)[0][0] if cells else ""


def _drawn(row: Iterable[Span], paper: str, styles: dict[tuple[str, bool, bool], str]) -> str:
    parts: list[str] = []
    column = 0
    for span in row:
        x, wide = round(column * CELL, 1), round(span.width * CELL, 1)
        column += span.width
        if span.background not in ("", paper):
            parts.append(
                f'<rect x="{x}" width="{wide + 0.3:.1f}" height="{LINE}" fill="{span.background}"/>'
            )
        if span.text.strip():
            style = (span.colour, span.bold, span.underline)
            name = styles.setdefault(style, f"c{len(styles)}")
            parts.append(
                f'<text class="{name}" x="{x}" y="{LINE - 5}" textLength="{wide}">'
                f"{escape(span.text, quote=False)}</text>"
            )
    return "".join(parts)


WRITERS = {".svg": as_svg, ".cast": as_cast, ".txt": as_text}
"""How a film is written, by the ending of the file."""
EXPORTS = "one of " + ", ".join(WRITERS)
