"""The writer for CUDA cards, tried on the CPU: the same characters as the decoder, to the last."""

from __future__ import annotations

import gc
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from megatron_model.config.fields import REPETITION_SPAN, SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference import graph_writer
from megatron_model.inference.decoder import Decoder
from megatron_model.inference.device_sampler import HIGHEST_DRAW, DeviceSampler, what_is_asked
from megatron_model.inference.graph_writer import TOGETHER, GraphWriter, Request
from megatron_model.inference.precision import Precision
from megatron_model.inference.sampler import (
    choose,
    generate_batch,
    generate_stream,
    several,
)
from megatron_model.util import recording
from megatron_model.util.errors import RequestError
from tests.model.helpers import ARCHITECTURES
from tests.model.model.test_models import model_with_opinions

both = pytest.mark.parametrize("architecture", ARCHITECTURES)
TOKENIZER = CharTokenizer("\nabcdefghij")
WAYS = {
    "greedy": SamplingConfig(temperature=0.0),
    "sampled": SamplingConfig(temperature=1.0, seed=5),
    "top k": SamplingConfig(temperature=1.3, top_k=4),
    "top p": SamplingConfig(temperature=1.3, top_p=0.7),
    "min p": SamplingConfig(temperature=1.3, min_p=0.2),
    "penalty": SamplingConfig(repetition_penalty=1.4),
    "greedy penalty": SamplingConfig(temperature=0.0, repetition_penalty=1.2),
    "all": SamplingConfig(
        temperature=1.3, top_k=7, top_p=0.9, min_p=0.02, repetition_penalty=1.2, seed=9
    ),
}
SHAPES: list[dict[str, Any]] = [
    {"block_size": 1},
    {"block_size": 2, "layers": 1},
    {"block_size": 37, "embed_dim": 42, "heads": 3, "ff_dim": 71, "layers": 3},
    {"block_size": 48, "embed_dim": 21, "heads": 3, "ff_dim": 11},
    {"block_size": 64},
]


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[GraphWriter]]:
    """Take the CPU for a card on which nothing can be captured; the writers that were made."""
    made: list[GraphWriter] = []

    class Noted(GraphWriter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(graph_writer, "_is_on_card", lambda model: True)
    monkeypatch.setattr(graph_writer, "device_dtype", lambda device, precision: torch.float32)
    monkeypatch.setattr(graph_writer, "GraphWriter", Noted)
    graph_writer._say.cache_clear()
    yield made
    graph_writer._say.cache_clear()


def batch(model: nn.Module, prompt: str, asked: list[SamplingConfig], **more: Any) -> list[str]:
    columns = list(generate_batch(model, TOKENIZER, prompt, asked, **more))
    return ["".join(column) for column in zip(*columns, strict=True)]


def on_cpu(model: nn.Module, prompt: str, asked: list[SamplingConfig]) -> list[str]:
    """Write each text alone, by another way than the writer's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_writer, "_is_on_card", lambda model: False)
        return ["".join(generate_stream(model, TOKENIZER, prompt, each)) for each in asked]


@both
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("prompt", ["", "abcdefghij" * 3], ids=["no prompt", "long prompt"])
def test_every_way_of_sampling_writes_the_same_text(
    architecture: str, way: str, prompt: str, card: list[GraphWriter]
) -> None:
    model = model_with_opinions(architecture)
    asked = [msgspec.structs.replace(WAYS[way], max_new_tokens=150)]
    found = batch(model, prompt, asked)
    assert len(card) == 1
    assert found == on_cpu(model, prompt, asked)
    assert len(set(found[0])) > 1


@both
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
def test_the_window_moves_as_it_does_elsewhere(
    architecture: str, shape: dict[str, Any], card: list[GraphWriter]
) -> None:
    model = model_with_opinions(architecture, **shape)
    asked = several(SamplingConfig(max_new_tokens=170, temperature=1.1), 3)
    for prompt in ("a", "abcdefghij" * 4):
        assert batch(model, prompt, asked) == on_cpu(model, prompt, asked)


@both
def test_streams_that_differ_in_everything_share_a_writer(
    architecture: str, card: list[GraphWriter]
) -> None:
    model = model_with_opinions(architecture)
    lengths = [70, 0, 5, 33, 64, 12, 1, 69]
    asked = [
        msgspec.structs.replace(way, max_new_tokens=length, seed=length)
        for way, length in zip(WAYS.values(), lengths, strict=True)
    ]
    found = batch(model, "ab", asked)
    assert len(card) == 1
    assert found == on_cpu(model, "ab", asked)
    assert [len(text) for text in found] == lengths


@both
def test_a_text_ends_with_its_stop_text_and_goes_on_after_a_stop(
    architecture: str, card: list[GraphWriter]
) -> None:
    model = model_with_opinions(architecture)
    asked = SamplingConfig(max_new_tokens=90, seed=3, repetition_penalty=1.1)
    (whole,) = batch(model, "abc", [asked])
    wanted = msgspec.structs.replace(asked, stop=whole[40:43])
    assert batch(model, "abc", [wanted]) == [whole[: whole.index(whole[40:43]) + 3]]
    for cut in (1, 12, 13, 14, 17, 40, 89):
        assert batch(model, "abc", [asked], written=whole[:cut]) == [whole[cut:]]
    assert batch(model, "abc", [asked], written=whole) == []


@both
def test_many_positions_are_read_part_by_part(
    architecture: str, card: list[GraphWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_with_opinions(architecture)
    asked = several(SamplingConfig(max_new_tokens=60), 5)
    expected = on_cpu(model, "abc", asked)
    for at_once in (1, 17):
        monkeypatch.setattr(graph_writer, "READ_AT_ONCE", at_once)
        assert batch(model, "abc", asked) == expected


@both
def test_launches_of_few_sizes_write_the_same(
    architecture: str, card: list[GraphWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with graphs: many characters, one, or a move; and some past the end are dropped."""
    sizes: list[int] = []

    class Graph:
        def __init__(self, writer: GraphWriter, launch: int) -> None:
            self._writer, self._launch = writer, launch

        def replay(self) -> None:
            sizes.append(self._launch)
            self._writer._compute(self._launch)

    def capture(writer: GraphWriter, launches: set[int]) -> None:
        writer._graphs |= {launch: Graph(writer, launch) for launch in launches}  # type: ignore[misc]

    monkeypatch.setattr(GraphWriter, "capture", capture)
    model = model_with_opinions(architecture, block_size=40).requires_grad_(False)
    asked = several(SamplingConfig(max_new_tokens=101), 2)
    expected = on_cpu(model, "abc", asked)
    assert batch(model, "abc", asked) == expected
    assert set(sizes) == {TOGETHER, 1, 0}
    # Kept for the next text of the model, of whatever length, and for no other kind.
    shorter = [msgspec.structs.replace(each, max_new_tokens=20) for each in asked]
    assert batch(model, "abc", shorter) == [text[:20] for text in expected]
    assert len(card) == 1
    assert batch(model, "abc", asked[:1]) == expected[:1]
    assert len(card) == 2
    # What was changed is read anew, and of what is trained none is kept.
    with torch.no_grad():
        next(model.parameters()).mul_(0.5)
    assert batch(model, "abc", asked) == on_cpu(model, "abc", asked)
    assert len(card) == 3
    model.requires_grad_(True)
    for count in (3, 4, 5):
        batch(model, "abc", asked)
        assert len(card) == count


def test_what_a_text_took_is_given_back_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[GraphWriter]] = []

    class Noted(GraphWriter):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(weakref.ref(self))

    monkeypatch.setattr(graph_writer, "_is_on_card", lambda model: True)
    monkeypatch.setattr(graph_writer, "device_dtype", lambda device, precision: torch.float32)
    monkeypatch.setattr(graph_writer, "GraphWriter", Noted)
    model = model_with_opinions("modern")
    gc.disable()
    try:
        batch(model, "a", [SamplingConfig(max_new_tokens=40)])
        stream = generate_stream(model, TOKENIZER, "a", SamplingConfig(max_new_tokens=40))
        next(stream)
        del stream
        assert [writer() for writer in made] == [None, None]
    finally:
        gc.enable()


