"""What is copied is in tmux's buffer too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from megatron_tui.terminal.tmux import MOST_BYTES, copy_to_tmux


@pytest.fixture
def buffer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand a program named tmux in the path that keeps what it is given."""
    kept = tmp_path / "kept"
    program = tmp_path / "tmux"
    program.write_text(f'#!/bin/sh\n[ "$*" = "load-buffer -" ] && cat > "{kept}"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    return kept


def test_the_text_as_it_is_goes_to_the_buffer(buffer: Path) -> None:
    text = "train 'my text.txt' $(x) é\n"
    assert copy_to_tmux(text)
    assert buffer.read_text() == text


def test_outside_tmux_and_beyond_its_bound_nothing_is_called(
    buffer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not copy_to_tmux("x" * (MOST_BYTES + 1))
    monkeypatch.delenv("TMUX")
    assert not copy_to_tmux("x")
    assert not buffer.exists()


def test_a_tmux_that_is_gone_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMUX", "x")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not copy_to_tmux("x")
