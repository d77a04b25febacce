"""What `sample` reads its prompt from, and how its texts stand apart and when they come."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from megatron_model.cli.output import write_texts
from megatron_model.config.fields import SamplingConfig
from megatron_model.run.checkpoint import LoadedModel, load_model
from megatron_model.run.folder import MODEL_FILE, RunFolder
from tests.model.cli.test_cli import Run, assert_refused, run

__all__ = ["run"]  # a fixture


@pytest.fixture
def loaded(finished_run: RunFolder) -> LoadedModel:
    return load_model(finished_run.checkpoints()[-1].path / MODEL_FILE)


class Pipe(io.StringIO):
    """What was written when somebody could read it."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed: list[str] = []

    def flush(self) -> None:
        self.flushed.append(self.getvalue())


def test_a_prompt_is_read_from_a_file(
    run: Run, finished_run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes("\ufeffThe sea\r\nand a king\r\n".encode())
    none = ["--max-new-tokens", "0"]
    assert run("sample", finished_run.path, "--prompt-file", path, *none).out == (
        "The sea\nand a king\n"
    )
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the sea\n")))
    assert run("sample", finished_run.path, "--prompt-file", "-", *none).out == "the sea\n"


def test_a_prompt_that_cannot_be_read_is_one_sentence(
    run: Run, finished_run: RunFolder, tmp_path: Path
) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"\xff\xfe\xff")
    model = finished_run.path
    assert_refused(run("sample", model, "--prompt-file", path), "prompt.txt", "not UTF-8")
    assert_refused(run("sample", model, "--prompt-file", tmp_path / "no"), "No such file")
    assert_refused(run("sample", model, "--prompt-file", tmp_path), "it is a folder")
    assert_refused(run("sample", model, "--prompt-file", "/dev/zero"), "a device")
    assert_refused(run("sample", model, "--prompt-file", path, "--prompt", "a"), "not allowed")


def test_texts_end_with_a_nul_on_request(run: Run, finished_run: RunFolder) -> None:
    common = ["sample", finished_run.path, "--prompt", "the ", "--max-new-tokens", "20"]
    several = run(*common, "--num-samples", "3", "--null").out
    alone = [run(*common, "--seed", str(1337 + number)).out for number in range(3)]
    assert several.split("\0") == [*(text.removesuffix("\n") for text in alone), ""]
    assert run(*common, "--null").out == alone[0].removesuffix("\n") + "\0"
    assert run(*common, "--num-samples", "3").out == "\n".join(alone)


def test_on_a_terminal_each_text_has_its_number_above_it(loaded: LoadedModel) -> None:
    out = io.StringIO()
    sampling = SamplingConfig(max_new_tokens=9, seed=2**63 - 1)
    write_texts(loaded, "the ", sampling, 2, out, terminal=True)
    lines = out.getvalue().splitlines()
    assert lines[0] == f"--- 1 of 2, seed {2**63 - 1} ---"
    assert "--- 2 of 2, seed 0 ---" in lines


def test_a_pipe_gets_a_line_as_soon_as_it_is_whole(loaded: LoadedModel) -> None:
    out = Pipe()
    sampling = SamplingConfig(max_new_tokens=300)
    write_texts(loaded, "the ", sampling, 1, out, terminal=False)
    lines = out.getvalue().removesuffix("\n").count("\n")
    assert lines > 1, "the test would prove nothing"
    assert len(out.flushed) == lines
    assert all(each.endswith("\n") for each in out.flushed)
