"""Text from outside on a terminal: what is harmless is shown as it is."""

from __future__ import annotations

import unicodedata

import pytest
from rich.cells import cell_len
from textual.content import Content

from megatron_model.util.text import safe, with_line_feeds
from megatron_tui.ui.wrapping import Wrapping

SHOWN = {
    "Persian": "می\u200cخواهم",
    "Sinhala": "ක්\u200dෂ",
    "emoji": "👩\u200d💻 ❤\ufe0f",
    "Khmer": "ខ្ញុំ\u200bស្រលាញ់",
    "word joiner": "a\u2060b",
    "soft hyphen": "a\u00adb",
    "ideographic variation": "葛\U000e0100",
}


@pytest.mark.parametrize("text", SHOWN.values(), ids=SHOWN)
def test_what_scripts_need_is_shown_as_it_is(text: str) -> None:
    assert safe(text) == text
    assert safe(text, one_line=True) == text


@pytest.mark.parametrize("text", SHOWN.values(), ids=SHOWN)
def test_what_is_nothing_to_see_takes_no_room(text: str) -> None:
    plain = "".join(c for c in text if unicodedata.category(c) != "Cf" or c == "\u00ad")
    assert cell_len(text) <= cell_len(plain)
    for width in range(2, 9):
        wrapping = Wrapping()
        wrapping.lay_out(width)
        for character in text * 5:
            wrapping.append(character)
        assert "".join(row.text for row in wrapping.rows) == text * 5
        # The blank that ends a row may hang over the edge.
        assert all(cell_len(row.text.rstrip(" ")) <= width for row in wrapping.rows)
        for line in Content(text * 5).wrap(width):
            assert line.cell_length <= width


@pytest.mark.parametrize(
    "code",
    [0x00, 0x07, 0x0D, 0x1B, 0x7F, 0x85, 0x9B, 0x061C, 0x200E, 0x200F, 0x2028, 0x2029,
     *range(0x202A, 0x202F), *range(0x2066, 0x2070), 0xFEFF, 0xDC80, 0xE0041],
)  # fmt: skip
def test_what_a_terminal_or_a_reader_would_follow_is_replaced(code: int) -> None:
    assert safe(f"a{chr(code)}b") == "a\ufffdb"


def test_line_ends_are_made_alike() -> None:
    assert with_line_feeds("a\r\nb\rc\n\r\n\r") == "a\nb\nc\n\n\n"
