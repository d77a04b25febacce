"""Which runs are meant by a filter, and what is said of one that means nothing."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_model.run.query import DEEPEST, parse_query
from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe


def moment(text: str) -> float:
    return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M"))


RUN: dict[str, Any] = {
    "name": "Shakespeare-cpu",
    "status": "finished",
    "val": 1.4,
    "step": 2000,
    "steps": 2000,
    "corpus": "/texts/shakespeare and co.txt",
    "time": moment("2026-01-31T18:30"),
    "age": 3 * 86_400.0,
    "size": 5 * 2**20,
    "tag": ("good", "paper-2"),
    "note": "",
    "model.layers": 6,
    "model.architecture": "modern",
    "training.learning_rate": 3e-4,
}
NEW = {**dict.fromkeys(RUN), "name": "new", "tag": (), "note": ""}


@pytest.mark.parametrize(
    "text",
    [
        "val<1.5 and corpus~shake",
        "val <= 1.4",
        "val>=1.4 and val=1.4 and val==1.4",
        "not val>1.4",
        "name=shakespeare-CPU",
        "status!=failed",
        "corpus~'shakespeare and'",
        'corpus ~ "AND CO"',
        "tag=good and tag!=bad and tag~paper",
        "note!=x and note='' ",
        "val>2 or step>1000 and steps=2000",
        "(val>2 or step>1000) AND NOT (step<5)",
        "not not val<2",
        "model.layers>=6 and model.architecture=modern",
        "training.learning_rate<=3e-4",
        "size>4MiB and size<=5MiB and size>0",
        "age<1w and age>=3d and age>71.5h and age>30m and age>1s",
        "time=2026-01-31 and time>2026-01-30 and time<2026-02-01",
        "time<=2026-01-31 and time>=2026-01-31",
        "time=2026-01-31T18:30 and time>'2026-01-31 18:29'",
        "name=Shakespeare-cpu or(val<0)",
    ],
)
def test_the_run_is_meant(text: str) -> None:
    assert parse_query(text)(RUN.__getitem__)


@pytest.mark.parametrize(
    "text",
    [
        "val<1.4",
        "val!=1.4",
        "name~hamlet",
        "val<1.5 and corpus~hamlet",
        "val>2 or step>1000 and steps=5",
        "(val<2 or step>1000) and steps=5",
        "tag!=good",
        "tag=goo",
        "time>2026-01-31",
        "time<2026-01-31",
        "time=2026-01-31T18:31",
        "age>1w",
        "size>5MiB",
    ],
)
def test_the_run_is_not_meant(text: str) -> None:
    assert not parse_query(text)(RUN.__getitem__)


@pytest.mark.parametrize("text", ["val<9", "val>0", "val=1", "time>2020-01-01", "corpus~a"])
def test_what_a_run_does_not_have_compares_with_nothing(text: str) -> None:
    assert not parse_query(text)(NEW.__getitem__)
    assert parse_query(f"not {text} and val!=1 and corpus!=a and tag!=x")(NEW.__getitem__)


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        ("", 1, "the name of something"),
        ("val<<1", 5, "a value is expected after val<"),
        ("val", 4, "a comparison is expected after val"),
        ("val<1 step>2", 7, "and, or, or the end"),
        ("(val<1", 7, "for the ( at character 1"),
        ("val<1)", 6, "and, or, or the end"),
        ("val<1 and", 10, "the name of something"),
        ("val<cheap", 5, "a number"),
        ("val<nan", 5, "a number"),
        ("val~1", 4, "no text"),
        ("name<b", 5, "is a text"),
        ("size>big", 6, "500MB"),
        ("age<7", 5, "30m"),
        ("time>yesterday", 6, "2026-01-31"),
        ("time>99999-01-01", 6, "2026-01-31"),
        ("loss<1", 1, 'no "loss"'),
        ("model.layer=3", 1, 'Did you mean "model.layers"?'),
        ("status=finishd", 8, 'Did you mean "finished"?'),
        ("model.architecture=moden", 20, 'Did you mean "modern"?'),
        ("name~'a", 6, "no end"),
        ("val<1 & step>2", 7, "and, or, or the end"),
        ("val!1", 4, "means nothing"),
        ("__import__('os')=1", 1, "Runs have no"),
        ("\x1b[31m<1", 1, "Runs have no"),
    ],
)
def test_a_mistake_is_one_sentence_with_its_place(text: str, place: int, words: str) -> None:
    with pytest.raises(RequestError) as refused:
        parse_query(text)
    said = str(refused.value)
    assert said.startswith(f"The filter is wrong at character {place}"), said
    assert words in said
    assert "\x1b" not in said and "\n" not in said


def test_a_filter_of_any_length_and_depth_is_refused_in_a_sentence() -> None:
    within = "(" * (DEEPEST - 1) + "val<2" + ")" * (DEEPEST - 1)
    assert parse_query(within)(RUN.__getitem__)
    for text in ("(" * 400 + "val<1" + ")" * 400, "not " * 200 + "val<1"):
        with pytest.raises(RequestError, match="in each other"):
            parse_query(text)
    with pytest.raises(RequestError, match="longer than"):
        parse_query("val<1 or " * 10_000)


PIECES = ["val", "<", "1.5", "and", "or", "not", "(", ")", "name", "~", "'a b'", '"', "=", "tag"]


@settings(deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(st.sampled_from(PIECES)).map(" ".join)))
def test_any_text_is_a_filter_or_one_sentence(text: str) -> None:
    try:
        query = parse_query(text)
    except RequestError as error:
        assert str(error).startswith("The filter is wrong at character ")
        assert str(error) == safe(str(error))
    else:
        assert query(RUN.__getitem__) in (True, False)
        assert query(NEW.__getitem__) in (True, False)