def test_two_texts_at_the_same_time_have_a_writer_each(
    card: list[GraphWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GraphWriter, "captured", True)
    model = model_with_opinions("modern").requires_grad_(False)
    asked = several(SamplingConfig(max_new_tokens=40), 2)
    streams = [generate_stream(model, TOKENIZER, "a", each) for each in asked]
    pairs = list(zip(*streams, strict=True))
    assert ["".join(text) for text in zip(*pairs, strict=True)] == on_cpu(model, "a", asked)
    assert len(card) == 2


@both
def test_damaged_weights_are_said_where_they_are_met(
    architecture: str, card: list[GraphWriter]
) -> None:
    model = model_with_opinions(architecture)
    with torch.no_grad():
        list(model.parameters())[0][3] = float("nan")  # the embedding of one character
    asked = SamplingConfig(max_new_tokens=200, temperature=10.0)
    texts = []
    for write in (lambda: batch_of_one(model, asked), lambda: cpu_of_one(model, asked)):
        text = ""
        with pytest.raises(RequestError, match="NaN or infinity"):
            for piece in write():
                text += piece
        texts.append(text)
    assert texts[0] == texts[1]
    assert texts[0].endswith("c")


def batch_of_one(model: nn.Module, asked: SamplingConfig) -> Iterator[str]:
    return generate_stream(model, TOKENIZER, "a", asked)


def cpu_of_one(model: nn.Module, asked: SamplingConfig) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph_writer, "_is_on_card", lambda model: False)
        yield from generate_stream(model, TOKENIZER, "a", asked)


