"""A chart in the page: draws a `Plot` with the theme's colours and repaints only what changed."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.app import RenderResult
from textual.color import Color, ColorParseError
from textual.events import Mount, Resize
from textual.geometry import Region
from textual.strip import Strip
from textual.theme import Theme
from textual.widget import Widget

from megatron_tui.plot.overlays import Span
from megatron_tui.plot.painter import Painter, Plot
from megatron_tui.terminal.capabilities import draws_braille, has_colours

MINIMUM_WIDTH, MINIMUM_HEIGHT = 20, 4


class Chart(Widget):
    """Curves over an x axis; until there is a point to draw, a sentence says what will be here."""

    DEFAULT_CSS = """
    Chart { width: 1fr; height: 1fr; }
    """

    def __init__(self, empty: str, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._empty = empty
        self.ascii_only = not draws_braille()
        self.colours = has_colours()
        self._painter = Painter(ascii_only=self.ascii_only, colours=self.colours)
        self._plot = Plot()
        self._rows: list[list[Span]] = []
        self._strips: list[Strip] = []
        self._styles: dict[str, Style] = {}

    @property
    def plot(self) -> Plot:
        """What is drawn now."""
        return self._plot

    @property
    def text(self) -> str:
        """The characters on show, for tests."""
        return "\n".join("".join(text for text, _ in row) for row in self._rows)

    def show(self, plot: Plot, *, empty: str | None = None) -> None:
        """Draw `plot`, or the sentence `empty` when it holds nothing."""
        self._plot = plot
        if empty is not None:
            self._empty = empty
        self._draw()

    def render(self) -> RenderResult:
        """Return nothing: `render_line` serves the rows that `_draw` made."""
        return ""

    def render_line(self, y: int) -> Strip:
        """Return one finished row."""
        if y < len(self._strips):
            return self._strips[y]
        return Strip.blank(self.size.width, self.rich_style)

    def on_mount(self, _event: Mount) -> None:
        """Follow the theme."""
        self.app.theme_changed_signal.subscribe(self, self._change_theme)

    def on_resize(self, _event: Resize) -> None:
        """Draw for the new size."""
        self._draw(everything=True)

    def _change_theme(self, _theme: Theme) -> None:
        self._styles.clear()
        self._draw(everything=True)

    def _draw(self, *, everything: bool = False) -> None:
        width, height = self.size
        if not width or not height:
            return
        rows = self._make_rows(width, height)
        old, self._rows = self._rows, rows
        if not everything and old == rows:
            return
        if everything or len(old) != len(rows) or len(self._strips) != len(rows):
            self._strips = [self._strip(row, width) for row in rows]
            self.refresh()
            return
        for y, (before, after) in enumerate(zip(old, rows, strict=True)):
            if before != after:
                self._strips[y] = self._strip(after, width)
        dirty = [
            Region(span[0], y, span[1] - span[0], 1)
            for y, (before, after) in enumerate(zip(old, rows, strict=True))
            if (span := changed_span(before, after)) is not None
        ]
        if dirty:
            self.refresh(*dirty)

    def _make_rows(self, width: int, height: int) -> list[list[Span]]:
        if width < MINIMUM_WIDTH or height < MINIMUM_HEIGHT:
            return _sentence("", width, height)
        if self._plot.empty:
            return _sentence(self._empty, width, height)
        try:
            return self._painter.draw(self._plot, width, height)
        except ImportError:
            return _sentence(
                "Charts need plotext 5.3: pip install 'plotext>=5.3.2,<6'", width, height
            )

    def _strip(self, row: list[Span], width: int) -> Strip:
        segments = [Segment(text, self._style(colour)) for text, colour in row]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _style(self, colour: str) -> Style:
        if colour not in self._styles:
            value = self.app.theme_variables.get(colour, "")
            try:
                ink = Style(color=Color.parse(value).rich_color)
            except ColorParseError:
                ink = Style()
            self._styles[colour] = self.rich_style + ink
        return self._styles[colour]


def changed_span(row: list[Span], next_row: list[Span]) -> tuple[int, int] | None:
    """Return the first and one past the last cell that look different, or None."""
    if row == next_row:
        return None
    old, new = _cells(row), _cells(next_row)
    if len(old) != len(new):
        return 0, max(len(old), len(new))
    different = [
        index for index, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]
    ]
    return (different[0], different[-1] + 1) if different else None


def _cells(row: list[Span]) -> list[tuple[str, str]]:
    # The colour of a blank cannot be seen.
    return [(c, colour if c != " " else "") for text, colour in row for c in text]


def _sentence(text: str, width: int, height: int) -> list[list[Span]]:
    rows: list[list[Span]] = [[] for _ in range(height)]
    if text and height:
        words, lines = text.split(), [""]
        for word in words:
            if len(lines[-1]) + len(word) + 1 > max(8, width - 4) and lines[-1]:
                lines.append("")
            lines[-1] = f"{lines[-1]} {word}".strip()
        top = max(0, (height - len(lines)) // 2)
        for offset, line in enumerate(lines[: height - top]):
            rows[top + offset] = [(line.center(width), "quiet")]
    return rows
