"""Writing with a cache: the same text as without, at every window, in company and alone."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from torch import nn

from megatron_model.config.fields import SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.inference import decoder as decoding
from megatron_model.inference import native
from megatron_model.inference.decoder import Decoder, kept_characters
from megatron_model.inference.sampler import (
    generate_batch,
    generate_stream,
    several,
)
from megatron_model.util.c_library import c_compiler
from megatron_model.util.library_store import find_library, install, place
from tests.model.helpers import ARCHITECTURES, written_tokens
from tests.model.model.test_models import VOCABULARY, model_with_opinions

both = pytest.mark.parametrize("architecture", ARCHITECTURES)
TOKENIZER = CharTokenizer("\nabcdefghij")
SHAPES: list[dict[str, Any]] = [
    {},
    {"block_size": 1},
    {"block_size": 2, "layers": 1},
    # Nothing here is a multiple of a vector's length.
    {"block_size": 37, "embed_dim": 42, "heads": 3, "ff_dim": 71, "layers": 3},
    # Heads of an odd width.
    {"block_size": 13, "embed_dim": 21, "heads": 3, "ff_dim": 11},
    {"block_size": 5, "embed_dim": 3, "heads": 3, "ff_dim": 4},
    {"block_size": 20, "embed_dim": 64, "heads": 2, "ff_dim": 128},
]


def need_compiled_functions() -> None:
    if c_compiler() is None:
        pytest.skip("there is no C compiler here")
    assert native.compiled_functions(wait=True) is not None


@pytest.fixture(params=["torch", "native"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Decode with torch, or with the compiled step."""
    if request.param == "torch":
        monkeypatch.setattr(decoding, "native_step", lambda *_: None)
    else:
        need_compiled_functions()
    return str(request.param)


@both
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "-".join(map(str, shape.values())))
@pytest.mark.parametrize("streams", [1, 3, 9])
def test_logits_are_the_same_far_past_the_block(
    architecture: str, shape: dict[str, Any], streams: int, engine: str
) -> None:
    model = model_with_opinions(architecture, **shape)
    cached, plain = Decoder(model, streams), Decoder(model, streams, cached=False)
    draw = np.random.default_rng(2)
    found, expected = cached.start([1, 2]), plain.start([1, 2])
    for _ in range(5 * cached.block_size + 9):
        assert np.allclose(found, expected, atol=1e-4)
        tokens = draw.integers(VOCABULARY, size=streams).tolist()
        found, expected = cached.step(tokens), plain.step(tokens)
    assert (cached._native is not None) == (engine == "native")


@both
@pytest.mark.parametrize(
    "sampling",
    [
        SamplingConfig(temperature=0.0),
        SamplingConfig(temperature=1.0, seed=5),
        SamplingConfig(temperature=1.3, top_k=7, top_p=0.9, min_p=0.02, repetition_penalty=1.2),
    ],
    ids=["greedy", "sampled", "filtered"],
)
@pytest.mark.parametrize("prompt", [1, 16, 50], ids=lambda length: f"prompt of {length}")
def test_texts_are_the_same_with_and_without_a_cache(
    architecture: str, sampling: SamplingConfig, prompt: int, engine: str
) -> None:
    model = model_with_opinions(architecture)
    start = [index % VOCABULARY for index in range(prompt)]
    asked = msgspec.structs.replace(sampling, max_new_tokens=200)
    texts = [list(written_tokens(model, start, asked, cached=c)) for c in (True, False)]
    assert texts[0] == texts[1]
    assert len(set(texts[0])) > 1


@both
def test_a_text_does_not_depend_on_its_company(architecture: str, engine: str) -> None:
    model = model_with_opinions(architecture)
    lengths = [70, 0, 5, 33, 70, 12, 1, 70, 40]
    asked = [
        msgspec.structs.replace(each, max_new_tokens=length, temperature=0.2 * (1 + length % 7))
        for each, length in zip(several(SamplingConfig(), 9), lengths, strict=True)
    ]
    columns = list(generate_batch(model, TOKENIZER, "ab", asked))
    texts = ["".join(column) for column in zip(*columns, strict=True)]
    alone = ["".join(generate_stream(model, TOKENIZER, "ab", each)) for each in asked]
    assert texts == alone
    assert [len(text) for text in texts] == lengths


@both
def test_the_logits_of_a_stream_are_to_the_bit_those_of_it_alone(architecture: str) -> None:
    need_compiled_functions()
    model = model_with_opinions(architecture, embed_dim=42, heads=3, ff_dim=71)
    together, alone = Decoder(model, 9), Decoder(model)
    together.start([1])
    alone.start([1])
    for token in (3, 1, 4, 1, 5):
        row = together.step([token, *range(8)])[0].copy()
        assert np.array_equal(row, alone.step([token])[0])


def test_the_window_is_cut_to_half_and_read_again() -> None:
    assert [kept_characters(block) for block in (1, 2, 3, 16, 256)] == [1, 1, 1, 8, 128]
    model = model_with_opinions("classic")
    decoder = Decoder(model)
    tokens = [index % VOCABULARY for index in range(17)]
    decoder.start(tokens[:1])
    for token in tokens[1:]:
        logits = decoder.step([token])
    with torch.no_grad():
        expected = model(torch.tensor([tokens[-8:]]))[0, -1].numpy()
    assert np.allclose(logits[0], expected, atol=1e-5)


