"""What a model can read of a prompt, and how much of a text it sees."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference.prompt import (
    fit_prompt,
    kept_characters,
    replacements,
    window_length,
)

KNOWN = CharTokenizer("\n '-.abcdefghijklmnopqrstuvwxyzA")


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("café", "cafe"), ("“no”", "'no'"), ("a\u2014b", "a-b"), ("it\u2019s", "it's"),
        ("HI", "hi"),
        ("ﬁne", "fine"), ("straße", "strasse"), ("a\u00a0b\tc", "a b c"), ("wait…", "wait..."),
        ("Éa", "ea"), ("日a", "a"), ("a\r\n", "a\n\n"), ("Ægir", "aegir"), ("Å", "A"),
    ],
)  # fmt: skip
def test_unknown_characters_are_replaced_by_what_is_most_alike(typed: str, read: str) -> None:
    assert fit_prompt(KNOWN, typed, "replace") == read


@given(st.text(max_size=40))
def test_what_is_fitted_can_be_read_and_what_is_known_stays(text: str) -> None:
    for policy in ("drop", "replace"):
        assert KNOWN.unknown(fit_prompt(KNOWN, text, policy)) == []  # type: ignore[arg-type]
    assert fit_prompt(KNOWN, text, "block") == text
    known = KNOWN.drop_unknown(text)
    assert fit_prompt(KNOWN, text, "drop") == known
    assert fit_prompt(KNOWN, known, "replace") == known
    assert set(replacements(KNOWN, text)) == set(KNOWN.unknown(text))


@given(st.integers(0, 70), st.integers(0, 300), st.integers(1, 32))
def test_the_window_is_where_writing_step_by_step_puts_it(
    prompt: int, written: int, block: int
) -> None:
    length = min(prompt, block)
    for _ in range(written):
        length = kept_characters(block) if length == block else length + 1
    assert window_length(prompt, written, block) == length
