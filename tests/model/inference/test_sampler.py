"""The filters, one property each; and what a way of sampling makes of a model's logits."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable
from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import megatron_model
from megatron_model.config.fields import REPETITION_SPAN, SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer, UnknownCharacterError
from megatron_model.inference import sampler as sampling
from megatron_model.inference.sampler import (
    Stream,
    choose,
    generate,
    generate_stream,
    pick_together,
)
from megatron_model.model.factory import build_model
from megatron_model.util.errors import RequestError
from tests.model.helpers import ARCHITECTURES, tiny_model, written_tokens

Numbers = NDArray[np.float64]

TOKENIZER = CharTokenizer(string.ascii_lowercase + " \n")

LOGITS = st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=40).map(
    lambda values: np.array(values, np.float64)
)
PROBABILITIES = LOGITS.map(sampling.to_probabilities)
DRAWS = st.floats(0, 1, exclude_max=True)


# On a busy machine a millisecond may take half a second.
unhurried = hypothesis.settings(deadline=None)


def given(*strategies: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test for many values, however long one takes."""
    return lambda test: unhurried(hypothesis.given(*strategies)(test))


def settings(**changes: float) -> SamplingConfig:
    return SamplingConfig(**changes)  # type: ignore[arg-type]


def likeliest_first(probabilities: Numbers) -> list[int]:
    return sorted(range(probabilities.size), key=lambda index: (-probabilities[index], index))


def assert_filters(before: Numbers, after: Numbers) -> None:
    """Every probability is kept as it was or dropped, and the likeliest is kept."""
    assert np.all((after == before) | (after == 0))
    assert after[before.argmax()] == before.max()


@given(LOGITS, st.floats(0.01, 10))
def test_probabilities_add_up_and_keep_the_order(logits: Numbers, temperature: float) -> None:
    probabilities = sampling.to_probabilities(logits, temperature)
    assert probabilities.sum() == pytest.approx(1)
    order = logits.argsort()
    assert np.all(np.diff(probabilities[order]) >= 0)


@given(LOGITS)
def test_a_lower_temperature_makes_the_likeliest_likelier(logits: Numbers) -> None:
    highest = [sampling.to_probabilities(logits, t).max() for t in (0.25, 0.5, 1.0, 2.0)]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(highest))


@given(PROBABILITIES, st.integers(0, 50))
def test_top_k_keeps_the_k_likeliest(probabilities: Numbers, k: int) -> None:
    kept = sampling.keep_top_k(probabilities, k)
    assert_filters(probabilities, kept)
    expected = likeliest_first(probabilities)[: k or None]
    assert set(kept.nonzero()[0]) <= set(expected)
    assert np.array_equal(kept[expected], probabilities[expected])


@given(PROBABILITIES, st.floats(0.01, 1))
def test_top_p_keeps_the_fewest_that_reach_p(probabilities: Numbers, p: float) -> None:
    kept = sampling.keep_top_p(probabilities, p)
    assert_filters(probabilities, kept)
    assert kept.sum() >= p * probabilities.sum() - 1e-9
    if p < 1:
        ordered = sorted(kept[kept > 0])
        assert sum(ordered[1:]) < p * probabilities.sum() + 1e-9


@given(PROBABILITIES, st.floats(0, 1))
def test_min_p_keeps_what_is_likely_enough(probabilities: Numbers, share: float) -> None:
    kept = sampling.keep_min_p(probabilities, share)
    assert_filters(probabilities, kept)
    assert np.array_equal(kept > 0, (probabilities >= share * probabilities.max()) & (kept > 0))
    assert np.all(probabilities[kept == 0] <= share * probabilities.max())


@given(PROBABILITIES, st.floats(0.01, 1))
def test_typical_keeps_what_surprises_as_expected(probabilities: Numbers, p: float) -> None:
    kept = sampling.keep_typical(probabilities, p)
    # Unlike by the other filters, the likeliest may be dropped.
    assert np.all((kept == probabilities) | (kept == 0))
    shares = probabilities / probabilities.sum()
    assert kept.sum() >= p * probabilities.sum() - 1e-9
    possible = shares > 0
    surprise = -np.log(shares[possible])
    far = np.abs(surprise - (shares[possible] * surprise).sum())
    stays = (kept > 0)[possible]
    if (~stays).any() and stays.any():
        assert far[stays].max() <= far[~stays].min() + 1e-9


