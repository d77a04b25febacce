"""The walls between the parts: who may import whom, and when."""

from __future__ import annotations

import ast
import graphlib
import importlib.util
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomlkit

import megatron_model

ROOT = Path(megatron_model.__file__).parent.parent
SCREENS = {"textual", "rich"}
HEAVY = {"torch", "plotext"}
PACKAGES = ("megatron_model", "megatron_tui")

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


HAS_TRITON = importlib.util.find_spec("triton") is not None
"""It comes with torch on CUDA alone."""


@pytest.mark.parametrize(
    "module",
    [
        "megatron_model",
        "megatron_model.cli.parser, megatron_model.cli.verbs.train, megatron_model.config.fields,"
        " megatron_model.data.corpus, megatron_model.planning.preflight, megatron_model.run.folder,"
        " megatron_model.events.state",
        "megatron_tui.app",
    ],
    ids=["model", "model-light", "tui"],
)
def test_what_the_first_frame_needs_loads_neither_torch_nor_plotext(module: str) -> None:
    loaded = imported_by(f"import {module}")
    assert "megatron_model" in loaded or "megatron_tui" in loaded
    assert not loaded & HEAVY


def test_the_model_package_knows_nothing_of_terminals() -> None:
    names = [
        info.name
        for info in pkgutil.walk_packages(megatron_model.__path__, "megatron_model.")
        if not info.name.endswith("__main__")
        and (HAS_TRITON or not info.name.endswith((".card_kernels", ".fused_reader")))
    ]
    assert len(names) > 80
    loaded = imported_by(*[f"import {name}" for name in names])
    assert "torch" in loaded, "the scan would prove nothing"
    assert not loaded & (SCREENS | {"plotext", "megatron_tui"})


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["runs"]])
def test_asking_for_help_does_not_wait_for_torch(arguments: list[str]) -> None:
    program = (
        "import contextlib, io, sys",
        f"sys.argv = ['megatron-model', *{arguments!r}]",
        "from megatron_model.cli.parser import main",
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main()",
    )
    assert not imported_by(*program) & HEAVY


def test_the_public_names_are_there() -> None:
    for name in megatron_model.__all__:
        assert getattr(megatron_model, name) is not None
    assert set(megatron_model.__all__) <= set(dir(megatron_model))
    with pytest.raises(AttributeError, match="no attribute 'Transformer'"):
        megatron_model.Transformer  # noqa: B018


@pytest.mark.parametrize("package", PACKAGES)
def test_every_module_says_what_it_is_for(package: str) -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in modules_of(package)
        if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def ladder_of(package: str) -> dict[str, int]:
    """Return each folder's height, as the linter's contract in pyproject.toml declares it."""
    project = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()
    contracts = project["tool"]["importlinter"]["contracts"]
    (layers,) = [c["layers"] for c in contracts if c["containers"] == [package]]
    return {
        folder.strip(): height
        for height, layer in enumerate(reversed(layers))
        for folder in layer.split("|")
    }


def imports_of(package: str) -> Iterator[tuple[str, str]]:
    """Yield each import inside the package, in functions too: importing and imported module."""
    for path in modules_of(package):
        parts = path.relative_to(ROOT).with_suffix("").parts
        module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == package:
                for name in node.names:
                    yield module, f"{node.module}.{name.name}"
            elif isinstance(node, ast.Import):
                yield from (
                    (module, name.name)
                    for name in node.names
                    if name.name.startswith(f"{package}.")
                )


def arrows_of(package: str) -> Iterator[tuple[str, str, str]]:
    """Yield each import from one folder of the package to another, and the two modules' names."""
    ladder = ladder_of(package)
    for importing, imported in imports_of(package):
        own, other = (name.split(".")[1:2] for name in (importing, imported))
        if own and other and own != other and {*own, *other} <= ladder.keys():
            yield own[0], other[0], f"{importing} -> {imported}"


def test_the_walk_sees_the_modules_in_every_folder() -> None:
    """The tests below would prove nothing by a walk that stays at the top."""
    assert sum(len(modules_of(package)) for package in PACKAGES) > 200
    for package in PACKAGES:
        seen = {path.relative_to(ROOT / package).parts[0] for path in modules_of(package)}
        folders = {name.removesuffix(".py") for name in seen} - {"__init__", "__main__"}
        assert folders == ladder_of(package).keys(), "each has its place on the ladder"


@pytest.mark.parametrize("package", PACKAGES)
def test_the_page_shows_this_ladder_and_says_what_each_folder_is_for(package: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    shown = re.search(rf"^`{package}`: ([^|]+?)\n\n", page, re.MULTILINE)
    assert shown is not None
    heights = {
        folder.strip(): height
        for height, layer in enumerate(shown[1].split("<"))
        for folder in layer.split(",")
    }
    ladder = ladder_of(package)
    assert heights == ladder
    rows = {line.partition("|")[2].partition("|")[0] for line in page.splitlines()}
    explained = {name for row in rows for name in re.findall(rf"`{package}/(\w+)[./]", row)}
    assert ladder.keys() <= explained


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_down_the_ladder_of_folders(package: str) -> None:
    """A higher folder may use a lower one, never the other way, and never one beside it."""
    ladder = ladder_of(package)
    arrows = list(arrows_of(package))
    assert len(arrows) > 100, "the scan would prove nothing"
    assert [words for own, other, words in arrows if ladder[own] <= ladder[other]] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_there_is_no_circle_between_folders(package: str) -> None:
    below: dict[str, set[str]] = {}
    for own, other, _ in arrows_of(package):
        below.setdefault(own, set()).add(other)
    order = list(graphlib.TopologicalSorter(below).static_order())  # raises a CycleError
    assert set(order) <= ladder_of(package).keys()
