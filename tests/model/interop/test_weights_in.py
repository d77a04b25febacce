"""Models of other programs become runs, compute what they did, and execute nothing."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_model.interop.weights_in import import_weights, read_weights
from megatron_model.run.checkpoint import load_model
from megatron_model.run.folder import find_model
from megatron_model.util.errors import RequestError
from tests.model.cli.test_cli import Run, run  # noqa: F401
from tests.model.interop.test_weights_out import FEW, TEXT, a_model, exported, tokens_of

WIDTH, HEADS, LAYERS, BLOCK = 12, 3, 2, 16
CHARACTERS = "\n abcdé"


def nanogpt_weights(*, bias: bool) -> dict[str, Tensor]:
    """Return weights by nanoGPT's names."""
    generator = torch.Generator().manual_seed(2)

    def some(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.3

    found = {
        "transformer.wte.weight": some(len(CHARACTERS), WIDTH),
        "transformer.wpe.weight": some(BLOCK, WIDTH),
        "transformer.ln_f.weight": 1 + some(WIDTH),
        "transformer.ln_f.bias": some(WIDTH),
    }
    shapes = {
        "ln_1": (WIDTH,),
        "attn.c_attn": (3 * WIDTH, WIDTH),
        "attn.c_proj": (WIDTH, WIDTH),
        "ln_2": (WIDTH,),
        "mlp.c_fc": (4 * WIDTH, WIDTH),
        "mlp.c_proj": (WIDTH, 4 * WIDTH),
    }
    for layer in range(LAYERS):
        for part, shape in shapes.items():
            found[f"transformer.h.{layer}.{part}.weight"] = some(*shape)
            found[f"transformer.h.{layer}.{part}.bias"] = some(shape[0])
    found["lm_head.weight"] = found["transformer.wte.weight"]
    return {name: value for name, value in found.items() if bias or not name.endswith(".bias")}


def nanogpt_logits(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Compute what nanoGPT's `GPT.forward` does, by its formulas."""

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, (WIDTH,), weights[f"{name}.weight"], weights.get(f"{name}.bias"))

    batch, length = tokens.shape
    x = weights["transformer.wte.weight"][tokens] + weights["transformer.wpe.weight"][:length]
    for layer in range(LAYERS):
        at = f"transformer.h.{layer}"
        parts = linear(norm(x, f"{at}.ln_1"), f"{at}.attn.c_attn").split(WIDTH, dim=2)
        q, k, v = (p.view(batch, length, HEADS, WIDTH // HEADS).transpose(1, 2) for p in parts)
        scores = (q @ k.mT) / (WIDTH // HEADS) ** 0.5
        seen = torch.ones(length, length).tril().bool()
        y = scores.masked_fill(~seen, float("-inf")).softmax(-1) @ v
        x = x + linear(y.transpose(1, 2).reshape(batch, length, WIDTH), f"{at}.attn.c_proj")
        x = x + linear(F.gelu(linear(norm(x, f"{at}.ln_2"), f"{at}.mlp.c_fc")), f"{at}.mlp.c_proj")
    return F.linear(norm(x, "transformer.ln_f"), weights["lm_head.weight"])


def save_nanogpt(folder: Path, weights: dict[str, Tensor], **changes: Any) -> Path:
    """Write a checkpoint as nanoGPT's train.py does, and its meta.pkl."""
    arguments = {"n_layer": LAYERS, "n_head": HEADS, "n_embd": WIDTH, "block_size": BLOCK}
    arguments |= {"bias": "transformer.ln_f.bias" in weights, "vocab_size": len(CHARACTERS)}
    found = {
        "model": weights,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": []},
        "model_args": {**arguments, "dropout": 0.2},
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "shakespeare_char", "max_iters": 5000},
        **changes,
    }
    torch.save(found, folder / "ckpt.pt")
    itos = dict(enumerate(CHARACTERS))
    meta = {"vocab_size": len(itos), "itos": itos, "stoi": {c: i for i, c in itos.items()}}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder / "ckpt.pt"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_checkpoint_of_nanogpt_computes_the_same(bias: bool, prefix: str, tmp_path: Path) -> None:
    weights = nanogpt_weights(bias=bias)
    path = save_nanogpt(tmp_path, {prefix + name: value for name, value in weights.items()})
    read = read_weights(path, None)
    folder = import_weights(tmp_path / "runs", "theirs", path, read)
    loaded = load_model(find_model("theirs", tmp_path / "runs"), "cpu")
    assert (loaded.step, loaded.val_loss) == (250, 1.5)
    assert loaded.tokenizer.vocabulary == CHARACTERS
    tokens = torch.arange(2 * BLOCK).view(2, BLOCK) % len(CHARACTERS)
    assert torch.allclose(loaded.model(tokens), nanogpt_logits(weights, tokens), atol=1e-6)
    state = folder.state()
    assert (state.status, state.step, state.best_val_loss) == ("finished", 250, 1.5)


def test_the_command_line_imports_writes_and_refuses_to_resume(
    tmp_path: Path,
    run: Run,  # noqa: F811
) -> None:
    path = save_nanogpt(tmp_path, nanogpt_weights(bias=True))
    result = run("import", path, "--name", "theirs")
    assert result.status == 0, result.err
    assert "7 characters, step 250, validation loss 1.5000" in result.err
    written = run("sample", "theirs", "--prompt", "ab", "--max-new-tokens", "20")
    assert len(written.out) == 23, written.err
    again = run("train", "--resume", "theirs")
    assert again.status == 2
    assert "go on from them with megatron-model train CORPUS --from theirs" in again.err


@pytest.mark.parametrize(
    ("architecture", "text"), [("classic", FEW), ("classic", TEXT), ("modern", TEXT)]
)
def test_what_was_exported_is_imported(architecture: str, text: str, tmp_path: Path) -> None:
    model = a_model(architecture, text)
    folder = exported(model, tmp_path / "out")
    state = read_weights(folder, None).state
    again = state.load(torch.device("cpu"))
    assert again.tokenizer.vocabulary == model.tokenizer.vocabulary
    tokens = tokens_of(model)
    assert torch.allclose(again.model(tokens), model.model(tokens), atol=1e-4)


class Code:
    """What unpickling would run."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (Path("HACKED"), "yes"))


def test_no_code_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = save_nanogpt(tmp_path, nanogpt_weights(bias=True))
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"itos": Code()}))
    with pytest.raises(RequestError, match="more than plain data .*it was not opened"):
        read_weights(path, None)
    # A memo of two thousand million places.
    (tmp_path / "meta.pkl").write_bytes(
        b"\x80\x04N" + b"r" + (2**31 - 1).to_bytes(4, "little") + b"."
    )
    with pytest.raises(RequestError, match="more than plain data"):
        read_weights(path, None)
    (tmp_path / "meta.pkl").write_bytes(b"NNa.")
    with pytest.raises(RequestError, match=r"no meta.pkl of nanoGPT"):
        read_weights(path, None)
    save_nanogpt(tmp_path, nanogpt_weights(bias=True), config=Code())
    with pytest.raises(RequestError, match="more than tensors and plain values"):
        read_weights(path, None)
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"lm_head.extra": torch.zeros(2)}, "has the weight lm_head.extra, which no GPT-2 has"),
        ({"transformer.h.1.ln_2.weight": None}, "no weight transformer.h.1.ln_2.weight"),
        (
            {"transformer.wpe.weight": torch.zeros(9, WIDTH)},
            r"position_embedding.weight is \(9, 12\)",
        ),
        (
            {"transformer.ln_f.weight": torch.full((WIDTH,), torch.nan)},
            "NaN or infinity: norm.weight",
        ),
        ({"transformer.ln_f.weight": torch.zeros(WIDTH).long()}, "of the kind torch.int64"),
        ({"lm_head.weight": torch.tensor(1.0)}, "lm_head.weight, a single number"),
    ],
)
def test_a_weight_that_does_not_map_is_named(
    change: dict[str, Tensor | None], reason: str, tmp_path: Path
) -> None:
    weights = {**nanogpt_weights(bias=True), **change}
    path = save_nanogpt(tmp_path, {n: v for n, v in weights.items() if v is not None})
    with pytest.raises(RequestError, match=reason):
        read_weights(path, None)


@pytest.mark.parametrize(
    ("file", "change", "reason"),
    [
        ("config.json", {"activation_function": "gelu_new"}, "activation_function = gelu_new"),
        ("config.json", {"model_type": "llama"}, "of the kind llama; gpt2 is read"),
        ("config.json", {"n_head": 5}, "a shape that no model here has"),
        ("config.json", {"n_layer": 10**9}, "a shape that no model here has|no weight"),
        ("tokenizer.json", {"model": {"vocab": {"ab": 0}}}, "the token ab, which is no single"),
        ("tokenizer.json", {"model": {"vocab": {"a": 7}}}, "counted from 0"),
        ("tokenizer.json", {"model": [1]}, "counted from 0"),
        ("tokenizer.json", {"normalizer": {"type": "Lowercase"}}, "changes a text"),
        ("config.json", {"tie_word_embeddings": True}, "lm_head.weight is another one"),
    ],
)
def test_a_folder_that_does_not_map_is_told_why(
    file: str, change: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    folder = exported(a_model("classic", FEW), tmp_path / "out")
    about = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**about, **change}))
    with pytest.raises(RequestError, match=reason):
        read_weights(folder, None)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    path = save_nanogpt(tmp_path, nanogpt_weights(bias=True))
    with pytest.raises(RequestError, match="does not exist"):
        read_weights(tmp_path / "nothing", None)
    (tmp_path / "meta.pkl").unlink()
    with pytest.raises(RequestError, match="--meta FILE"):
        read_weights(path, None)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(RequestError, match="no checkpoint of nanoGPT"):
        read_weights(path, path)
    folder = exported(a_model("classic", FEW), tmp_path / "out")
    save_file({"a": torch.zeros(1)}, folder / "other.safetensors")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(RequestError, match="no model.safetensors"):
        read_weights(folder, None)


@pytest.mark.slow
def test_a_gpt2_of_transformers_computes_the_same(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = exported(a_model("classic", FEW), tmp_path / "out")
    config = transformers.GPT2Config.from_pretrained(folder)
    config.tie_word_embeddings = True
    torch.manual_seed(4)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(folder)
    assert "lm_head.weight" not in load_file(folder / "model.safetensors")
    ours = read_weights(folder, None).state.load(torch.device("cpu"))
    tokens = tokens_of(ours)
    with torch.no_grad():
        assert torch.allclose(ours.model(tokens), theirs(tokens).logits, atol=1e-4)
