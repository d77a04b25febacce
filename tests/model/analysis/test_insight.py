"""What a model knows: surprise, attention, duels; and the command line's view of them."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from megatron_model.analysis.insight import (
    CharacterScore,
    attention_of,
    compare_surprise,
    duel,
    generate_scored,
    surprise,
)
from megatron_model.cli import parser as cli
from megatron_model.config.fields import SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer, UnknownCharacterError
from megatron_model.inference.sampler import generate_stream
from megatron_model.run.folder import RunFolder
from tests.model.helpers import ARCHITECTURES
from tests.model.model.test_models import model_with_opinions

both = pytest.mark.parametrize("architecture", ARCHITECTURES)
TOKENIZER = CharTokenizer("\nabcdefghij")
TEXT = "abcabcfghij\njabacadaefg" * 4


class Writer(NamedTuple):
    model: nn.Module
    tokenizer: CharTokenizer


@torch.no_grad()
def log_probability(model: nn.Module, text: str, context: int, index: int) -> float:
    """Return that of one character, from the `context` characters before it, by the model alone."""
    before = ("\n" + text)[index + 1 - context : index + 1]
    logits = model(torch.tensor([TOKENIZER.encode(before)]))[0, -1]
    return float(logits.log_softmax(0)[TOKENIZER.encode(text[index])[0]])


@both
def test_surprise_is_the_models_from_at_least_half_a_block(architecture: str) -> None:
    model = model_with_opinions(architecture).train()
    scores = list(surprise(model, TOKENIZER, TEXT, 16))
    assert model.training
    model.eval()
    assert "".join(score.character for score in scores) == TEXT
    for index, score in enumerate(scores):
        context = index + 1 if index < 16 else 9 + (index - 16) % 8
        expected = log_probability(model, TEXT, context, index)
        assert score.log_probability == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("length", [0, 1, 2, 7, 8, 9, 15, 16, 17, 24, 25, 92])
@pytest.mark.parametrize("block", [1, 2, 3, 16])
def test_every_character_is_told_once(length: int, block: int) -> None:
    model = model_with_opinions("modern")
    scores = list(surprise(model, TOKENIZER, TEXT[:length], block))
    assert "".join(score.character for score in scores) == TEXT[:length]


def test_a_text_of_many_batches_is_told_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_with_opinions("modern")
    at_once = list(surprise(model, TOKENIZER, TEXT, 16))
    monkeypatch.setattr("megatron_model.analysis.insight.rows_at_once", lambda _: 2)
    for one, other in zip(at_once, surprise(model, TOKENIZER, TEXT, 16), strict=True):
        assert one.character == other.character
        assert one.log_probability == pytest.approx(other.log_probability, abs=1e-5)


def assert_sound(score: CharacterScore) -> None:
    values = [value for _, value in score.candidates]
    assert values == sorted(values, reverse=True)
    assert score.log_probability <= values[0] <= 0
    told = dict(score.candidates)
    assert told.get(score.character, score.log_probability) == score.log_probability


def test_candidates_are_the_likeliest() -> None:
    scores = list(surprise(model_with_opinions("classic"), TOKENIZER, TEXT, 16, candidates=11))
    for score in scores:
        assert_sound(score)
        assert sum(np.exp([value for _, value in score.candidates])) == pytest.approx(1, abs=1e-4)


def test_a_strange_character_is_named() -> None:
    with pytest.raises(UnknownCharacterError, match='The text has 1 character .*: "Q"'):
        list(surprise(model_with_opinions("modern"), TOKENIZER, "abQ", 16))


@both
def test_what_is_written_is_told_as_surprise_tells_it(architecture: str) -> None:
    model = model_with_opinions(architecture)
    samplings = [SamplingConfig(max_new_tokens=n, seed=n) for n in (12, 7)]
    columns = list(generate_scored(model, TOKENIZER, "abc", samplings))
    for index, sampling in enumerate(samplings):
        written = [score for column in columns if (score := column[index]) is not None]
        text = "".join(score.character for score in written)
        assert text == "".join(generate_stream(model, TOKENIZER, "abc", sampling))
        for score, place in zip(written, range(3, 99), strict=False):
            assert_sound(score)
            assert len(score.candidates) == 5
            with torch.no_grad():
                logits = model(torch.tensor([TOKENIZER.encode(("abc" + text)[:place])]))[0, -1]
            token = TOKENIZER.encode(score.character)[0]
            expected = float(logits.log_softmax(0)[token])
            assert score.log_probability == pytest.approx(expected, abs=1e-4)


@both
def test_attention_is_shared_among_what_is_seen(architecture: str) -> None:
    model = model_with_opinions(architecture)
    for position in (0, 5, 15, 16, 40):
        view = attention_of(model, TOKENIZER, TEXT, position)
        seen = min(16, position + 1)
        assert view.start == position + 1 - seen
        assert view.weights.shape == (2, 2, seen)
        assert np.allclose(view.weights.sum(-1), 1, atol=1e-5)
        assert (view.weights >= 0).all()


def test_attention_is_that_of_the_formula() -> None:
    model: Any = model_with_opinions("classic", heads=1, layers=1)
    block = model.blocks[0]
    tokens = torch.tensor(TOKENIZER.encode(TEXT[:9]))
    with torch.no_grad():
        x = model.token_embedding(tokens) + model.position_embedding.weight[:9]
        query, key, _ = block.attention.qkv(block.attention_norm(x)).chunk(3, dim=-1)
        expected = (query[-1] @ key.T / 16**0.5).softmax(0)
    view = attention_of(model, TOKENIZER, TEXT, 8)
    assert np.allclose(view.weights[0, 0], expected, atol=1e-5)


def test_a_duel_with_oneself_is_a_draw() -> None:
    writer = Writer(model_with_opinions("modern"), TOKENIZER)
    steps = list(duel(writer, writer, "ab", SamplingConfig(max_new_tokens=50)))
    assert [step.diverged_at for step in steps] == [None] * 50
    assert all(step.first == step.second for step in steps)


def test_a_duel_tells_where_the_texts_part() -> None:
    first = Writer(model_with_opinions("modern"), TOKENIZER)
    second = Writer(model_with_opinions("classic"), CharTokenizer("\nabcdefghijk"[:11]))
    sampling = SamplingConfig(max_new_tokens=50)
    steps = list(duel(first, second, "ab", sampling))
    texts = ["".join(step.first for step in steps), "".join(step.second for step in steps)]
    for writer, text in zip((first, second), texts, strict=True):
        assert text == "".join(generate_stream(*writer, "ab", sampling))
    parting = next(i for i, (a, b) in enumerate(zip(*texts, strict=True)) if a != b)
    assert [step.diverged_at for step in steps] == [None] * parting + [parting] * (50 - parting)


def test_a_text_that_stops_first_parts_from_the_other() -> None:
    first = Writer(model_with_opinions("modern"), TOKENIZER)
    whole = "".join(generate_stream(*first, "ab", SamplingConfig(max_new_tokens=50)))
    # The same model, which cannot write the stop text under another vocabulary.
    second = Writer(first.model, CharTokenizer.from_vocabulary("\nabcdefghiJ"))
    sampling = SamplingConfig(max_new_tokens=50, stop="j")
    steps = list(duel(first, second, "ab", sampling))
    assert "j" in whole
    assert len(steps) == 50
    assert steps[whole.index("j")].diverged_at == whole.index("j")
    assert steps[-1].first == ""


def test_two_models_are_compared_from_the_same_context() -> None:
    writers = [Writer(model_with_opinions(kind), TOKENIZER) for kind in ARCHITECTURES]
    pairs = list(compare_surprise(writers[0], writers[1], TEXT, 8))
    assert "".join(a.character for a, _ in pairs) == "".join(b.character for _, b in pairs) == TEXT
    assert any(a.log_probability > b.log_probability for a, b in pairs)
    assert any(a.log_probability < b.log_probability for a, b in pairs)


class Result(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process, with something on stdin."""

    def run_once(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "argv", ["megatron-model", *map(str, arguments)])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return Result(ended.value.code, *capsys.readouterr())

    return run_once


