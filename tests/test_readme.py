"""The README tells of what is there: its map, its keys, its pictures."""

from __future__ import annotations

import re
from pathlib import Path

from tools.readme import KEYS_FILE, ROOT, key_file, with_keys, with_map


def test_the_map_is_that_of_the_packages() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_map(readme), "run python -m tools.readme"


def test_the_keys_are_those_of_the_bindings() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme == with_keys(readme), "run python -m tools.readme"
    assert KEYS_FILE.read_text(encoding="utf-8") == key_file(), "run python -m tools.readme"


def test_every_picture_exists() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", readme)
    assert pictures
    assert [name for name in pictures if not Path(ROOT, name).is_file()] == []