def test_typical_drops_the_likeliest_where_it_tells_too_little() -> None:
    shares = np.array([0.4, *[0.06] * 10])
    kept = sampling.keep_typical(shares, 0.5)
    assert kept[0] == 0
    assert np.count_nonzero(kept) == 9


@given(LOGITS, st.lists(st.integers(0, 39)), DRAWS)
def test_what_is_ruled_out_is_never_drawn(logits: Numbers, out: list[int], draw: float) -> None:
    out = [token for token in out if token < logits.size]
    if len(set(out)) == logits.size:
        return
    for temperature in (0.0, 1.0):
        assert choose(logits, SamplingConfig(temperature=temperature), draw, out=out) not in out


@given(LOGITS, st.lists(st.integers(0, 39)), st.floats(1, 10))
def test_a_penalty_lowers_what_was_used_and_nothing_else(
    logits: Numbers, recent: list[int], penalty: float
) -> None:
    used = [token for token in recent if token < logits.size]
    before = logits.copy()
    result = sampling.penalise_repetition(logits, used, penalty)
    assert np.array_equal(logits, before)
    others = [token for token in range(logits.size) if token not in used]
    assert np.array_equal(result[others], logits[others])
    assert np.all(result[used] <= logits[used])


@given(PROBABILITIES, DRAWS)
def test_a_draw_picks_what_is_possible(probabilities: Numbers, draw: float) -> None:
    index = sampling.invert(probabilities, draw)
    assert probabilities[index] > 0
    assert probabilities[:index].sum() <= draw * probabilities.sum() + 1e-9
    assert probabilities[: index + 1].sum() >= draw * probabilities.sum() - 1e-9


@given(LOGITS, DRAWS)
def test_without_a_temperature_the_likeliest_is_taken(logits: Numbers, draw: float) -> None:
    assert choose(logits, SamplingConfig(temperature=0.0), draw) == logits.argmax()
    # The softmax may round two logits to one probability.
    assert logits[choose(logits, SamplingConfig(top_k=1), draw)] == pytest.approx(logits.max())


@given(
    LOGITS,
    DRAWS,
    st.builds(
        SamplingConfig,
        temperature=st.floats(0, 10),
        top_k=st.integers(0, 50),
        top_p=st.floats(0.01, 1),
        min_p=st.floats(0, 1),
        repetition_penalty=st.floats(1, 10),
    ),
)
def test_every_way_of_sampling_picks_a_character(
    logits: Numbers, draw: float, config: SamplingConfig
) -> None:
    assert 0 <= choose(logits, config, draw, recent=[0]) < logits.size


def test_draws_are_as_frequent_as_they_are_likely() -> None:
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    draws = itertools.islice(sampling.uniform_draws(3), 20_000)
    picks = [choose(logits, SamplingConfig(temperature=1.0), draw) for draw in draws]
    shares = np.bincount(picks, minlength=4) / len(picks)
    assert np.allclose(shares, [0.5, 0.3, 0.15, 0.05], atol=0.02)


def test_draws_are_the_seeds_alone() -> None:
    first = list(itertools.islice(sampling.uniform_draws(3), 600))
    assert first == list(itertools.islice(sampling.uniform_draws(3), 600))
    assert first != list(itertools.islice(sampling.uniform_draws(4), 600))
    assert len(set(first)) == 600


def test_a_repetition_is_forgotten_after_its_span() -> None:
    stream = Stream(SamplingConfig(temperature=0.0, repetition_penalty=10.0), [0])
    logits = np.array([2.0, 1.0, -9.0], np.float32)
    assert stream.pick(logits) == 1  # the prompt counts
    for _ in range(REPETITION_SPAN):
        assert stream.pick(np.array([0.0, 0.0, 20.0], np.float32)) == 2
    assert stream.pick(logits) == 0


