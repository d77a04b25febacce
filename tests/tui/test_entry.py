"""The command: what it imports, and what it says when it cannot run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "plotext", "numpy")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


def test_the_app_is_imported_without_what_is_heavy() -> None:
    code = (
        "import sys, megatron_tui.app, megatron_tui.setup.screen, megatron_tui.training.screen, "
        "megatron_tui.generation.screen, megatron_tui.runs.screen;"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    assert run("-c", code).stdout.strip() == "[]"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version_import_nothing_of_the_screen(option: str) -> None:
    code = (
        "import sys; from megatron_tui.__main__ import main\n"
        f"try: main([{option!r}])\nexcept SystemExit as end: assert not end.code\n"
        f"print([name for name in {(*HEAVY, 'textual')} if name in sys.modules])"
    )
    done = run("-c", code)
    assert done.stdout.strip().endswith("[]"), done.stderr


def test_without_a_terminal_it_refuses_in_one_sentence() -> None:
    done = run("-m", "megatron_tui")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "needs a terminal" in done.stderr


def test_no_module_draws_colours_of_its_own() -> None:
    folder = Path(__file__).parents[2] / "megatron_tui"
    for path in [*folder.rglob("*.tcss"), *folder.rglob("*.py")]:
        if path.name != "theme.py":
            assert "rgb(" not in path.read_text()
            assert not any(
                f"color: {name}" in path.read_text() for name in ("red", "green", "blue", "#")
            )