def test_without_a_card_a_capture_fails_and_that_is_said_once(
    card: list[GraphWriter], caplog: pytest.LogCaptureFixture
) -> None:
    model = model_with_opinions("modern")
    asked = [SamplingConfig(max_new_tokens=100)]
    assert batch(model, "a", asked) == batch(model, "a", asked) == on_cpu(model, "a", asked)
    (record,) = caplog.records
    assert record.getMessage().startswith("text is written without a graph: ")


def test_without_room_for_a_writer_the_decoder_writes(
    card: list[GraphWriter], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any, **__: Any) -> GraphWriter:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(graph_writer, "GraphWriter", full)
    model = model_with_opinions("modern")
    asked = [SamplingConfig(max_new_tokens=100)]
    assert batch(model, "a", asked) == on_cpu(model, "a", asked)
    assert "without the fast writer: no memory" in caplog.text


@both
def test_in_half_precision_it_says_almost_the_same(architecture: str) -> None:
    model: Any = model_with_opinions(architecture, block_size=32, embed_dim=32)
    sampling = SamplingConfig(max_new_tokens=60, temperature=0.0)
    writer = GraphWriter(model, 1, what_is_asked([sampling]), torch.bfloat16)
    request = Request([1, 2], [], [sampling], [[1, 2]], [itertools.repeat(0.5)], 60)
    decoder = Decoder(model)
    logits = decoder.start([1, 2])
    for part in writer.write(request):
        assert part.finite.all()
        assert part.tokens.dtype == np.int64
        for token in part.tokens[:, 0].tolist():
            assert logits.max() - logits[0, token] < 0.5
            logits = decoder.step([token])


@pytest.mark.parametrize(
    "way",
    [
        SamplingConfig(typical_p=0.7),
        SamplingConfig(forbidden="ab"),
        SamplingConfig(only="abc"),
        SamplingConfig(repetition_penalty=1.3, repetition_window=5),
    ],
)
def test_what_a_card_cannot_draw_is_drawn_elsewhere(
    card: list[GraphWriter], way: SamplingConfig
) -> None:
    model = model_with_opinions("modern", block_size=16)
    asked = [msgspec.structs.replace(way, max_new_tokens=40)]
    assert batch(model, "ab", asked) == on_cpu(model, "ab", asked)
    assert not card


@pytest.mark.parametrize("seed", range(4))
def test_a_character_is_drawn_as_on_the_cpu(seed: int) -> None:
    draw = np.random.default_rng(seed)
    samplings = [*WAYS.values(), *several(SamplingConfig(temperature=1e-12), 2)]
    vocabulary, count = 23, 90
    sampler = DeviceSampler(
        what_is_asked(samplings), len(samplings), vocabulary, torch.device("cpu")
    )
    recent = [draw.integers(vocabulary, size=size * 9).tolist() for size in range(len(samplings))]
    sampler.start(samplings, recent)
    for number in range(count):
        scale = (0.0, 0.3, 3.0, 30.0)[number % 4]
        logits = (scale * draw.normal(size=(len(samplings), vocabulary))).astype(np.float32)
        draws = np.minimum(draw.random(len(samplings)), HIGHEST_DRAW)
        found = sampler.choose(torch.from_numpy(logits), torch.from_numpy(draws)).tolist()
        expected = [
            choose(row, sampling, share, before[-REPETITION_SPAN:])
            for row, sampling, share, before in zip(logits, samplings, draws, recent, strict=True)
        ]
        if scale:  # of equals, rounding decides which is the last of a share
            assert found == expected
        for before, token in zip(recent, found, strict=True):
            before.append(token)


@pytest.mark.parametrize("way", WAYS)
def test_whatever_the_logits_are_a_token_is_one_of_the_vocabulary(way: str) -> None:
    sampling = WAYS[way]
    sampler = DeviceSampler(what_is_asked([sampling]), 1, 3, torch.device("cpu"))
    odd = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0]
    for share in (0.0, 0.5, HIGHEST_DRAW):
        for values in itertools.product(odd, repeat=3):
            sampler.start([sampling], [[1]])
            token = int(
                sampler.choose(torch.tensor([values]), torch.tensor([share], dtype=torch.float64))
            )
            assert 0 <= token < 3
            if all(np.isfinite(values)):
                assert token == choose(np.array(values, np.float32), sampling, share, [1])


def test_who_trains_on_a_card_is_known_for_as_long_as_he_lives() -> None:
    class Trainer:
        """Somebody."""

    gc.collect()
    assert not recording.trained_here()
    trainer = Trainer()
    recording.train_here(trainer)
    assert recording.trained_here()
    del trainer
    gc.collect()
    assert not recording.trained_here()


def test_a_model_on_the_cpu_has_its_own_way() -> None:
    model = model_with_opinions("modern")
    request = Request([1], [], [SamplingConfig()], [[1]], [itertools.repeat(0.5)], 500)
    precision: Precision = "auto"
    assert graph_writer.write_on_card(model, request, precision) is None
