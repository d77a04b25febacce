"""The keys of a dialog at its lower edge, in as many lines as they need."""

from __future__ import annotations

from collections.abc import Mapping

from textual.content import Content

from megatron_tui.ui.key_bar import KeyBar, key_entry

GAP = "   "


class KeyHints(KeyBar):
    """Derived from the bindings of the dialog, so that another key in ``keys.toml`` shows here."""

    DEFAULT_CSS = """
    KeyHints { dock: none; height: auto; padding: 0; background: transparent; color: $quiet; }
    """

    def __init__(self, words: Mapping[str, str] | None = None, note: str = "") -> None:
        """`words` are said of some bindings, by their ids, in place of what they are called."""
        super().__init__()
        self._words = words or {}
        self._note = Content(note)

    @property
    def plain(self) -> str:
        """The characters on show."""
        return Content("\n").join(self._lines(self.size.width)).plain

    def show_note(self, note: Content | str) -> None:
        """Say something behind the keys."""
        note = note if isinstance(note, Content) else Content(note)
        if (note.plain, note.spans) != (self._note.plain, self._note.spans):
            self._note = note
            self._fit()
            self.refresh()

    def word_of(self, binding_id: str, description: str) -> str:
        """Return what is said of a binding here."""
        return self._words.get(binding_id, description)

    def _lines(self, width: int) -> list[Content]:
        own = [(key, word) for key, word, everywhere in self.keys if not everywhere]
        # Whatever classes the bindings come from: to go on stands first, to get away last.
        own.sort(key=lambda entry: entry[0].startswith("esc") - entry[0].startswith("enter"))
        entries = [key_entry(key, word) for key, word in own]
        if self._note.plain:
            entries.append(self._note)
        lines = [Content("")]
        for entry in entries:
            longer = Content.assemble(lines[-1], GAP, entry) if lines[-1].plain else entry
            if lines[-1].plain and longer.cell_length > width:
                lines.append(entry)
            else:
                lines[-1] = longer
        return lines