def test_a_repetition_is_forgotten_after_the_window_that_was_asked_for() -> None:
    asked = SamplingConfig(temperature=0.0, repetition_penalty=10.0, repetition_window=3)
    stream = Stream(asked, [0])
    logits = np.array([2.0, 1.0, -9.0], np.float32)
    for token in (1, 2, 2):
        assert stream.pick(np.eye(3, dtype=np.float32)[token] * 50) == token
    assert stream.pick(logits) == 0


@pytest.fixture(scope="module")
def writer() -> tuple[torch.nn.Module, CharTokenizer]:
    torch.manual_seed(1)
    tokenizer = CharTokenizer("\nabcdefgh")
    return build_model(tiny_model("modern"), tokenizer.vocab_size), tokenizer


def text_of(writer: tuple[torch.nn.Module, CharTokenizer], **options: object) -> str:
    config = msgspec.structs.replace(SamplingConfig(max_new_tokens=60), **options)
    return "".join(generate_stream(*writer, "a", config))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_forbidden_characters_never_come(
    writer: tuple[torch.nn.Module, CharTokenizer], temperature: float
) -> None:
    assert not set("abc\n") & set(text_of(writer, forbidden="abc\n", temperature=temperature))
    assert set(text_of(writer, only="fgé", temperature=temperature)) <= set("fg")
    with pytest.raises(RequestError, match="leave none"):
        text_of(writer, only="é")
    with pytest.raises(RequestError, match="leave none"):
        text_of(writer, forbidden="\nabcdefgh")


def test_a_text_ends_with_the_stop_text(writer: tuple[torch.nn.Module, CharTokenizer]) -> None:
    whole = text_of(writer)
    stop = whole[20:23]
    assert text_of(writer, stop=stop) == whole[: whole.index(stop) + 3]
    assert text_of(writer, stop="a\nQ") == whole  # what the model cannot write never comes
    assert text_of(writer, stop=whole + "a") == whole


def test_the_prompt_is_not_searched_for_the_stop_text(
    writer: tuple[torch.nn.Module, CharTokenizer],
) -> None:
    config = SamplingConfig(max_new_tokens=5, stop="ab", temperature=0.0)
    first = next(generate_stream(*writer, "ab", config))
    assert len(first) == 1


def test_the_length_is_kept(writer: tuple[torch.nn.Module, CharTokenizer]) -> None:
    assert text_of(writer, max_new_tokens=0) == ""
    assert len(text_of(writer, max_new_tokens=1)) == 1
    assert generate(*writer, "abc", 7, temperature=0.5)[:3] == "abc"
    assert len(generate(*writer, "abc", 7)) == 10


def test_several_ways_differ_in_their_seed_alone() -> None:
    first = SamplingConfig(seed=2**63 - 2, top_k=3)
    seeds = [each.seed for each in sampling.several(first, 4)]
    assert seeds == [2**63 - 2, 2**63 - 1, 0, 1]
    assert {each.top_k for each in sampling.several(first, 4)} == {3}


@given(st.lists(st.sampled_from([-1e30, -100.0, 0.0, 100.0, 1e30]), min_size=1, max_size=8))
def test_extreme_logits_do_no_harm(values: list[float]) -> None:
    for draw, temperature in itertools.product((0.0, 0.5, 1 - 2**-53), (0.0, 0.01, 10.0)):
        token = choose(values, settings(temperature=temperature), draw)
        assert values[token] > -1e30 or max(values) == -1e30


# Text


