"""Fills the map of the packages in the README from the first sentence of every module.

python -m tools.readme
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("megatron_model", "megatron_tui")
START, END = "<!-- map -->", "<!-- end of map -->"


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


def with_map(readme: str, root: Path = ROOT) -> str:
    """Return the README's text with the map as it is now."""
    before, _, rest = readme.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}\n{package_map(root)}\n{END}{after}"


def main() -> None:
    """Rewrite the README's map."""
    path = ROOT / "README.md"
    path.write_text(with_map(path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
