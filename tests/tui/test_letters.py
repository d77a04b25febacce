"""One letter, one meaning: the table of letters against the keys that the screens declare."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections import defaultdict
from pathlib import Path

import pytest
from textual.binding import Binding

import megatron_tui
from megatron_tui.keys import Declared, declared_keys, read_user_keymap, shown
from megatron_tui.letters import EXCEPTIONS, LETTERS, QUESTIONS, markdown, meaning_of
from megatron_tui.ui.panel import Panel

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def declared() -> dict[str, Declared]:
    return declared_keys()


def letters_of(one: Declared) -> list[str]:
    return [key for key in one.keys if len(key) == 1 and key.isalpha()]


def test_a_letter_means_the_same_wherever_it_acts(declared: dict[str, Declared]) -> None:
    meanings: dict[str, set[str]] = defaultdict(set)
    for one in declared.values():
        if one.id not in EXCEPTIONS and not one.id.startswith(QUESTIONS):
            for letter in letters_of(one):
                meanings[letter].add(meaning_of(letter, one.id))
    assert {letter: found for letter, found in meanings.items() if len(found) > 1} == {}


def test_what_the_table_says_of_an_action_is_so(declared: dict[str, Declared]) -> None:
    wrong = [
        (letter, identifier)
        for letter, (_, actions) in LETTERS.items()
        for identifier in actions
        if identifier in declared and letter not in declared[identifier].keys
    ]
    assert wrong == []


def test_no_meaning_has_two_letters() -> None:
    meanings = [meaning for meaning, _ in LETTERS.values()]
    assert len(meanings) == len(set(meanings))


def test_the_page_of_keys_has_the_table() -> None:
    assert markdown() in (DOCS / "keys.md").read_text()


def test_the_keys_of_before_can_be_had_back(declared: dict[str, Declared]) -> None:
    keymap = read_user_keymap(DOCS / "keys-before.toml")
    assert keymap.problems == []
    assert keymap.keys["setup.copy"] == "c"
    assert len(keymap.keys) > 40


def test_what_panels_say_of_keys_is_so(declared: dict[str, Declared]) -> None:
    """A key that is named in the words of a panel acts in its folder, or in one of every screen."""
    named = re.compile(r"(?<![\w'+-])([B-Zb-z!@=_]|ctrl\+\w)(?![\w'-])")  # a, A and I are words
    folders: dict[str, set[str]] = defaultdict(set)
    panels: dict[type[Panel], str] = {}
    for info in pkgutil.walk_packages(megatron_tui.__path__, "megatron_tui."):
        if info.name.endswith("__main__"):
            continue
        for kind in vars(importlib.import_module(info.name)).values():
            if not isinstance(kind, type) or not kind.__module__.startswith("megatron_tui"):
                continue
            folder = kind.__module__.split(".")[1]
            for binding in vars(kind).get("BINDINGS", ()):
                if isinstance(binding, Binding) and binding.id in declared:
                    folders[folder].update(map(shown, declared[binding.id].keys))
            if issubclass(kind, Panel):
                panels[kind] = folder
    wrong, found = [], 0
    for panel, folder in panels.items():
        there = folders[folder] | folders["ui"] | (folders["setup"] if folder == "ui" else set())
        for key in named.findall(panel.EXPLANATION):
            found += 1
            if key.replace("ctrl+", "^") not in {one.replace("ctrl+", "^") for one in there}:
                wrong.append((panel.__name__, key))
    assert found > 12, "the search would prove nothing"
    assert wrong == []
