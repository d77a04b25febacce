"""Edit a text in the person's own editor, while the workbench stands aside."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from textual.app import App, SuspendNotSupported

from megatron_model.errors import RequestError

LARGEST = 10 << 20


def editor_command() -> list[str]:
    """Return the editor: ``VISUAL``, ``EDITOR``, or the first of a few that is there.

    Raises:
        RequestError: there is none.
    """
    for name in ("VISUAL", "EDITOR"):
        words = shlex.split(os.environ.get(name, ""))
        if words:
            return words
    for name in ("nano", "vi", "vim", "emacs"):
        if shutil.which(name):
            return [name]
    raise RequestError("There is no editor; name one in the environment variable EDITOR.")


def edit(app: App[Any], text: str) -> str:
    """Return `text` as the person left it.

    Raises:
        RequestError: the editor cannot be started, ended with an error, or left no text.
    """
    command = editor_command()
    with tempfile.TemporaryDirectory(prefix="megatron-") as folder:
        path = Path(folder) / "prompt.txt"
        path.write_text(text, encoding="utf-8", newline="")
        try:
            with app.suspend():
                status = subprocess.run([*command, str(path)]).returncode
        except SuspendNotSupported:
            raise RequestError("This terminal cannot be handed to an editor.") from None
        except OSError as error:
            raise RequestError(f"Cannot start {command[0]}: {error.strerror}.") from None
        if status:
            raise RequestError(f"{command[0]} ended with status {status}; the prompt stays.")
        return _read(path, text)


def _read(path: Path, before: str) -> str:
    try:
        with path.open("rb") as file:
            after = file.read(LARGEST).decode("utf-8-sig")
    except (OSError, UnicodeDecodeError):
        raise RequestError("What the editor left is no UTF-8 text; the prompt stays.") from None
    # Editors end a text with a line feed of their own.
    if after.endswith("\n") and not before.endswith("\n"):
        after = after[:-1]
    return after
