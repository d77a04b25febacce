"""Every key of the workbench: where it is declared, how a person's ``keys.toml`` changes it.

A key is declared once, as a `Binding` with an id and a tooltip on the class that acts. This module
finds the declarations; the tables of docs/keys.md and the checks of ``keys.toml`` come from them.

    python -m megatron_tui.keys --markdown
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from textual.binding import Binding
from textual.keys import Keys, key_to_character

from megatron_model.util.errors import RequestError, nearest
from megatron_model.util.toml import read_toml
from megatron_tui.textual_patches.key_names import key_name

FILE = "keys.toml"

EVERYWHERE = "Everywhere"
PLACES = {
    "mode": EVERYWHERE,
    "app": EVERYWHERE,
    "setup": "Setup",
    "settings": "Setup",
    "text": "Setup",
    "editor": "Typing a value",
    "find": "Finding a setting",
    "path": "Typing a path",
    "xray": "X-ray",
    "table": "X-ray",
    "browser": "File browser",
    "pick": "Lists to choose from",
    "ask": "Typing a path",
    "training": "Training",
    "film": "Training",
    "chart": "Training",
    "panel": "Training",
    "generation": "Generation",
    "prompt": "Generation",
    "stream": "Generation",
    "history": "Earlier prompts",
    "view": "Views of a text",
    "heat": "Views of a text",
    "surprise": "Surprise",
    "microscope": "Microscope",
    "character": "Typing a character",
    "lines": "Each line",
    "filling": "Filling in",
    "flipbook": "Flipbook",
    "attention": "Attention",
    "duel": "Duel",
    "samples": "Several texts",
    "asktext": "Pasting a text",
    "runs": "Runs",
    "queue": "Queue",
    "dialog": "Questions",
    "stop": "Questions",
    "help": "Help",
}
"""Where the keys of an id act, by its first word; an unknown word names its own place."""

_SHOWN_NAMES = {
    "question_mark": "?", "slash": "/", "plus": "+", "minus": "-", "full_stop": ".", "comma": ",",
    "left_square_bracket": "[", "right_square_bracket": "]", "escape": "esc", "colon": ":",
    "greater_than_sign": ">", "less_than_sign": "<", "underscore": "_",
    "equals_sign": "=", "at": "@", "exclamation_mark": "!", "asterisk": "*", "number_sign": "#",
    "tilde": "~", "left_curly_bracket": "{", "right_curly_bracket": "}",
    "up": "↑", "down": "↓", "left": "←", "right": "→",
}  # fmt: skip


@dataclass(frozen=True)
class Declared:
    """One action that has keys."""

    id: str
    keys: tuple[str, ...]
    word: str
    tooltip: str
    place: str
    typing: bool
    """Whether the key acts before a text field sees it."""


@dataclass
class UserKeymap:
    """What is in a person's ``keys.toml``: what can be used of it, and what is wrong with it."""

    keys: dict[str, str] = field(default_factory=dict)
    """Key names separated by commas, by id."""
    problems: list[str] = field(default_factory=list)


def place_of(identifier: str) -> str:
    """Return where the key of an id acts."""
    word = identifier.partition(".")[0]
    return PLACES.get(word, word.replace("_", " ").capitalize())


def declared_keys() -> dict[str, Declared]:
    """Return every action that has keys, by id; imports every screen."""
    found: dict[str, Declared] = {}
    for binding in _bindings():
        if not binding.id:
            continue
        keys = tuple(key_name(key) for key in binding.key.split(","))
        before = found.get(binding.id)
        if before is not None:
            keys = tuple(dict.fromkeys([*before.keys, *keys]))
        found[binding.id] = Declared(
            binding.id, keys, binding.description, binding.tooltip or binding.description,
            place_of(binding.id), binding.priority,
        )  # fmt: skip
    return found


def _bindings() -> Iterator[Binding]:
    import megatron_tui

    seen: set[type] = set()
    for info in pkgutil.walk_packages(megatron_tui.__path__, "megatron_tui."):
        if info.name.endswith("__main__"):
            continue
        module = importlib.import_module(info.name)
        for kind in vars(module).values():
            if isinstance(kind, type) and kind not in seen:
                seen.add(kind)
                if kind.__module__.startswith("megatron_tui"):
                    for binding in vars(kind).get("BINDINGS", ()):
                        if isinstance(binding, Binding):
                            yield binding