def a_model(architecture: str = "modern") -> nn.Module:
    torch.manual_seed(6)
    model = build_model(tiny_model(architecture), TOKENIZER.vocab_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model.train()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_generate_returns_the_prompt_and_the_text(architecture: str) -> None:
    model = a_model(architecture)
    text = generate(model, TOKENIZER, "the ", max_new_tokens=40)
    assert text.startswith("the ")
    assert len(text) == 44
    assert megatron_model.generate is generate
    stream = generate_stream(model, TOKENIZER, "the ", settings(max_new_tokens=40))
    assert "the " + "".join(stream) == text


def test_the_same_seed_writes_the_same_text() -> None:
    model = a_model()
    first = generate(model, TOKENIZER, "a", 60, seed=3)
    torch.rand(7)
    assert generate(model, TOKENIZER, "a", 60, seed=3) == first
    assert generate(model, TOKENIZER, "a", 60, seed=4) != first


def test_the_seed_is_of_no_matter_to_the_greedy() -> None:
    model = a_model()
    greedy = generate(model, TOKENIZER, "a", 30, temperature=0)
    assert generate(model, TOKENIZER, "a", 30, temperature=0, seed=9) == greedy
    assert generate(model, TOKENIZER, "a", 30, top_k=1, seed=9) == greedy


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_window_moves_past_the_block_size(architecture: str) -> None:
    model = a_model(architecture)
    long, short = "abcdefgh" * 6, ("abcdefgh" * 6)[-16:]
    for prompt in (long, short):
        assert len(generate(model, TOKENIZER, prompt, 40)) == len(prompt) + 40
    after = [generate(model, TOKENIZER, p, 40, temperature=0)[len(p) :] for p in (long, short)]
    assert after[0] == after[1]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_character_follows_from_those_before(architecture: str) -> None:
    model = a_model(architecture).eval()
    prompt = TOKENIZER.encode("the cat")
    tokens = list(written_tokens(model, prompt, settings(max_new_tokens=30, temperature=0.0)))
    for index, token in enumerate(tokens):
        # Sixteen fit; then the last eight are kept, and eight more come.
        length = 7 + index if 7 + index <= 16 else 8 + (7 + index - 16 - 1) % 9
        window = [*prompt, *tokens[:index]][-length:]
        with torch.no_grad():
            logits = model(torch.tensor([window]))[0, -1]
        assert float(logits[token]) == pytest.approx(float(logits.max()), abs=1e-4)


def test_an_empty_prompt_begins_after_a_line_break() -> None:
    model = a_model()
    assert generate(model, TOKENIZER, "", 20) == generate(model, TOKENIZER, "\n", 20)[1:]
    no_breaks = CharTokenizer("abcdefghijklmnopqrstuvwxyzAB")
    assert len(generate(model, no_breaks, "", 20)) == 20


def test_unknown_characters_are_named() -> None:
    with pytest.raises(UnknownCharacterError, match=r'"T" \(U\+0054\).*U\+0007') as refused:
        generate(a_model(), TOKENIZER, "The \x07")
    assert refused.value.characters == ("T", "\x07")


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(RequestError, match="temperature is -1"):
        generate(a_model(), TOKENIZER, "a", temperature=-1)
    with pytest.raises(RequestError, match="max_new_tokens is -1"):
        generate(a_model(), TOKENIZER, "a", max_new_tokens=-1)


def test_nothing_is_written_when_nothing_is_asked_for() -> None:
    assert generate(a_model(), TOKENIZER, "abc", max_new_tokens=0) == "abc"


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_of_the_model_is_restored(training: bool) -> None:
    model = a_model().train(training)
    generate(model, TOKENIZER, "a", 3)
    assert model.training is training
    stream = written_tokens(model, [1], settings(max_new_tokens=9))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.training is training


@pytest.mark.parametrize("seed", range(5))
def test_streams_that_draw_together_draw_what_each_would_alone(seed: int) -> None:
    draw = np.random.default_rng(seed)
    options: list[dict[str, Any]] = [
        {}, {"temperature": 0.0}, {"top_k": 3}, {"top_p": 0.5, "temperature": 1.7},
        {"min_p": 0.1}, {"repetition_penalty": 1.4}, {"temperature": 1e-12}, {"max_new_tokens": 9},
        {"repetition_penalty": 1.2, "top_k": 5, "top_p": 0.8, "min_p": 0.01, "temperature": 2.0},
    ]  # fmt: skip
    asked = [
        msgspec.structs.replace(SamplingConfig(max_new_tokens=60, seed=seed + i), **each)
        for i, each in enumerate(options)
    ]
    together = [Stream(each, [1, 2]) for each in asked]
    alone = [Stream(each, [1, 2]) for each in asked]
    for _ in range(60):
        logits = (draw.normal(size=(len(asked), 67)) * 3).astype(np.float32)
        expected = [
            None if stream.over else stream.pick(row)
            for stream, row in zip(alone, logits, strict=True)
        ]
        assert pick_together(together, logits) == expected
    assert all(stream.over for stream in together)
