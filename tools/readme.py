"""Fills the README's map from the first sentence of every module, its keys from the bindings.

python -m tools.readme

The full table of keys, with the ids that keys.toml changes them by, goes into docs/keys.md.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

from megatron_tui.keymap import EVERYWHERE, Declared, declared_keys, markdown, shown

ROOT = Path(__file__).parent.parent
PACKAGES = ("megatron_model", "megatron_tui")
START, END = "<!-- map -->", "<!-- end of map -->"
KEYS_START, KEYS_END = "<!-- keys -->", "<!-- end of keys -->"
SCREENS = (EVERYWHERE, "Setup", "Training", "Generation", "Runs")
KEYS_FILE = ROOT / "docs" / "keys.md"


def clause(path: Path) -> str:
    """Return the first sentence of a module's docstring, on one line and without its full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first = re.split(r"\.(?:\s|$)", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]
    return first.rstrip(".")


def package_map(root: Path = ROOT) -> str:
    """Return the tree of both packages, a clause a file, as a Markdown block."""
    lines = ["```"]
    for package in PACKAGES:
        lines.append(f"{package}/")
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root / package)
            if path.name != "__init__.py":
                lines.append(f"  {name!s:<28} {clause(path)}")
    return "\n".join([*lines, "```"])


def key_table() -> str:
    """Return what the keys of each screen do, in a word each, as a Markdown table."""
    every = declared_keys().values()
    lines = ["| where | keys |", "|---|---|"]
    for place in SCREENS:
        here = [one for one in every if one.place == place]
        # Moving about in a list or a text comes after what the screen is for.
        here.sort(key=lambda one: one.id.startswith(("settings.", "text.")))
        lines.append(f"| {place} | {_key_words(here)} |")
    return "\n".join(lines)


def _key_words(declared: list[Declared]) -> str:
    """Return keys and words; keys that share a word stand together."""
    keys: dict[str, list[str]] = {}
    for one in declared:
        if one.word:
            keys.setdefault(one.word, []).extend(one.keys)
    return ", ".join(
        f"{' '.join(f'`{shown(key)}`' for key in dict.fromkeys(of))} {word}"
        for word, of in keys.items()
    )


def key_file() -> str:
    """Return the full table of keys as a file of its own."""
    return (
        "# Every key\n\nWritten by `python -m tools.readme`. A `keys.toml` in the folder of the "
        "configuration changes them by their ids:\n\n```toml\n[keys]\n"
        f'"setup.start" = "f9"\n"training.pause" = ["p", "f8"]\n```\n\n{markdown()}'
    )


def with_map(readme: str, root: Path = ROOT) -> str:
    """Return the README's text with the map as it is now."""
    return _between(readme, START, END, package_map(root))


def with_keys(readme: str) -> str:
    """Return the README's text with the keys as they are now."""
    return _between(readme, KEYS_START, KEYS_END, key_table())


def _between(text: str, start: str, end: str, filling: str) -> str:
    before, _, rest = text.partition(start)
    _, _, after = rest.partition(end)
    return f"{before}{start}\n{filling}\n{end}{after}"


def main() -> None:
    """Rewrite the README's map and keys, and the file of all keys."""
    path = ROOT / "README.md"
    readme = path.read_text(encoding="utf-8")
    path.write_text(with_keys(with_map(readme)), encoding="utf-8")
    KEYS_FILE.parent.mkdir(exist_ok=True)
    KEYS_FILE.write_text(key_file(), encoding="utf-8")


if __name__ == "__main__":
    main()
