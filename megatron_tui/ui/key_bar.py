"""The keys of the screen at its bottom: one line where they fit, two on a narrow terminal."""

from __future__ import annotations

from textual.app import RenderResult
from textual.binding import Binding
from textual.content import Content
from textual.reactive import reactive
from textual.screen import Screen
from textual.widget import Widget

GAP = "  "

_SHORT = {"⏎": "enter", "⌫": "bksp", "escape": "esc", "question_mark": "?", "backspace": "bksp"}


class KeyBar(Widget):
    """Derived from the active bindings: keys of the screen first, those of the program last."""

    DEFAULT_CSS = """
    KeyBar { dock: bottom; height: 1; width: 1fr; padding: 0 1; }
    """

    keys: reactive[tuple[tuple[str, str, bool], ...]] = reactive(())
    """Key, word, and whether it is the whole program's, in the order of declaration."""

    def on_mount(self) -> None:
        """Follow the bindings of the screen."""
        self.screen.bindings_updated_signal.subscribe(self, self._collect)
        self.call_after_refresh(self._collect, self.screen)

    def render(self) -> RenderResult:
        """Return one or two lines."""
        return Content("\n").join(self._lines(self.size.width))

    def on_resize(self) -> None:
        """Another width may need another number of lines."""
        self._fit()

    def watch_keys(self) -> None:
        """More keys may need another line."""
        self._fit()
        self.refresh()

    def _fit(self) -> None:
        if self.size.width:
            self.styles.height = len(self._lines(self.size.width))

    def _collect(self, screen: Screen[object]) -> None:
        if screen is not self.screen or not screen.is_current:
            return
        found: dict[str, tuple[str, str, bool, str]] = {}
        seen: set[str] = set()
        for node, binding, enabled, _ in screen.active_bindings.values():
            if not (binding.show and binding.id and enabled):
                continue
            key = short_key(self.app.get_key_display(binding))
            said = self.word_of(binding.id, binding.description)
            if said in found:
                # Keys that share a word are one entry: "+ - 0 Smoothing".
                first, word, everywhere, name = found[said]
                # Of several keys that do the same, the first that acts here is enough.
                if binding.id not in seen and key not in first.split():
                    found[said] = (f"{first} {key}", word, everywhere, name)
            else:
                everywhere = node is self.app
                found[said] = (key, said, everywhere, binding.id)
            seen.add(binding.id)
        # The keys of the program in the order it declares them: Textual lists inherited ones first.
        order = [getattr(binding, "id", None) for binding in self.app.BINDINGS]
        self.keys = tuple(
            (key, word, everywhere)
            for key, word, everywhere, _ in sorted(
                found.values(), key=lambda entry: order.index(entry[3]) if entry[2] else -1
            )
        )

    def word_of(self, binding_id: str, description: str) -> str:
        """Return what is said of a binding."""
        return description

    def _lines(self, width: int) -> list[Content]:
        own = [(key, word) for key, word, everywhere in self.keys if not everywhere]
        program = [(key, word) for key, word, everywhere in self.keys if everywhere]
        left, right = _line(own), _line(program)
        if left.cell_length + right.cell_length + 3 <= width:
            gap = " " * (width - left.cell_length - right.cell_length)
            return [Content.assemble(left, gap, right)]
        return [_line(own, limit=width), _line(program, limit=width)]


def short_key(display: str) -> str:
    """Return a key as the bar and the help show it."""
    return _SHORT.get(display, display)


def shown_key(binding: Binding, display: str) -> str:
    """Return the key of a binding as people read it."""
    return short_key(binding.key_display or display)


def key_entry(key: str, word: str) -> Content:
    """Return a key and what it does."""
    return Content.assemble((key, "bold $primary"), " ", (word, "$foreground"))


def _line(keys: list[tuple[str, str]], limit: int | None = None) -> Content:
    line = Content("")
    for key, word in keys:
        piece = key_entry(key, word)
        longer = Content.assemble(line, GAP if line.plain else "", piece)
        if limit is not None and longer.cell_length > limit:
            break
        line = longer
    return line
