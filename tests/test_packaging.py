"""What an archive or a wheel would have to carry: every folder, every file that is no Python."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import tomlkit

from tools.pages import MAN_PAGE, PACKAGES, ROOT

PROJECT = tomlkit.parse((ROOT / "pyproject.toml").read_text(encoding="utf-8")).unwrap()


def files_of(package: str) -> list[Path]:
    return [
        path
        for path in sorted((ROOT / package).rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    ]


@pytest.mark.parametrize("package", PACKAGES)
def test_every_folder_with_modules_is_found_as_a_package(package: str) -> None:
    folders = {path.parent for path in files_of(package) if path.suffix == ".py"}
    assert folders
    assert [str(each) for each in sorted(folders) if not (each / "__init__.py").is_file()] == []


@pytest.mark.parametrize("package", PACKAGES)
def test_every_other_file_belongs_to_the_wheel(package: str) -> None:
    globs = PROJECT["tool"]["setuptools"]["package-data"][package]
    taken = {path for pattern in globs for path in (ROOT / package).glob(pattern)}
    others = {path for path in files_of(package) if path.suffix != ".py"}
    assert ROOT / package / "py.typed" in others
    assert others == taken


def test_the_manual_page_goes_where_man_looks() -> None:
    (taken,) = PROJECT["tool"]["setuptools"]["data-files"]["share/man/man1"]
    assert ROOT / taken == MAN_PAGE and MAN_PAGE.is_file()


def test_the_source_archive_has_what_the_tests_need() -> None:
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    grafted = set(re.findall(r"^(?:graft|recursive-include) (\S+)", manifest, re.MULTILINE))
    assert {*PACKAGES, "tests", "tools", "docs", "benchmarks"} <= grafted
    included = " ".join(re.findall(r"^include (.+)$", manifest, re.MULTILINE)).split()
    assert [name for name in included if not (ROOT / name).is_file()] == []


def test_the_picture_can_be_seen_where_the_readme_stands_alone() -> None:
    """On a package index only an absolute address shows a picture; until there is one, none can."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)
    assert pictures
    if PROJECT["project"].get("urls"):
        assert all(picture.startswith("https://") for picture in pictures)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(("target", "with_tools"), [("run", False), ("test", True)])
def test_running_needs_no_tools_of_development(
    target: str, with_tools: bool, tmp_path: Path
) -> None:
    """What make would do on a fresh clone: the environment first, then what the target needs."""
    plan = subprocess.run(
        ["make", "--dry-run", f"VENV={tmp_path / 'env'}", target],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert plan.index("-m venv") < plan.index("pip install")
    assert ("[dev]" in plan) == with_tools
