"""Private parts of other libraries are relied on in one folder, and each one there is checked.

What fails here names the versions that are installed: it is they that changed, or new code that
belongs into ``megatron_tui/textual_patches``.
"""

from __future__ import annotations

import ast
import fcntl
import importlib
import inspect
import os
import pkgutil
import pty
import re
import signal
import struct
import sys
import termios
import textwrap
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path

import plotext
import pytest
from textual._xterm_parser import XTermParser
from textual.app import App
from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver
from textual.events import Key
from textual.keys import _character_to_key, key_to_character
from textual.message_pump import MessagePump
from textual.widgets import Label

import megatron_tui
from megatron_tui.plot.plotext_cells import join_dots
from megatron_tui.textual_patches import chunks, key_names
from megatron_tui.textual_patches.driver import write_to_terminal
from megatron_tui.textual_patches.message_queue import has_work
from megatron_tui.textual_patches.streams import draw_on

ROOT = Path(megatron_tui.__file__).parent.parent
PATCHES = ROOT / "megatron_tui" / "textual_patches"
SCREEN_LIBRARIES = ("textual", "rich", "plotext")
INSTALLED = ", ".join(f"{name} {version(name)}" for name in SCREEN_LIBRARIES)
CHANGED = f"changed in what is installed ({INSTALLED}); see megatron_tui/textual_patches"

MADE_BY_TEXTUAL = {"_merged_bindings", "_reactives", "_decorated_handlers", "_computes"}
"""What its metaclasses write into every class; so do they all that begins with `_css` and so on."""
PREFIXES = ("_css_", "_inherit_", "_abc_", "_has_", "_is_")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def sources() -> Iterator[tuple[Path, ast.Module]]:
    """Yield every module of both packages outside the one folder."""
    for package in ("megatron_model", "megatron_tui"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if PATCHES not in path.parents:
                yield path, ast.parse(path.read_text(encoding="utf-8"))


def names_of_ours() -> set[str]:
    """Return every private name that our own code gives to something."""
    ours: set[str] = set()
    for path in (ROOT / "megatron_model", ROOT / "megatron_tui"):
        for module in path.rglob("*.py"):
            for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                    ours.add(node.name)
                elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                    ours.add(node.attr)
                elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    ours.add(node.id)
    return ours


def imports_a_screen_library(tree: ast.Module) -> bool:
    names = [
        name
        for node in ast.walk(tree)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else []
        )
    ]
    return any(name.split(".")[0] in (*SCREEN_LIBRARIES, "megatron_tui") for name in names)


def test_no_private_attribute_of_another_library_is_used() -> None:
    ours, seen, found = names_of_ours(), 0, []
    for path, tree in sources():
        if not imports_a_screen_library(tree):
            continue
        seen += 1
        for node in ast.walk(tree):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Attribute) and is_private(node.attr) and node.attr not in ours:
                if ast.unparse(node) != "os._exit":
                    found.append(f"{where} {ast.unparse(node)}")
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                names = [*module.split("."), *(alias.name for alias in node.names)]
                if module.split(".")[0] in SCREEN_LIBRARIES and any(map(is_private, names)):
                    found.append(f"{where} {ast.unparse(node)}")
    assert seen > 90, "the scan would prove nothing"
    assert found == [], f"private parts outside textual_patches ({INSTALLED})"


@cache
def names_on_self(kind: type) -> set[str]:
    """Return the private names that a class has, gives to its instances or takes from them."""
    names = set(vars(kind))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError):
        return names
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self", "super()"):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def widgets_of_ours() -> Iterator[type]:
    for info in pkgutil.walk_packages(megatron_tui.__path__, "megatron_tui."):
        if not info.name.endswith("__main__"):
            for kind in vars(importlib.import_module(info.name)).values():
                if isinstance(kind, type) and kind.__module__ == info.name:
                    yield kind


