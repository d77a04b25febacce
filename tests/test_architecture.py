"""The walls between the parts: who may import whom, and when."""

from __future__ import annotations

import ast
import importlib.util
import json
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import megatron_model

ROOT = Path(megatron_model.__file__).parent.parent
SCREENS = {"textual", "rich"}
HEAVY = {"torch", "plotext"}

_REPORT = (
    "import json, sys; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
)


def imported_by(*statements: str) -> set[str]:
    """Return the top-level modules that a new process has loaded after these statements."""
    program = "\n".join([*statements, _REPORT])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def modules_of(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize(
    "module",
    [
        "megatron_model",
        "megatron_model.cli, megatron_model.commands, megatron_model.config, megatron_model.corpus,"
        " megatron_model.preflight, megatron_model.run_folder, megatron_model.run_state",
        "megatron_tui.app",
    ],
    ids=["model", "model-light", "tui"],
)
def test_what_the_first_frame_needs_loads_neither_torch_nor_plotext(module: str) -> None:
    if module.startswith("megatron_tui") and importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not there yet")
    loaded = imported_by(f"import {module}")
    assert "megatron_model" in loaded or "megatron_tui" in loaded
    assert not loaded & HEAVY


def test_the_model_package_knows_nothing_of_terminals() -> None:
    names = [
        info.name
        for info in pkgutil.iter_modules(megatron_model.__path__, "megatron_model.")
        if not info.name.endswith("__main__")
    ]
    assert len(names) > 20
    loaded = imported_by(*[f"import {name}" for name in names])
    assert "torch" in loaded, "the scan would prove nothing"
    assert not loaded & (SCREENS | {"plotext", "megatron_tui"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["runs"]])
def test_asking_for_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    program = (
        "import contextlib, io, sys",
        f"sys.argv = ['megatron-model', *{arguments!r}]",
        "from megatron_model.cli import main",
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()",
    )
    assert not imported_by(*program) & HEAVY


def test_the_public_names_are_there() -> None:
    for name in megatron_model.__all__:
        assert getattr(megatron_model, name) is not None
    assert set(megatron_model.__all__) <= set(dir(megatron_model))
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        megatron_model.Transformer  # noqa: B018


@pytest.mark.parametrize("package", ["megatron_model", "megatron_tui"])
def test_every_module_says_what_it_is_for(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules_of(package)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []
