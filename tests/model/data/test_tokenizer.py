"""Characters to tokens and back."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_model.data.tokenizer import CharTokenizer, UnknownCharacterError
from megatron_model.util.errors import RequestError


@settings(deadline=None)
@given(st.text(min_size=1))
def test_decoding_gives_back_what_was_encoded(text: str) -> None:
    tokenizer = CharTokenizer(text)
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.vocabulary == "".join(sorted(set(text)))
    assert tokenizer.vocab_size == len(set(text)) == max(tokens) + 1


def test_numbers_of_any_kind_are_decoded() -> None:
    assert CharTokenizer("abc").decode(np.array([2, 0, 1], dtype=np.uint8)) == "cab"


def test_a_vocabulary_is_restored_in_its_own_order() -> None:
    tokenizer = CharTokenizer.from_vocabulary("ba")
    assert tokenizer.encode("ab") == [1, 0]
    assert tokenizer.vocabulary == "ba"
    assert tokenizer != CharTokenizer("ab")


def test_tokenizers_of_one_vocabulary_are_equal() -> None:
    tokenizer = CharTokenizer("hello")
    same = CharTokenizer.from_vocabulary("ehlo")
    assert tokenizer == same
    assert hash(tokenizer) == hash(same)
    assert tokenizer == copy.deepcopy(tokenizer) == pickle.loads(pickle.dumps(tokenizer))
    assert tokenizer != "ehlo"


def test_the_vocabulary_cannot_be_replaced() -> None:
    with pytest.raises(AttributeError):
        CharTokenizer("ab").vocabulary = "xy"  # type: ignore[misc]


@pytest.mark.parametrize(("vocabulary", "said"), [("", "empty"), ("aba", '"a" (U+0061) twice')])
def test_a_wrong_vocabulary_is_refused(vocabulary: str, said: str) -> None:
    with pytest.raises(RequestError) as refused:
        CharTokenizer.from_vocabulary(vocabulary)
    assert said in str(refused.value)


def test_no_text_has_no_vocabulary() -> None:
    with pytest.raises(RequestError, match="empty"):
        CharTokenizer("")


def test_unknown_characters_are_named_so_that_they_can_be_read() -> None:
    tokenizer = CharTokenizer("abc ")
    with pytest.raises(UnknownCharacterError) as refused:
        tokenizer.encode("cab\x07 éé\x07")
    assert refused.value.characters == ("\x07", "é")
    assert str(refused.value) == (
        'The prompt has 2 characters that the model never saw: U+0007, "é" (U+00E9). '
        "Remove them, or write them differently."
    )


def test_one_unknown_character_is_spoken_of_in_the_singular() -> None:
    with pytest.raises(UnknownCharacterError, match="has 1 character that .* Remove it,"):
        CharTokenizer("a").encode("b")


def test_a_long_list_of_unknown_characters_is_cut() -> None:
    with pytest.raises(UnknownCharacterError) as refused:
        CharTokenizer("a").encode("bcdefghij")
    assert str(refused.value).count("U+") == 5
    assert "and 4 more" in str(refused.value)


@settings(deadline=None)
@given(st.text(min_size=1), st.text())
def test_dropping_unknown_characters_leaves_text_that_encodes(known: str, text: str) -> None:
    tokenizer = CharTokenizer(known)
    kept = tokenizer.drop_unknown(text)
    assert tokenizer.decode(tokenizer.encode(kept)) == kept
    assert not set(tokenizer.unknown(text)) & set(known)
    assert set(kept) | set(tokenizer.unknown(text)) == set(text)


@pytest.mark.parametrize("token", [-1, 3])
def test_a_token_outside_the_vocabulary_is_never_turned_into_a_character(token: int) -> None:
    with pytest.raises(IndexError):
        CharTokenizer("abc").decode([0, token])
