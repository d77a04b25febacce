"""What a terminal without UTF-8 gets, cell for cell."""

from __future__ import annotations

import codecs

from megatron_tui.native_output import lookalike


def test_glyphs_have_lookalikes_of_the_same_width() -> None:
    codecs.register_error("lookalike", lookalike)
    assert "╭─ loss ─╮│⡀⠱⣿│● ✓…日".encode("ascii", "lookalike") == b"+- loss -+|.**|* v.?"
    assert "naïve ●".encode("latin-1", "lookalike") == "naïve *".encode("latin-1")
