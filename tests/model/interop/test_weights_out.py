"""Models in the formats of other programs compute what ours do."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megatron_model.config.fields import ModelConfig, RunConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.interop import gpt2
from megatron_model.interop.huggingface import FILES
from megatron_model.interop.weights_out import export_model
from megatron_model.model.factory import build_model
from megatron_model.run.checkpoint import LoadedModel
from megatron_model.util.errors import RequestError

TEXT = (
    "Hé\n\r\n\t  two  spaces \u00a0 \u2028 😀👨\u200d👩 e\u0301 \x00\x07 中 ▁ Ġ <s> [UNK] "
    "'’ \"don't\" \\ . , ! ?"
)
FEW = "\n abcdefghijklmno"


def a_model(architecture: Any, text: str, **changes: Any) -> LoadedModel:
    """Return a small model with opinions."""
    shape = {"block_size": 32, "embed_dim": 24, "heads": 3, "layers": 2, "ff_dim": 40, **changes}
    config = RunConfig(model=ModelConfig(architecture=architecture, **shape))
    tokenizer = CharTokenizer.from_vocabulary("".join(sorted(set(text))))
    torch.manual_seed(5)
    model = build_model(config.model, tokenizer.vocab_size).eval().requires_grad_(False)
    for value in model.parameters():
        value.add_(0.1 * torch.randn_like(value))
    return LoadedModel(model, tokenizer, config, 7, 1.25, torch.device("cpu"))


def exported(model: LoadedModel, output: Path, kind: str = "hf") -> Path:
    export_model(model, output.parent / "no.safetensors", output, kind)
    return output


def tokens_of(model: LoadedModel) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, model.tokenizer.vocab_size, (2, 32), generator=generator)


def test_a_heads_bias_is_folded_where_that_is_exact() -> None:
    few, many = a_model("classic", FEW), a_model("classic", TEXT)
    folded = gpt2.without_head_bias(few.model.state_dict())
    assert folded is not None
    assert many.tokenizer.vocab_size > 24
    assert gpt2.without_head_bias(many.model.state_dict()) is None
    tokens = tokens_of(few)
    expected = few.model(tokens)
    few.model.load_state_dict({**folded, "head.bias": torch.zeros(few.tokenizer.vocab_size)})
    assert torch.allclose(few.model(tokens), expected, atol=1e-4)
    assert not torch.equal(folded["norm.bias"], a_model("classic", FEW).model.norm.bias)  # type: ignore[arg-type]


@pytest.mark.parametrize("architecture", ["classic", "modern"])
def test_a_folder_holds_all_that_is_needed(architecture: str, tmp_path: Path) -> None:
    model = a_model(architecture, TEXT)
    folder = exported(model, tmp_path / "out")
    names = {path.name for path in folder.iterdir()}
    assert names <= set(FILES)
    about = json.loads((folder / "config.json").read_text())
    for module in about["auto_map"].values():
        assert f"{module.partition('.')[0]}.py" in names
    words = json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert "".join(sorted(words, key=words.__getitem__)) == model.tokenizer.vocabulary
    card = (folder / "README.md").read_text()
    assert "1.2500 nats, 1.8034 bits per character" in card
    assert "trust_remote_code=True" in card


def test_a_folder_is_replaced_only_if_that_was_asked_and_it_is_an_export(tmp_path: Path) -> None:
    model, source = a_model("classic", FEW), tmp_path / "no.safetensors"
    folder = exported(model, tmp_path / "out")
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(RequestError, match="--overwrite replaces it"):
        export_model(model, source, folder, "hf")
    export_model(model, source, folder, "hf", overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(RequestError, match="holds thesis.txt, which no export writes"):
        export_model(model, source, folder, "hf", overwrite=True)
    assert (folder / "thesis.txt").exists()
    with pytest.raises(RequestError, match="is no folder"):
        export_model(model, source, folder / "thesis.txt", "hf", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_what_is_exported_has_the_modes_of_new_files(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        folder = exported(a_model("modern", FEW), tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o640}


@pytest.mark.parametrize("kind", ["hf", "gguf"])
def test_half_characters_are_named(kind: str, tmp_path: Path) -> None:
    model = a_model("classic", "abc\ud800")
    with pytest.raises(RequestError, match=r"no halves of characters, .* U\+D800"):
        exported(model, tmp_path / "out", kind)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("architecture", "text", "reason"),
    [
        ("modern", FEW, "no model like the modern architecture"),
        ("classic", TEXT, "cannot be folded into 24 channels; --format hf"),
    ],
)
def test_what_gguf_cannot_hold_is_said(
    architecture: str, text: str, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(RequestError, match=reason):
        exported(a_model(architecture, text), tmp_path / "out.gguf", "gguf")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "text", "heads"),
    [("classic", FEW, 3), ("classic", TEXT, 3), ("modern", TEXT, 3), ("modern", TEXT, 1)],
)
def test_transformers_computes_the_same(
    architecture: str, text: str, heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    transformers = pytest.importorskip("transformers")
    model = a_model(architecture, text, heads=heads)
    folder = exported(model, tmp_path / "out")
    code = (folder / "config.json").read_text().count("auto_map")
    opened = transformers.AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=bool(code))
    tokens = tokens_of(model)
    with torch.no_grad():
        found = opened(tokens).logits
    assert torch.allclose(found, model.model(tokens), atol=1e-4)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    found_tokens = tokenizer(text).input_ids
    assert found_tokens == list(model.tokenizer.encode(text))
    assert tokenizer.decode(found_tokens) == text
    written = opened.generate(tokens[:1, :4], max_new_tokens=40 if architecture == "modern" else 20)
    assert written.shape[1] == (44 if architecture == "modern" else 24)
    tokenizer.save_pretrained(tmp_path / "again")
    again = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    assert again.decode(found_tokens) == text


@pytest.mark.slow
def test_a_gguf_file_computes_the_same(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    transformers = pytest.importorskip("transformers")
    model = a_model("classic", "'\\\"\n\r\t\x00é中😀", embed_dim=24)
    path = exported(model, tmp_path / "out.gguf", "gguf")
    reader = gguf.GGUFReader(path)
    about = {name: field.contents() for name, field in reader.fields.items()}
    there = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
    plain = {
        "token_embd": "transformer.wte",
        "position_embd": "transformer.wpe",
        "output_norm": "transformer.ln_f",
        "output": "lm_head",
        "attn_norm": "ln_1",
        "attn_qkv": "attn.c_attn",
        "attn_output": "attn.c_proj",
        "ffn_norm": "ln_2",
        "ffn_up": "mlp.c_fc",
        "ffn_down": "mlp.c_proj",
    }
    weights = {}
    for name, value in there.items():
        place, kind = name.rsplit(".", 1)
        layer, _, part = place.removeprefix("blk.").partition(".")
        theirs = f"transformer.h.{layer}.{plain[part]}" if part else plain[place]
        turned = kind == "weight" and part and not part.endswith("norm")
        weights[f"{theirs}.{kind}"] = value.T if turned else value
    opened = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=about["gpt2.vocab_size"],
            n_positions=about["gpt2.context_length"],
            n_embd=about["gpt2.embedding_length"],
            n_layer=about["gpt2.block_count"],
            n_head=about["gpt2.attention.head_count"],
            n_inner=about["gpt2.feed_forward_length"],
            activation_function="gelu",
            layer_norm_epsilon=about["gpt2.attention.layer_norm_epsilon"],
            tie_word_embeddings=False,
        )
    ).eval()
    opened.load_state_dict(weights)
    tokens = tokens_of(model)
    with torch.no_grad():
        found = opened(tokens).logits
    assert torch.allclose(found, model.model(tokens), atol=1e-4)
    words = [as_llama_reads(word) for word in about["tokenizer.ggml.tokens"]]
    assert words == [character.encode() for character in model.tokenizer.vocabulary]


def as_llama_reads(word: str) -> bytes:
    """Return the bytes of a token, as llama.cpp's `llama_unescape_rwkv_token` does."""
    named = {"t": b"\t", "n": b"\n", "r": b"\r"}
    out, rest = b"", word
    while rest:
        if rest.startswith("\\x"):
            out, rest = out + bytes([int(rest[2:4], 16)]), rest[4:]
        elif rest.startswith("\\"):
            out, rest = out + named.get(rest[1], rest[1].encode()), rest[2:]
        else:
            out, rest = out + rest[0].encode(), rest[1:]
    return out


@pytest.mark.slow
def test_llama_cpp_reads_and_computes_the_same(tmp_path: Path) -> None:
    """It approximates GELU for GPT-2, hence the tolerance."""
    llama_cpp = pytest.importorskip("llama_cpp")
    model = a_model("classic", "'\\\"\n\r\té中😀abc ", embed_dim=24)
    path = exported(model, tmp_path / "out.gguf", "gguf")
    llama = llama_cpp.Llama(str(path), n_ctx=32, logits_all=True, verbose=False, n_threads=1)
    text = model.tokenizer.vocabulary[:20]
    tokens = llama.tokenize(text.encode(), add_bos=False, special=False)
    assert tokens == list(model.tokenizer.encode(text))
    assert llama.detokenize(tokens).decode() == text
    llama.eval(tokens)
    with torch.no_grad():
        wanted = model.model(torch.tensor([tokens]))[0]
    assert torch.allclose(torch.from_numpy(llama.scores[: len(tokens)]), wanted, atol=5e-3)