def test_no_class_of_ours_shares_a_private_name_with_the_class_it_is_made_from() -> None:
    """Neither on purpose, as a patch, nor by chance: both would have one attribute for two."""
    seen, found = 0, []
    for kind in widgets_of_ours():
        foreign = [one for one in kind.__mro__ if one.__module__.split(".")[0] in SCREEN_LIBRARIES]
        if not foreign or kind.__module__.startswith("megatron_tui.textual_patches"):
            continue
        seen += 1
        theirs = set().union(*map(names_on_self, foreign)) - MADE_BY_TEXTUAL
        found += [
            f"{kind.__module__}.{kind.__name__}: {name}"
            for name in sorted(names_on_self(kind) & theirs)
            if not name.startswith(PREFIXES)
        ]
    assert seen > 50, "the scan would prove nothing"
    assert found == [], f"private names shared with {INSTALLED}"


# What is relied on in the folder


def test_the_driver_reads_with_the_parser_that_is_replaced() -> None:
    assert "XTermParser" in LinuxDriver.run_input_thread.__code__.co_names, CHANGED
    assert {"feed", "tick"} <= set(dir(XTermParser)), CHANGED
    read = [key for key in chunks.MarkingParser().feed("ab") if isinstance(key, Key)]
    assert [chunk is not None and chunk.hurried for chunk in map(chunks.chunk_of, read)] == [
        True,
        True,
    ], CHANGED


def test_the_app_keeps_its_driver_where_it_is_written_to() -> None:
    written: list[str] = []

    class Noting(App[None]):
        pass

    app = Noting()
    assert app._driver is None, CHANGED
    write_to_terminal(app, "nobody is there")
    app._driver = type("Terminal", (), {"write": staticmethod(written.append)})()
    write_to_terminal(app, "\x1b[?2026$p")
    assert written == ["\x1b[?2026$p"], CHANGED
    assert "write" in vars(Driver), CHANGED


async def test_a_node_tells_of_what_it_has_to_do() -> None:
    class Waiting(App[None]):
        def compose(self) -> Iterator[Label]:  # type: ignore[override]
            yield Label("here")

    app = Waiting()
    async with app.run_test() as pilot:
        await pilot.pause()
        label = app.query_one(Label)
        assert not has_work(label), CHANGED
        label.call_later(lambda: None)
        assert has_work(label), CHANGED
        await pilot.pause()
        label.call_next(lambda: None)
        assert label._next_callbacks, CHANGED
        assert has_work(label), CHANGED
        await pilot.pause()
        assert not has_work(label), CHANGED
    names = MessagePump._process_messages_loop.__code__.co_names
    assert "_peek_message" in names, CHANGED
    assert "_pending_message" in MessagePump._peek_message.__code__.co_names, CHANGED


@pytest.mark.parametrize("character", "/\\@-+_?a ")
def test_every_character_that_is_typed_has_a_key_name_and_back(character: str) -> None:
    key_names.complete_key_names()
    name = key_names.key_name(character)
    assert name == _character_to_key(character), CHANGED
    assert name == character or key_to_character(name) == character, CHANGED


async def test_the_driver_draws_on_the_stream_it_is_given_and_asks_it_for_the_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("stderr", "__stderr__", "__stdout__"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the driver takes some for itself
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w", encoding="utf-8") as terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 37, 101, 0, 0))
        draw_on(terminal)
        driver = LinuxDriver(App())
        assert driver._get_terminal_size() == (101, 37), CHANGED
        driver._file.write("drawn")
        driver._file.flush()
        assert os.read(ours, 100) == b"drawn", CHANGED
    os.close(ours)


def test_curves_of_plotext_that_share_a_cell_show_the_dots_of_both() -> None:
    def drawn(*curves: tuple[float, float]) -> list[int]:
        plotext.clear_figure()
        plotext.limit_size(False, False)
        plotext.plot_size(20, 5)
        plotext.theme("clear")
        join_dots(plotext.active())
        plotext.ylim(0, 1)
        for curve in curves:
            plotext.plot([0, 1], curve, marker="braille")
        dots = re.findall(r"[\u2800-\u28ff ]", plotext.build())
        return [ord(dot) if dot != " " else 0x2800 for dot in dots]

    down, up = (0.9, 0.1), (0.1, 0.9)
    pairs = zip(drawn(down), drawn(up), strict=True)
    assert drawn(down, up) == [one | other for one, other in pairs], CHANGED
    plotext.clear_figure()
    assert "join" not in plotext.active().monitor.matrix.set_marker.__qualname__, CHANGED
