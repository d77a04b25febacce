"""The documentation tells of what is there: settings, events, keys, variables, files, pictures."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from megatron_model.events.schema import RECORDED
from megatron_model.util.environment import VARIABLES
from tools.pages import BLOCKS, DOCS, MAN_PAGE, PACKAGES, ROOT, blocks_in, man_page, written

README = ROOT / "README.md"
PAGES = sorted(DOCS.glob("*.md"))
WRITTEN = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *PAGES]
PROGRAM = [path for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py"))]
CHECKS = [path for name in ("benchmarks", "tests") for path in sorted((ROOT / name).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_what_follows_from_the_code_is_written_in_the_pages(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text == written(text), "run make pages"


def test_the_manual_page_is_that_of_the_parser() -> None:
    assert MAN_PAGE.read_text(encoding="utf-8") == man_page(), "run make pages"


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="there is no mandoc")
def test_the_manual_page_is_one() -> None:
    command = ["mandoc", "-T", "lint", "-W", "error", str(MAN_PAGE)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_every_part_that_follows_from_the_code_has_one_place() -> None:
    placed = [name for page in PAGES for name in blocks_in(page.read_text(encoding="utf-8"))]
    assert sorted(placed) == sorted(BLOCKS)


def test_every_recorded_event_is_explained() -> None:
    text = (DOCS / "events.md").read_text(encoding="utf-8")
    missing = [kind.__name__ for kind in RECORDED if str(kind.__struct_config__.tag) not in text]
    assert missing == []


def test_the_environment_variables_are_those_of_the_code() -> None:
    declared = {name for each in VARIABLES for name in each.name.split(", ")}
    ours = {name for name in declared if name.startswith("MEGATRON_")}
    used: set[str] = set()
    for path in [*PROGRAM, *CHECKS]:
        if path.name != "environment.py":
            used |= set(re.findall(r"\bMEGATRON_[A-Z_]+", path.read_text(encoding="utf-8")))
    assert used == ours, "declare it in environment.py, or take it out there"


def test_variables_of_others_that_are_read_are_declared() -> None:
    declared = {name for each in VARIABLES for name in each.name.split(", ")}
    asked = re.compile(
        r"""environ(?:ment)?(?:\.get\(|\.setdefault\(|\[)\s*["']([A-Z][A-Z_]+)["']"""
    )
    used = {
        name for path in PROGRAM for name in asked.findall(path.read_text(encoding="utf-8"))
    } - {"PYTHONPATH"}
    assert len(used) > 8, "the search would prove nothing"
    assert used <= declared


@pytest.mark.parametrize("page", WRITTEN, ids=name_of)
def test_every_link_and_picture_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.is_file(), target
        if anchor:
            assert anchor in anchors(path), target


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown processors make them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", title).strip().lower()) for title in found
    }


def test_the_readme_is_one_page() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 120


def test_every_page_is_in_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert [page.name for page in PAGES if page.name not in navigation] == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=name_of)
def test_every_file_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:megatron_model|megatron_tui|tools|benchmarks)/[\w./]*)`", text))
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
