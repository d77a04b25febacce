"""Plain weights in a .pt file: what the original program wrote, and what only looks like it."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from megatron_model.config.fields import with_settings
from megatron_model.model.factory import build_model
from megatron_model.run.checkpoint import load_model
from megatron_model.run.folder import RunFolder, find_model
from megatron_model.util.errors import RequestError
from tests.model.helpers import TEXT, tiny_config, tiny_model, train


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, Path]:
    """A classic model that learnt something, and its weights as the original program left them."""
    home = tmp_path_factory.mktemp("original")
    text = home / "data.txt"
    text.write_text(TEXT * 2, encoding="utf-8")
    changes = {
        "data.corpus": str(text),
        "model.architecture": "classic",
        "model.heads": 4,
        "model.embed_dim": 32,
        "model.block_size": 32,
        "training.batch_size": 16,
        "training.steps": 150,
        "training.learning_rate": 0.01,
        "training.evaluate_every": 150,
    }
    folder = RunFolder.create(home / "runs", "old", tiny_config(changes))
    train(folder)
    path = home / "megatron_trained_model.pt"
    model = load_model(find_model("old", home / "runs"), "cpu").model
    torch.save(model.state_dict(), path)
    return folder, path


def test_it_loads_with_its_text_and_finds_its_heads(original: tuple[RunFolder, Path]) -> None:
    folder, path = original
    text = folder.read_config().data.corpus
    plain = load_model(find_model(str(path), folder.path.parent), "cpu", corpus=text)
    ours = load_model(find_model("old", folder.path.parent), "cpu")
    assert plain.config.model == ours.config.model
    assert plain.config.model.heads == 4
    assert plain.tokenizer == ours.tokenizer
    tokens = torch.tensor([ours.tokenizer.encode("he old king")])
    assert torch.equal(plain.model(tokens), ours.model(tokens))


def test_names_that_a_compiler_changed_are_taken(
    original: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    folder, path = original
    weights = {f"_orig_mod.{k}": v for k, v in torch.load(path, weights_only=True).items()}
    torch.save(weights, tmp_path / "compiled.pt")
    text = folder.read_config().data.corpus
    assert load_model(tmp_path / "compiled.pt", "cpu", corpus=text).config.model.layers == 2


def test_without_its_text_it_is_refused(original: tuple[RunFolder, Path], tmp_path: Path) -> None:
    folder, path = original
    with pytest.raises(RequestError, match="has no vocabulary; name the text"):
        load_model(path)
    other = tmp_path / "other.txt"
    other.write_text("xyz\n" * 100)
    with pytest.raises(RequestError, match=r"other.txt has 4: it is not the text"):
        load_model(path, corpus=str(other))
    with pytest.raises(RequestError, match="name its run instead: .*old"):
        load_model(folder.path / "megatron_trained_model.pt")
    with pytest.raises(RequestError, match="carries its vocabulary"):
        load_model(find_model("old", folder.path.parent), corpus=str(other))


class _Trap:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_in_it_is_executed(tmp_path: Path, corpus: Path) -> None:
    sprung = tmp_path / "sprung"
    torch.save({"token_embedding.weight": _Trap(sprung)}, tmp_path / "trap.pt")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(_Trap(sprung)))
    (tmp_path / "empty.pt").write_bytes(b"")
    for name in ("trap.pt", "bare.pt", "empty.pt"):
        with pytest.raises(RequestError, match="holds no plain weights"):
            load_model(tmp_path / name, corpus=str(corpus))
    assert not sprung.exists()


def test_other_weights_are_refused_by_name(
    original: tuple[RunFolder, Path], tmp_path: Path
) -> None:
    folder, path = original
    text = folder.read_config().data.corpus
    weights = torch.load(path, weights_only=True)

    def refused(content: object, words: str) -> None:
        torch.save(content, tmp_path / "wrong.pt")
        with pytest.raises(RequestError, match=words):
            load_model(tmp_path / "wrong.pt", corpus=text)

    refused([1, 2], "something else than plain weights")
    refused({"model": weights}, "something else than plain weights")
    modern = build_model(tiny_model("modern"), 20).state_dict()
    refused(modern, "does not hold the weights of a classic model")
    refused({**weights, "norm.weight": torch.ones(3)}, "norm.weight is")
    refused({**weights, "extra": torch.ones(3)}, "extra is")
    refused({**weights, "norm.bias": torch.full((16,), torch.nan)}, "norm.bias")
    refused({k: v for k, v in weights.items() if k != "head.bias"}, "head.bias is absent")


def test_a_run_goes_on_from_it(original: tuple[RunFolder, Path], runs_dir: Path) -> None:
    from megatron_model.run.request import Start, ask

    folder, path = original
    config = folder.read_config()
    model = load_model(path, "cpu", corpus=config.data.corpus)
    few = {"training.steps": 2, "training.batch_size": 2, "training.threads": 1}
    asked = ask(config.data.corpus, start=Start(model, "old"), changes=few)
    assert with_settings(asked.config, {}).model == config.model
    train(asked.create(runs_dir, "on"))
    assert (runs_dir / "on" / "megatron_trained_model.pt").exists()
