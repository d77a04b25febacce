"""Writing on a CUDA card: graphs write what the CPU does; what they cannot is done slowly."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import torch
from torch import nn

from megatron_model.config.fields import ModelConfig, SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference import graph_writer
from megatron_model.inference.device_sampler import what_is_asked
from megatron_model.inference.graph_writer import GraphWriter, Request
from megatron_model.inference.precision import Precision
from megatron_model.inference.sampler import generate_batch, several
from megatron_model.model.factory import build_model
from megatron_model.model.modern import ModernTransformer
from megatron_model.util.errors import RequestError

pytest.importorskip("triton")
from megatron_model.inference.fused_reader import FusedReader, is_ready

TOKENIZER = CharTokenizer("\n" + "".join(chr(97 + index) for index in range(26)))
BLOCK = 64
WAYS = (
    SamplingConfig(temperature=0.9),
    SamplingConfig(temperature=0.0),
    SamplingConfig(temperature=1.2, top_k=5),
    SamplingConfig(temperature=1.2, top_p=0.8, repetition_penalty=1.2),
    SamplingConfig(temperature=1.2, min_p=0.1),
)
both = pytest.mark.parametrize("architecture", ["modern", "classic"])


@pytest.fixture(autouse=True)
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The launches that were captured, in order."""
    captured: list[int] = []
    capture = GraphWriter.capture

    def noted(writer: GraphWriter, launches: set[int]) -> None:
        capture(writer, launches)
        captured.extend(launches)

    monkeypatch.setattr(GraphWriter, "capture", noted)
    graph_writer._say.cache_clear()
    yield captured
    graph_writer._idle.clear()


def a_model(architecture: Any, **changes: Any) -> nn.Module:
    """Return a model on the CPU, small, but of a shape that a card likes."""
    shape: dict[str, Any] = {"block_size": BLOCK, "embed_dim": 128, "heads": 2, "layers": 3}
    config = ModelConfig(architecture=architecture, ff_dim=256, **{**shape, **changes})
    torch.manual_seed(3)
    model = build_model(config, TOKENIZER.vocab_size).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def texts(
    model: nn.Module,
    asked: list[SamplingConfig],
    precision: Precision = "float32",
    prompt: str = "abc",
) -> list[str]:
    columns = list(generate_batch(model, TOKENIZER, prompt, asked, precision=precision))
    return ["".join(column) for column in zip(*columns, strict=True)]


def on_cpu(model: nn.Module, asked: list[SamplingConfig], prompt: str = "abc") -> list[str]:
    return texts(model.cpu(), asked, prompt=prompt)


@both
@pytest.mark.parametrize("prompt", ["a", "abcdefgh" * 9], ids=["short", "longer than the block"])
def test_a_graph_writes_the_text_of_the_cpu(
    architecture: str, prompt: str, graphs: list[int]
) -> None:
    model = a_model(architecture)
    asked = [msgspec.structs.replace(way, max_new_tokens=3 * BLOCK + 9) for way in WAYS]
    for one in asked:
        expected = on_cpu(model, [one], prompt)
        assert texts(model.cuda(), [one], prompt=prompt) == expected
    assert set(graphs) >= {0, graph_writer.TOGETHER}


@pytest.mark.parametrize("shape", [{}, {"embed_dim": 42, "heads": 6, "block_size": 21}])
def test_kernels_of_our_own_write_the_text_of_the_cpu(
    shape: dict[str, int], graphs: list[int]
) -> None:
    model = a_model("modern", **shape)
    prompt = "abcdefgh" * 9
    asked = [msgspec.structs.replace(way, max_new_tokens=3 * BLOCK + 9) for way in WAYS]
    expected = [on_cpu(model, [one], prompt) for one in asked]
    model.cuda()
    assert isinstance(model, ModernTransformer)
    assert is_ready(model, torch.float32, wait=True)
    for one, text in zip(asked, expected, strict=True):
        assert texts(model, [one], prompt=prompt) == text
        assert isinstance(graph_writer._idle[model].writer._reader, FusedReader)
    assert graphs


