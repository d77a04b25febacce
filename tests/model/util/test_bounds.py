"""What is read is bounded first: small files cost little, and what has no end, nothing."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from megatron_model.model.modern import ModernTransformer, distance_bias
from megatron_model.run.checkpoint import load_model, load_weights
from megatron_model.run.folder import MODEL_FILE, TRAINING_FILE, RunFolder
from megatron_model.util.errors import RequestError
from megatron_model.util.files import read_bounded
from megatron_model.util.toml import read_toml
from tests.model.cli.test_cli import Run, assert_refused, run

__all__ = ["run"]

GIB = 2**30


@pytest.fixture
def model_file(run_copy: RunFolder, tmp_path: Path) -> Path:
    """A model file outside of any run."""
    path = tmp_path / "a.safetensors"
    path.write_bytes((run_copy.checkpoints()[-1].path / MODEL_FILE).read_bytes())
    return path


def rewrite(path: Path, kind: torch.dtype | None = None, **model: object) -> None:
    """Change what the configuration says of the model, or the kind of its first weight."""
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["megatron"])
    about["config"]["model"].update(model)
    weights = load_file(path)
    if kind is not None:
        name = next(iter(weights))
        weights[name] = weights[name].to(kind)
    save_file(weights, path, metadata={"megatron": json.dumps(about)})


@pytest.mark.parametrize("block_size", [20_000, 2**20])
def test_a_block_size_costs_nothing_until_it_is_read(model_file: Path, block_size: int) -> None:
    rewrite(model_file, block_size=block_size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = load_model(model_file, device="cpu")
    assert loaded.block_size == block_size
    from megatron_model.config.fields import SamplingConfig

    assert len("".join(loaded.stream("the ", SamplingConfig(max_new_tokens=20)))) == 20
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < GIB


def test_a_text_longer_than_the_biases_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    whole = ModernTransformer(5, 32, 8, 2, 2, 16)
    torch.nn.init.normal_(whole.head)
    torch.nn.init.normal_(whole.attention)
    monkeypatch.setattr("megatron_model.model.modern.KEPT_BIASES", 2 * 8 * 8)
    short = ModernTransformer(5, 32, 8, 2, 2, 16)
    short.load_state_dict(whole.state_dict())
    assert short.attention_bias.shape == (2, 8, 8)
    tokens = torch.randint(5, (2, 32))
    assert torch.equal(short(tokens), whole(tokens))
    caches = [model.new_cache(2) for model in (short, whole)]
    for part in (tokens[:, :6], tokens[:, 6:7], tokens[:, 7:30], tokens[:, 30:]):
        logits = [
            model.extend(part, cache) for model, cache in zip((short, whole), caches, strict=True)
        ]
        assert torch.equal(*logits)
    assert torch.equal(distance_bias(2, 32)[:, 6:7, :7], distance_bias(2, 7, 6))


def test_layers_that_are_not_there_take_no_time(model_file: Path) -> None:
    rewrite(model_file, architecture="classic", layers=10_000)
    with pytest.raises(RequestError, match="does not fit its own configuration"):
        load_model(model_file, device="cpu")


@pytest.mark.parametrize(
    "kind", [torch.float8_e4m3fn, torch.int32, torch.bool, torch.int64], ids=str
)
def test_numbers_of_another_kind_are_refused(
    run: Run, model_file: Path, run_copy: RunFolder, kind: torch.dtype
) -> None:
    rewrite(model_file, kind)
    assert_refused(run("sample", model_file), str(model_file), "weights of the kind", "F32")
    folder = run_copy.checkpoints()[-1].path
    (folder / MODEL_FILE).write_bytes(model_file.read_bytes())
    (folder / "SHA256SUMS").unlink()
    with pytest.raises(RequestError, match="weights of the kind"):
        load_weights(folder)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_floats_are_read(model_file: Path, kind: torch.dtype) -> None:
    rewrite(model_file, kind)
    assert (
        next(iter(load_model(model_file, device="cpu").model.parameters())).dtype == torch.float32
    )


@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_weights_too_large_to_compute_with(run: Run, model_file: Path, verb: str) -> None:
    with safe_open(model_file, framework="pt") as file:
        metadata = file.metadata()
    weights = {name: torch.full_like(w, 1e38) for name, w in load_file(model_file).items()}
    save_file(weights, model_file, metadata=metadata)
    assert_refused(run(verb, model_file), "NaN or infinity")


# Text files


def deep(parts: int) -> str:
    return ".".join(["a"] * parts)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{deep(20_000)} = 1", "a key of 20,000 parts"),
        (f"[{deep(20_000)}]", "a key of 20,000 parts"),
        (f"x = {{ {deep(20_000)} = 1 }}", "a key of 20,000 parts"),
        (f"'b'.\"c.d\".{deep(100)} = 1", "a key of 102 parts"),
        ("x = " + "[" * 20_000, "nesting"),
        ("#" * (1 << 20) + "\n", "longer than"),
    ],
    ids=["key", "table", "inline", "quoted", "nested", "long"],
)
def test_a_toml_file_that_would_take_all_memory(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(RequestError, match=words) as refused:
        read_toml(path)
    assert len(str(refused.value)) < 300 + len(str(path))


def test_dots_in_texts_and_comments_are_no_keys(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    dots = deep(100)
    path.write_text(
        f'# {dots}\na = "{dots}\\" {dots}" # {dots}\nb = \'{dots}\'\n'
        f'c = """\n{dots}\n"{dots}"\n"""\nd = \'\'\'{dots}\'\'\'\n"{dots}" = 1\n'
        "e = [" + "1.5, " * 50 + "]\n"
    )
    found = read_toml(path)
    assert (found["b"], found["d"], found[dots]) == (dots, dots, 1)


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/urandom"])
def test_a_device_is_no_configuration(run: Run, corpus: Path, device: str) -> None:
    assert_refused(run("train", corpus, "--config", device), device, "device")


def test_a_link_to_a_device_in_a_run(run_copy: RunFolder) -> None:
    training = run_copy.checkpoints()[-1].path / TRAINING_FILE
    for path in (training, run_copy.path / "run.toml"):
        path.unlink()
        path.symlink_to("/dev/zero")
    assert run_copy.checkpoints()[-1].val_loss is None
    with pytest.raises(RequestError, match="device"):
        _ = run_copy.read_config()


def test_a_pipe_is_read_and_one_without_a_writer_is_empty(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert read_bounded(pipe) == b""
    with subprocess.Popen(
        [sys.executable, "-c", "print('a = 1')"], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        assert read_toml(Path(f"/dev/fd/{writer.stdout.fileno()}")) == {"a": 1}
    with pytest.raises(OSError, match="a folder"):
        read_bounded(tmp_path)
