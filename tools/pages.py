"""Writes the parts of the documentation that follow from the code: settings, events, keys and more.

python -m tools.pages

A page has such a part between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; BLOCKS says which
there are. tests/test_docs.py fails while a page differs from what would be written.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from megatron_model.cli import parser as cli
from megatron_model.config.fields import SamplingConfig, all_fields
from megatron_model.config.live import CHANGEABLE
from megatron_model.config.presets import PRESETS
from megatron_model.config.schema import Field, fields_of
from megatron_model.events import schema as events
from megatron_model.util.environment import VARIABLES, Variable
from megatron_tui.keys import EVERYWHERE, Declared, declared_keys, markdown, shown

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
MAN_PAGE = DOCS / "megatron-model.1"
"""Kept with the sources, so that a wheel is built without all that the parser imports."""
PACKAGES = ("megatron_model", "megatron_tui")
SCREENS = (EVERYWHERE, "Setup", "Training", "Generation", "Runs")

_TYPES = {
    "int": "whole number",
    "Count": "whole number",
    "float": "number",
    "str": "text",
    "bool": "true or false",
}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '‖') for cell in line)} |" for line in lines)


def sentence(text: str) -> str:
    """Return a docstring's first sentence, on one line and without its full stop."""
    first = re.split(r"\.(?:\s|$)", " ".join(text.split("\n\n")[0].split()), maxsplit=1)[0]
    return first.rstrip(".").replace("``", "`")


# --- settings -----------------------------------------------------------------------------------


def settings() -> str:
    """Return every setting of a run, a table a group."""
    every = all_fields().values()
    groups = dict.fromkeys(field.key.partition(".")[0] for field in every)
    parts = []
    for group in groups:
        here = [field for field in every if field.key.startswith(f"{group}.")]
        parts.append(f"## {group}\n\n{_fields(here)}")
    return "\n\n".join(parts)


def sampling() -> str:
    """Return every option of sampling."""
    return _fields(fields_of(SamplingConfig))


def _fields(fields: Iterable[Field]) -> str:
    rows = []
    for field in fields:
        live = " *Can change while the run trains.*" if field.key in CHANGEABLE else ""
        default = f"`{field.default}`" if field.default != "" else "empty"
        rows.append((f"`{field.key}`", _range(field), default, field.description + live))
    return table(("setting", "value", "default", "what it does"), rows)


def _range(field: Field) -> str:
    return ", ".join(f"`{choice}`" for choice in field.choices) or field.allowed


def presets() -> str:
    """Return the presets with what tells them apart."""
    rows = []
    for preset in PRESETS.values():
        model, training = preset.config.model, preset.config.training
        rows.append(
            (
                f"`{preset.name}`",
                preset.description,
                f"{model.architecture}, {model.layers} layers of {model.embed_dim}, "
                f"{model.heads} heads",
                f"{model.block_size:,}",
                f"{training.batch_size}",
                f"{training.steps:,}",
                training.optimizer,
            )
        )
    return table(("preset", "for", "model", "block", "batch", "steps", "optimizer"), rows)


# --- events -------------------------------------------------------------------------------------


def event_kinds() -> str:
    """Return every event that is written to the log, with its fields."""
    tree = ast.parse(inspect.getsource(events))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    parts = []
    for kind in events.RECORDED:
        node = classes[kind.__name__]
        fields = list(_event_fields(node))
        tag = kind.__struct_config__.tag
        parts.append(f"### {tag}\n\n{_docstring(node)}")
        if fields:
            parts.append(table(("field", "value", "meaning"), fields))
        for name in {name for name in classes if any(f"tuple[{name}" in row[1] for row in fields)}:
            inner = list(_event_fields(classes[name]))
            parts.append(f"Each of its `{name}`: {_docstring(classes[name])}")
            parts.append(table(("field", "value", "meaning"), inner))
    return "\n\n".join(parts)


def _docstring(node: ast.ClassDef) -> str:
    return " ".join((ast.get_docstring(node) or "").split()).replace("``", "`")


def _event_fields(node: ast.ClassDef) -> Iterator[tuple[str, str, str]]:
    """Yield name, type and meaning; the meaning is the string behind a field, if there is one."""
    for index, part in enumerate(node.body):
        if not (isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name)):
            continue
        after = node.body[index + 1] if index + 1 < len(node.body) else None
        meaning = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            meaning = " ".join(str(after.value.value).split())
        words = ast.unparse(part.annotation)
        if words.startswith("Literal["):
            words = ", ".join(f"`{each}`" for each in re.findall(r"'([^']+)'", words))
        else:
            words = " or ".join(
                {**_TYPES, "None": "null", "Phase": "a phase"}.get(each, f"`{each}`")
                for each in words.split(" | ")
            )
        yield f"`{part.target.id}`", words, meaning


# --- environment, command line, keys, map -------------------------------------------------------


def environment() -> str:
    """Return the environment variables: ours, those of others that are kept, and internal ones."""

    def rows(kind: str) -> Iterator[tuple[str, str, str]]:
        for variable in VARIABLES:
            if variable.kind == kind:
                yield _names(variable), variable.help, variable.default

    head = ("variable", "what it does", "without it")
    return "\n\n".join(
        (
            f"## Ours\n\n{table(head, rows('ours'))}",
            f"## Of others, and kept\n\n{table(head, rows('others'))}",
            "## Internal\n\nSet by the program for processes that it starts, or by its tests.\n\n"
            + table(head[:2], (row[:2] for row in rows("internal"))),
        )
    )


