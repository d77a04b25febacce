"""Edit a text in the person's own editor, while the workbench stands aside."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App, SuspendNotSupported

from megatron_model.util.errors import RequestError
from megatron_model.util.text import safe, with_line_feeds
from megatron_tui.terminal.output import terminal_descriptor

if TYPE_CHECKING:
    from megatron_tui.terminal.signals import TerminalSignals

LARGEST = 10 << 20
"""Bytes of a text that are taken from an editor."""


class NoEditorError(RequestError):
    """There is no editor, or the terminal cannot be handed to one."""


def editor_command() -> list[str]:
    """Return the editor: ``VISUAL``, ``EDITOR``, or the first of a few that is there.

    Raises:
        RequestError: there is none, or the variable cannot be read.
    """
    for name in ("VISUAL", "EDITOR"):
        value = os.environ.get(name, "").strip()
        if value and shutil.which(value):
            return [value]  # a program with blanks in its path
        try:
            words = shlex.split(value)
        except ValueError:
            raise RequestError(
                f"A quotation mark is missing in the environment variable {name}."
            ) from None
        if words:
            return words
    for name in ("nano", "vi", "vim", "emacs"):
        if shutil.which(name):
            return [name]
    raise NoEditorError("There is no editor; name one in the environment variable EDITOR.")


def edit(app: App[Any], text: str, what: str = "prompt") -> str:
    """Return `text` as the person left it; `what` says what kind of text it is.

    Raises:
        RequestError: the editor cannot be started, ended with an error, or left no text.
    """
    command = editor_command()
    editor = safe(command[0], one_line=True)
    try:
        with tempfile.TemporaryDirectory(prefix="megatron-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / f"{what}.txt"
            path.write_text(text, encoding="utf-8", errors="replace", newline="")
            _check_end(editor, _run(app, [*command, str(path)]), what)
            return _read(editor, path, text, what)
    except OSError as error:
        raise RequestError(
            f"Cannot write a file for {editor} in {safe(tempfile.gettempdir())}: {error.strerror}."
        ) from None


def _run(app: App[Any], command: list[str]) -> int:
    """Give the terminal to the editor and wait for its end; return its status."""
    signals: TerminalSignals | None = getattr(app, "signals", None)
    terminal = terminal_descriptor()
    aside = signals.standing_aside() if signals is not None else contextlib.nullcontext()
    try:
        with app.suspend(), _deaf_to_keys(), aside:
            # Textual takes the terminal back only where nothing was raised.
            try:
                status = subprocess.run(command, stdout=terminal, stderr=terminal).returncode
            except (OSError, ValueError) as error:
                status, why = 0, getattr(error, "strerror", None) or str(error)
            else:
                why = ""
    except SuspendNotSupported:
        raise NoEditorError("This terminal cannot be handed to an editor.") from None
    if why:
        raise RequestError(f"Cannot start {safe(command[0], one_line=True)}: {why}.")
    return status


@contextlib.contextmanager
def _deaf_to_keys() -> Iterator[None]:
    """Let ctrl+c and ctrl+\\ mean what they mean in the editor, and nothing here.

    By handlers, not by ignoring: an ignored signal would stay ignored in the editor.
    """
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGQUIT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _check_end(editor: str, status: int, what: str) -> None:
    if status < 0:
        raise RequestError(f"{editor} was ended by signal {-status}; the {what} stays.")
    if status:
        raise RequestError(f"{editor} ended with status {status}; the {what} stays.")


def _read(editor: str, path: Path, before: str, what: str = "prompt") -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise RequestError(f"{editor} left no file behind; the {what} stays.") from None
    except OSError as error:
        raise RequestError(
            f"What {editor} left cannot be read: {error.strerror}; the {what} stays."
        ) from None
    if len(data) > LARGEST:
        raise RequestError(
            f"{editor} left more than {LARGEST >> 20} MiB, which is no {what}; the {what} stays."
        )
    try:
        after = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequestError(
            f"What {editor} left is not UTF-8 at byte {error.start:,} "
            f"(0x{data[error.start]:02x}); save it as UTF-8. The {what} stays."
        ) from None
    after = with_line_feeds(after)
    # Editors end a text with a line feed of their own.
    if after.endswith("\n") and not before.endswith("\n"):
        after = after[:-1]
    return after
