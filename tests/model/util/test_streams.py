"""Losing an audience: streams that are closed, full or gone never cost a run, nor a traceback."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.config.fields import config_to_toml
from megatron_model.distributed.launcher import LINE_MARK, say_status
from megatron_model.events.schema import RunFinished
from megatron_model.run.folder import RunFolder
from tests.model.helpers import tiny_config

needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")


def shell(line: str, package: str = "megatron_model") -> subprocess.CompletedProcess[str]:
    """Run a command line in which MEGATRON stands for the program."""
    program = f"{sys.executable} -m {package}"
    return subprocess.run(
        ["sh", "-c", line.replace("MEGATRON", program)], capture_output=True, text=True
    )


def refused(done: subprocess.CompletedProcess[str], reason: str) -> None:
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.splitlines()
    assert f"Cannot write to stdout: {reason};" in line
    assert done.returncode == 1


@needs_full
@pytest.mark.parametrize("verb", ["runs", "--help"])
def test_a_full_stdout_is_one_sentence(run_copy: RunFolder, verb: str) -> None:
    refused(shell(f"MEGATRON {verb} > /dev/full"), "No space left on device")


def test_a_closed_stdout_is_one_sentence(run_copy: RunFolder) -> None:
    refused(shell("MEGATRON runs >&-"), "Bad file descriptor")


@needs_full
@pytest.mark.slow
@pytest.mark.parametrize(
    "verb",
    [
        "sample tale-tiny --max-new-tokens 9",
        "sample tale-tiny --num-samples 2",
        "sample tale-tiny --jsonl",
        "evaluate tale-tiny",
        "runs --json",
        "preflight builtin:python-reference --json",
    ],
)
def test_no_verb_loses_its_output_silently(run_copy: RunFolder, verb: str) -> None:
    refused(shell(f"MEGATRON {verb} > /dev/full"), "No space left on device")
    refused(shell(f"MEGATRON {verb} >&-"), "Bad file descriptor")


@needs_full
@pytest.mark.parametrize("line", ["train 2>&-", "nonsense 2>/dev/full", "--no <&- >&- 2>&-"])
def test_a_refusal_that_nobody_hears_has_its_status(line: str) -> None:
    done = shell(f"MEGATRON {line}")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@needs_full
def test_a_rank_whose_starter_is_gone_does_not_end_by_saying_its_status(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MEGATRON_LINE_MARK", LINE_MARK)
    with io.FileIO("/dev/full", "w") as full:
        stderr = io.TextIOWrapper(full, write_through=True)
        monkeypatch.setattr(sys, "stderr", stderr)
        with pytest.raises(OSError):
            stderr.write("this one is not guarded")
        say_status(1)
        monkeypatch.setattr(sys, "stderr", None)
        say_status(1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "where",
    [
        "2>&-",
        ">&- 2>&-",
        "<&- >&- 2>&-",
        pytest.param(">/dev/full 2>/dev/full", marks=needs_full),
        pytest.param("--json >/dev/full 2>&-", marks=needs_full),
        "--json >&-",
    ],
)
def test_no_audience_costs_a_run(runs_dir: Path, corpus: Path, tmp_path: Path, where: str) -> None:
    settings = tmp_path / "settings.toml"
    config = tiny_config({"data.corpus": str(corpus), "training.optimizer": "muon"})
    settings.write_text(config_to_toml(config), encoding="utf-8")
    done = shell(f"MEGATRON train {corpus} --config {settings} --name deaf {where}")
    assert done.returncode == 0, done.stderr
    folder = RunFolder.open(runs_dir / "deaf")
    assert isinstance(folder.read_events()[0][-1], RunFinished)
    # A stream that is closed leaves its number to the next file that is opened.
    log = folder.events_path.read_bytes().splitlines()
    assert all(line.startswith(b'{"event"') for line in log)


@needs_full
@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("MEGATRON --version > /dev/full", 1),
        ("MEGATRON <&- >&- 2>&-", 2),
        ("MEGATRON --nonsense 2>/dev/full", 2),
    ],
)
def test_the_workbench_starts_or_refuses_without_an_audience(line: str, status: int) -> None:
    done = shell(line, "megatron_tui")
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") <= 1
    assert done.returncode == status