def read_user_keymap(path: Path) -> UserKeymap:
    """Read and check a ``keys.toml``; what is wrong is left out and said, never raised."""
    if not path.exists():
        return UserKeymap()
    try:
        data = read_toml(path)
    except RequestError as error:
        return UserKeymap(problems=[str(error)])
    return check_keymap(dict(_flat(data)), declared_keys())


def check_keymap(wanted: Mapping[str, object], declared: Mapping[str, Declared]) -> UserKeymap:
    """Return what can be used of a wish for other keys, and what is wrong with the rest."""
    result = UserKeymap()
    for identifier, value in wanted.items():
        if identifier not in declared:
            result.problems.append(
                f'{FILE}: there is no action "{identifier}".' + nearest(identifier, declared)
            )
            continue
        keys = _key_list(value)
        problem = _key_problem(identifier, keys, declared[identifier])
        if problem:
            result.problems.append(f"{FILE}: {problem}")
        else:
            result.keys[identifier] = ",".join(key_name(key) for key in keys or [])
    for identifier in list(result.keys):
        clash = _clash(identifier, result.keys, declared)
        if clash:
            result.problems.append(f"{FILE}: {clash}")
            del result.keys[identifier]
    return result


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Yield ids and values; ``setup.start = ...`` is a table in a table, ``[keys]`` is optional."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, "" if not prefix and name == "keys" else f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _key_list(value: object) -> list[str] | None:
    if isinstance(value, str):
        # A lone comma is the comma key.
        return [value] if value == "," else [key.strip() for key in value.split(",")]
    if isinstance(value, list) and value and all(isinstance(key, str) for key in value):
        return [key.strip() if key != " " else "space" for key in value]
    return None


def _key_problem(identifier: str, keys: list[str] | None, declared: Declared) -> str:
    if keys is None:
        return f'the keys of "{identifier}" must be text such as "ctrl+g", or a list of such.'
    for key in keys:
        if not _is_key(key):
            return f'"{key}" of "{identifier}" is no key.' + nearest(key.lower(), _key_names())
        if declared.typing and declared.place == EVERYWHERE and key_to_character(key_name(key)):
            return (
                f'"{key}" of "{identifier}" could not be typed any more; '
                "take a function key or one with ctrl."
            )
    return ""


def _clash(identifier: str, changed: Mapping[str, str], declared: Mapping[str, Declared]) -> str:
    """Return which other action has a new key of `identifier` already, where both could act."""
    own = declared[identifier]
    new = set(changed[identifier].split(",")) - set(own.keys)
    for other in declared.values():
        if other.id == identifier or not _meet(own.place, other.place):
            continue
        theirs = changed[other.id].split(",") if other.id in changed else other.keys
        both = new.intersection(theirs)
        if both:
            key = shown(sorted(both)[0])
            return f'"{key}" of "{identifier}" is the key of "{other.id}" ({other.tooltip}).'
    return ""


def _meet(one: str, other: str) -> bool:
    return one == other or EVERYWHERE in (one, other)


def _key_names() -> list[str]:
    letters = "abcdefghijklmnopqrstuvwxyz"
    return sorted({key.value for key in Keys} | {f"ctrl+{letter}" for letter in letters})


def _is_key(key: str) -> bool:
    *modifiers, last = key.split("+") if len(key) > 1 else [key]
    if any(modifier not in ("ctrl", "alt", "shift", "super") for modifier in modifiers):
        return False
    if key in _key_names() or last in _key_names():
        return True
    if len(last) == 1:
        return last.isprintable() and not last.isspace() and not (modifiers and last.isupper())
    return bool(last) and key_to_character(last) is not None and last.islower()


def shown(key: str) -> str:
    """Return a key as people write it."""
    *modifiers, last = key.split("+")
    name = _SHOWN_NAMES.get(last) or (last.upper() if _is_function_key(last) else last)
    return "+".join([*modifiers, name])


def _is_function_key(name: str) -> bool:
    return name[0] == "f" and name[1:].isdigit()


def markdown() -> str:
    """Return the table of all keys as Markdown."""
    lines = ["| where | key | what it does | id |", "|---|---|---|---|"]
    places = list(dict.fromkeys(PLACES.values()))
    every = sorted(
        declared_keys().values(),
        key=lambda one: places.index(one.place) if one.place in places else len(places),
    )
    for one in every:
        keys = " ".join(f"`{'‖' if key == '|' else shown(key)}`" for key in one.keys)
        lines.append(f"| {one.place} | {keys} | {one.tooltip} | `{one.id}` |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown())
