"""From logits to text."""

from __future__ import annotations

import itertools
import string

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import megatron_model
from megatron_model.architectures import build_model
from megatron_model.config import SamplingConfig
from megatron_model.errors import RequestError
from megatron_model.sampling import (
    choose,
    generate,
    generate_stream,
    generate_tokens,
    keep_min_p,
    keep_top_k,
    keep_top_p,
)
from megatron_model.tokenizer import CharTokenizer, UnknownCharacterError
from tests.model.helpers import ARCHITECTURES, tiny_model

TOKENIZER = CharTokenizer(string.ascii_lowercase + " \n")

distributions = (
    st.lists(st.integers(0, 1000), min_size=1, max_size=30)
    .filter(any)
    .map(lambda counts: torch.tensor(counts, dtype=torch.float64) / sum(counts))
)
logit_lists = st.lists(st.floats(-30, 30), min_size=1, max_size=20).map(torch.tensor)
draws = st.floats(0, 1, exclude_max=True)


def settings(**changes: float) -> SamplingConfig:
    return SamplingConfig(**changes)  # type: ignore[arg-type]


def assert_kept_as_they_are(kept: Tensor, before: Tensor) -> None:
    """Whatever was not dropped must be unchanged, and nothing dropped likelier than what is kept."""
    assert kept.shape == before.shape
    assert torch.equal(kept[kept > 0], before[kept > 0])
    dropped = before[(kept == 0) & (before > 0)]
    if len(dropped):
        assert dropped.max() <= kept[kept > 0].min()
    assert kept[before.argmax()] == before.max() or (kept == before.max()).any()


@given(distributions, st.integers(0, 40))
def test_top_k_keeps_the_k_likeliest(probabilities: Tensor, k: int) -> None:
    kept = keep_top_k(probabilities, k)
    assert_kept_as_they_are(kept, probabilities)
    possible = int((probabilities > 0).sum())
    assert int((kept > 0).sum()) == (min(k, possible) if k else possible)


@given(distributions, st.floats(0.01, 1.0))
def test_top_p_keeps_the_fewest_that_reach_p(probabilities: Tensor, p: float) -> None:
    kept = keep_top_p(probabilities, p)
    assert_kept_as_they_are(kept, probabilities)
    assert float(kept.sum()) >= p - 1e-9
    smallest = kept[kept > 0].min()
    assert float(kept.sum() - smallest) < p + 1e-9


@given(distributions, st.floats(0.0, 1.0))
def test_min_p_keeps_what_is_likely_enough(probabilities: Tensor, share: float) -> None:
    kept = keep_min_p(probabilities, share)
    assert_kept_as_they_are(kept, probabilities)
    wanted = (probabilities >= share * probabilities.max()) & (probabilities > 0)
    assert torch.equal(kept > 0, wanted)


@given(
    logit_lists,
    draws,
    st.floats(0.0, 10.0),
    st.integers(0, 25),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_a_draw_is_always_a_character_that_was_kept(
    logits: Tensor, draw: float, temperature: float, k: int, p: float, share: float
) -> None:
    sampling = settings(temperature=temperature, top_k=k, top_p=p, min_p=share)
    token = choose(logits, sampling, draw)
    assert 0 <= token < len(logits)
    if k:
        assert int((logits > logits[token]).sum()) < k
    if share == 1.0 or temperature == 0.0 or k == 1:
        assert logits[token] == logits.max()


@given(logit_lists, draws)
def test_a_temperature_of_zero_is_greedy(logits: Tensor, draw: float) -> None:
    assert choose(logits, settings(temperature=0.0), draw) == int(logits.argmax())
    assert logits[choose(logits, settings(top_k=1), draw)] == logits.max()


@given(logit_lists, st.floats(0.1, 3.0))
def test_draws_are_as_frequent_as_the_model_says(logits: Tensor, temperature: float) -> None:
    sampling = settings(temperature=temperature)
    tokens = [choose(logits, sampling, (i + 0.5) / 200) for i in range(200)]
    wanted = (logits.double() / temperature).softmax(0)
    found = torch.bincount(torch.tensor(tokens), minlength=len(logits)) / 200
    assert float((found - wanted).abs().max()) < 0.011


@given(st.lists(st.sampled_from([-1e30, -100.0, 0.0, 100.0, 1e30]), min_size=1, max_size=8))
def test_extreme_logits_do_no_harm(values: list[float]) -> None:
    for draw, temperature in itertools.product((0.0, 0.5, 1 - 2**-53), (0.0, 0.01, 10.0)):
        token = choose(torch.tensor(values), settings(temperature=temperature), draw)
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
    tokens = list(generate_tokens(model, prompt, settings(max_new_tokens=30, temperature=0.0)))
    for index, token in enumerate(tokens):
        window = [*prompt, *tokens[:index]][-16:]
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
    stream = generate_tokens(model, [1], settings(max_new_tokens=9))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert model.training is training