def test_several_samples_are_those_of_their_seeds(run: Run, finished_run: RunFolder) -> None:
    common = ["sample", finished_run.path, "--prompt", "the ", "--max-new-tokens", "30"]
    result = run(*common, "--num-samples", "3", "--seed", "5")
    alone = [run(*common, "--seed", str(seed)).out for seed in (5, 6, 7)]
    assert result == Result(0, "\n".join(alone), "")


def test_json_lines_tell_each_sample(run: Run, finished_run: RunFolder) -> None:
    common = ["sample", finished_run.path, "--prompt", "the ", "--max-new-tokens", "30"]
    result = run(*common, "--num-samples", "2", "--jsonl", "--top-k", "4")
    samples = [json.loads(line) for line in result.out.splitlines()]
    assert (result.status, result.err, len(samples)) == (0, "", 2)
    for sample in samples:
        settings = sample["settings"]
        assert sample["prompt"] == "the "
        assert settings["top_k"] == 4
        assert len(sample["text"]) == len(sample["log_probabilities"]) == 30
        assert all(value <= 0 for value in sample["log_probabilities"])
        alone = run(*common, "--top-k", "4", "--seed", str(settings["seed"]))
        assert alone.out == "the " + sample["text"] + "\n"


def test_a_prompt_is_read_from_stdin(run: Run, finished_run: RunFolder) -> None:
    common = ["sample", finished_run.path, "--max-new-tokens", "30"]
    given = run(*common, "--prompt", "the old\nking ").out
    assert run(*common, "--prompt", "-", stdin=b"the old\nking \n").out == given
    assert run(*common, "--prompt", "-", stdin=b"the old\nking \r\n").out == given
    refused = run(*common, "--prompt", "-", stdin=b"\xff\xfe")
    assert refused.status == 2
    assert "stdin is not UTF-8" in refused.err
    assert refused.err.count("\n") == 1