def test_kernels_of_our_own_are_near_in_half_precision() -> None:
    model = a_model("modern").cuda()
    assert isinstance(model, ModernTransformer)
    logits = []
    for fused in (False, True):
        sampling = SamplingConfig(max_new_tokens=2 * BLOCK, temperature=0.0)
        writer = GraphWriter(model, 1, what_is_asked([sampling]), torch.bfloat16, fused=fused)
        draws = iter([0.5] * 2)
        for _ in writer.write(Request([1, 2, 3], [], [sampling], [[]], [draws], 1)):
            pass
        logits.append(writer._logits.clone())
    assert logits[0].isfinite().all()
    assert torch.allclose(*logits, atol=0.1)


def test_kernels_are_compiled_behind_the_first_text(graphs: list[int]) -> None:
    model = a_model("modern", embed_dim=96).cuda()
    asked = [SamplingConfig(max_new_tokens=100)]
    expected = texts(model, asked)
    assert isinstance(model, ModernTransformer)
    assert is_ready(model, torch.float32, wait=True)
    assert texts(model, asked) == expected
    assert isinstance(graph_writer._idle[model].writer._reader, FusedReader)


@both
def test_several_streams_write_what_each_would_alone(architecture: str, graphs: list[int]) -> None:
    model = a_model(architecture)
    asked = [msgspec.structs.replace(way, max_new_tokens=150 - 9 * n) for n, way in enumerate(WAYS)]
    expected = on_cpu(model, asked)
    model.cuda()
    assert texts(model, asked) == expected
    assert graphs
    count = len(graphs)
    assert texts(model, asked) == expected
    assert len(graphs) == count, "the graphs are kept for the next text"


@both
@pytest.mark.parametrize("streams", [1, 64])
def test_half_precision_writes_far_past_the_window(
    architecture: str, streams: int, graphs: list[int]
) -> None:
    model = a_model(architecture).cuda()
    asked = several(SamplingConfig(max_new_tokens=500), streams)
    found = texts(model, asked, "auto")
    assert [len(text) for text in found] == [500] * streams
    assert len(set(found)) == streams
    assert texts(model, asked, "auto") == found
    assert graphs


@both
def test_a_shape_that_fused_attention_does_not_take(architecture: str) -> None:
    model = a_model(architecture, embed_dim=42, heads=6, block_size=21)
    asked = several(SamplingConfig(max_new_tokens=90), 3)
    expected = on_cpu(model, asked)
    assert texts(model.cuda(), asked) == expected
    assert [len(text) for text in texts(model, asked, "auto")] == [90] * 3


def test_without_a_graph_the_text_is_the_same(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = a_model("modern").cuda()
    asked = several(SamplingConfig(max_new_tokens=150), 2)
    expected = texts(model, asked, "auto")
    graph_writer._idle.clear()
    compute = GraphWriter._compute

    def refused(writer: GraphWriter, launch: int) -> None:
        compute(writer, launch)
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not today")

    with monkeypatch.context() as patch:
        patch.setattr(GraphWriter, "_compute", refused)
        assert texts(model, asked, "auto") == expected
    assert "without a graph" in caplog.text
    assert texts(model, asked, "auto") == expected


def test_damaged_weights_are_said(graphs: list[int]) -> None:
    model = a_model("classic")
    next(model.parameters())[5] = float("nan")
    with pytest.raises(RequestError, match="NaN or infinity"):
        texts(model.cuda(), [SamplingConfig(temperature=10.0, max_new_tokens=400)])
    assert graphs


def test_another_thread_computes_while_it_writes(graphs: list[int]) -> None:
    model = a_model("modern").cuda()
    asked = several(SamplingConfig(max_new_tokens=300), 2)
    expected = texts(model, asked)
    over, wrong = threading.Event(), []

    def compute() -> None:
        try:
            while not over.is_set():
                float(torch.randn(256, 256, device="cuda").square().sum())
        except RuntimeError as error:
            wrong.append(error)

    thread = threading.Thread(target=compute)
    thread.start()
    try:
        # Captured before: see `trained_here` for what a trainer could not bear.
        assert [texts(model, asked) for _ in range(3)] == [expected] * 3
    finally:
        over.set()
        thread.join()
    assert not wrong