def _names(variable: Variable) -> str:
    return " ".join(f"`{name}`" for name in variable.name.split(", "))


def verbs() -> str:
    """Return the verbs of megatron-model and their options, from the parser."""
    parts = []
    for name, parser in _verb_parsers():
        parts.append(f"### {name}\n\n{parser.description}")
        parts.append(table(("argument", "meaning"), _options(parser)))
        parts.append(f"```\n{cli.verb_of(name).EXAMPLES}```")
    return "\n\n".join(parts)


def _verb_parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in cli.build_parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()


def _options(parser: argparse.ArgumentParser) -> Iterator[tuple[str, str]]:
    for action in sorted(parser._actions, key=lambda one: bool(one.option_strings)):
        if isinstance(action, argparse._HelpAction):
            continue
        names = action.option_strings or [str(action.metavar or action.dest)]
        words = names[-1]
        if action.choices is not None and not action.metavar:
            chosen = "{" + ",".join(str(choice) for choice in action.choices) + "}"
            words = f"{words} {chosen}" if action.option_strings else chosen
        elif action.option_strings and action.nargs != 0:
            words += f" {action.metavar or action.dest.upper()}"
        yield f"`{words}`", action.help or ""


def man_page() -> str:
    """Return the manual page of megatron-model, for ``man``."""
    name, what = "megatron-model", "train character-level transformers and write with them"
    lines = [
        f'.TH {name.upper()} 1 "" "megatron-tui" "User Commands"',
        f".SH NAME\n{_roff(name)} \\- {what}",
        f".SH SYNOPSIS\n.B {_roff(name)}\n.I VERB\n.RI [ ARGUMENTS ]",
        ".SH DESCRIPTION\nDoes without a screen what the workbench, megatron\\-tui, does with one,",
        "on the same runs. What was asked for goes to stdout, everything for people to stderr.",
        ".SH VERBS",
    ]
    for verb, parser in _verb_parsers():
        lines.append(f".SS {verb}\n{_roff(parser.description or '')}")
        for words, meaning in _options(parser):
            lines.append(f".TP\n.B {_roff(words.strip('`'))}\n{_roff(meaning)}")
        examples = cli.verb_of(verb).EXAMPLES.splitlines()
        lines += [".PP\n.EX", *map(_roff, examples), ".EE"]
    lines.append(".SH EXIT STATUS")
    exits = (DOCS / "command-line.md").read_text(encoding="utf-8").partition("## Exit status")[2]
    for status, meaning in re.findall(r"^\| (\d[\d, ]*) \| (.+?) \|$", exits, re.MULTILINE):
        lines.append(f".TP\n.B {status}\n{_roff(meaning)}")
    lines.append(".SH ENVIRONMENT")
    for variable in VARIABLES:
        if variable.kind == "ours":
            without = f" (without it: {variable.default})" if variable.default else ""
            lines.append(f".TP\n.B {variable.name}\n{_roff(variable.help + without)}")
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    """Return text that roff prints as it is."""
    plain = text.replace("\\", "\\e").replace("-", "\\-").replace("`", "").replace("'", "\\(aq")
    return f"\\&{plain}" if plain.startswith(".") else plain


def key_table() -> str:
    """Return what the keys of each screen do, in a word each."""
    every = declared_keys().values()
    rows = []
    for place in SCREENS:
        here = [one for one in every if one.place == place]
        # Moving about in a list or a text comes after what the screen is for.
        here.sort(key=lambda one: one.id.startswith(("settings.", "text.")))
        rows.append((place, _key_words(here)))
    return table(("where", "keys"), rows)


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


def key_ids() -> str:
    """Return the table of all keys with their ids."""
    return markdown().strip()


def package_map(root: Path = ROOT) -> str:
    """Return every folder of both packages and its modules, a sentence each."""
    parts = []
    for package in PACKAGES:
        folders = sorted(path.parent for path in (root / package).rglob("__init__.py"))
        for folder in folders:
            modules = [path for path in sorted(folder.glob("*.py")) if path.name != "__init__.py"]
            parts.append(f"## {folder.relative_to(root)}/\n\n{_said(folder / '__init__.py')}.")
            if modules:
                parts.append(
                    table(
                        ("module", "what it is for"),
                        [(f"`{path.name}`", _said(path)) for path in modules],
                    )
                )
    return "\n\n".join(parts)


def _said(path: Path) -> str:
    return sentence(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")


BLOCKS: dict[str, Callable[[], str]] = {
    "settings": settings,
    "sampling": sampling,
    "presets": presets,
    "events": event_kinds,
    "environment": environment,
    "verbs": verbs,
    "keys": key_table,
    "key ids": key_ids,
    "map": package_map,
}

_BLOCK = re.compile(r"<!-- begin ([a-z ]+) -->\n.*?<!-- end \1 -->", re.DOTALL)


def blocks_in(text: str) -> list[str]:
    """Return the names of the written parts of a page."""
    return _BLOCK.findall(text)


def written(text: str) -> str:
    """Return a page with its written parts as they are to be now."""
    return _BLOCK.sub(
        lambda found: (
            f"<!-- begin {found[1]} -->\n\n{BLOCKS[found[1]]()}\n\n<!-- end {found[1]} -->"
        ),
        text,
    )


def main() -> None:
    """Write every page anew."""
    for path in sorted(DOCS.glob("*.md")):
        text = path.read_text(encoding="utf-8")
        path.write_text(written(text), encoding="utf-8")
    MAN_PAGE.write_text(man_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