@both
@pytest.mark.parametrize("training", [True, False])
def test_the_models_mode_is_left_alone(architecture: str, training: bool, engine: str) -> None:
    model = model_with_opinions(architecture, dropout=0.5).train(training)
    for cached in (True, False):
        asked = SamplingConfig(max_new_tokens=40)
        stream = generate_stream(model, TOKENIZER, "a", asked, cached=cached)
        next(stream)
        assert all(module.training == training for module in model.modules())
    texts = {"".join(generate_stream(model, TOKENIZER, "a", asked)) for _ in range(3)}
    assert len(texts) == 1  # nothing is dropped while it writes


@both
def test_weights_that_are_trained_on_are_written_with(architecture: str, engine: str) -> None:
    model = model_with_opinions(architecture)
    decoder = Decoder(model)
    decoder.start([1])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    after = Decoder(model)
    for _ in range(decoder.block_size):  # until the window has moved, and all was read again
        found = decoder.step([2])
    after.start([2] * kept_characters(decoder.block_size))
    expected = Decoder(model, cached=False).start([2] * kept_characters(decoder.block_size))
    assert np.allclose(found, expected, atol=1e-5)


def test_a_model_of_another_kind_is_computed_as_a_whole() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block_size, self.vocab_size = 4, VOCABULARY
            self.table = nn.Embedding(VOCABULARY, VOCABULARY)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.table(tokens)
            return logits

    torch.manual_seed(1)
    assert len(list(generate_stream(Plain(), TOKENIZER, "a"))) == 500


@both
def test_doubles_are_decoded_by_torch(architecture: str) -> None:
    model = model_with_opinions(architecture).double()
    cached = Decoder(model)
    assert len(list(written_tokens(model, [1], SamplingConfig(max_new_tokens=40)))) == 40
    assert cached._native is None


def test_more_than_a_block_does_not_fit_into_a_cache() -> None:
    for architecture in ARCHITECTURES:
        model: Any = model_with_opinions(architecture)
        with pytest.raises(ValueError, match="17 characters are more than the block size 16"):
            model.extend(torch.zeros(1, 17, dtype=torch.long), model.new_cache(1))


@pytest.fixture
def fresh_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A cache without libraries, and a process that looked for none yet."""
    looked_up = (native._start_compiler, native._load, native._say)
    for function in looked_up:
        function.cache_clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "megatron" / "compiled"
    for function in looked_up:
        function.cache_clear()


def test_without_a_compiler_torch_decodes(
    fresh_cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert native.compiled_functions(wait=True) is None
    assert native.compiled_functions() is None
    assert [record.getMessage() for record in caplog.records] == [
        "text is written without the compiled step: there is no C compiler"
    ]
    model = model_with_opinions("modern")
    assert len(list(generate_stream(model, TOKENIZER, "a"))) == 500


@pytest.mark.slow
@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
def test_another_folder_of_libraries_gets_its_own(
    fresh_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert native.compiled_functions(wait=True) is not None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert native.compiled_functions(wait=True) is not None


def test_a_library_that_cannot_be_loaded_is_built_anew(
    fresh_cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place()
    (garbage := tmp_path / "garbage").write_bytes(b"whole, but no library" * 100)
    install(garbage, fresh_cache / native.LIBRARY.name)
    assert native.compiled_functions(wait=True) is None
    assert "invalid ELF header" in caplog.text or "not a mach-o" in caplog.text
    assert find_library(native.LIBRARY.name) is None


def test_a_struct_that_differs_from_the_one_in_c_is_said_and_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    need_compiled_functions()
    path = native.LIBRARY.find()
    assert path is not None
    library = ctypes.CDLL(str(path))
    native.check_sizes(library)

    class Longer(native._Layer):
        _fields_ = [("forgotten", ctypes.c_void_p)]

    monkeypatch.setattr(native, "_Layer", Longer)
    wanted = f"decode.c has {ctypes.sizeof(Longer) - 8} bytes for a layer, "
    with pytest.raises(native.StructSizeError, match=wanted):
        native.check_sizes(library)
    monkeypatch.setattr(native, "discard", lambda path: None)
    load = native._load.__wrapped__
    assert load(path) is None
    assert wanted in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(c_compiler() is None, reason="there is no C compiler")
def test_a_library_that_was_cut_short_is_built_anew(fresh_cache: Path) -> None:
    assert native.compiled_functions(wait=True) is not None
    path = find_library(native.LIBRARY.name)
    assert path is not None
    native._start_compiler.cache_clear()
    native._load.cache_clear()
    size = path.stat().st_size
    # Not the file that is mapped: one in its place.
    content = path.read_bytes()[:4096]
    path.unlink()
    path.write_bytes(content)
    assert native.compiled_functions(wait=True) is not None
    assert path.stat().st_size == size