def test_a_sample_ends_with_the_stop_text(run: Run, finished_run: RunFolder) -> None:
    common = ["sample", finished_run.path, "--prompt", "the "]
    whole = run(*common).out.removeprefix("the ")
    stopped = run(*common, "--stop", whole[9:11]).out.removeprefix("the ")
    assert stopped == whole[: whole.index(whole[9:11]) + 2] + "\n"


def test_the_surprise_of_a_validation_text_goes_into_a_file(
    run: Run, finished_run: RunFolder, tmp_path: Path
) -> None:
    path = tmp_path / "surprise.jsonl"
    result = run("evaluate", finished_run.path, "--json", "--surprise", path)
    assert (result.status, result.err) == (0, "")
    told = json.loads(result.out)
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == told["characters"]
    assert set(lines[0]) == {"character", "log_probability", "candidates"}
    mean = -sum(line["log_probability"] for line in lines) / len(lines)
    assert mean == pytest.approx(told["val_loss"], rel=0.1)


def test_requests_that_make_no_sense(run: Run, finished_run: RunFolder) -> None:
    for arguments, word in (
        (["sample", finished_run.path, "--num-samples", "0"], "--num-samples"),
        (["sample", finished_run.path, "--repetition-penalty", "0.5"], "repetition_penalty"),
        (["evaluate", finished_run.path, "--surprise", "/nowhere/x"], "/nowhere/x"),
    ):
        result = run(*arguments)
        assert (result.status, result.out) == (2, "")
        assert word in result.err
        assert result.err.count("\n") == 1
