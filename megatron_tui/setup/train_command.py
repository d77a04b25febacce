"""The command that starts the run on screen without a screen: exact, for any shell. Pure."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from megatron_model.data.corpus import BUILTIN_PREFIX
from megatron_model.run.folder import default_runs_dir
from megatron_model.run.taken_recipe import MADE_GENTLER
from megatron_model.util.errors import RequestError
from megatron_tui.ui.draft import SetupDraft, form_fields

SHORT_PATH = 24


def absolute_corpus(spec: str) -> str:
    """Return what names the same corpus from any working directory."""
    if not spec or spec.startswith(BUILTIN_PREFIX):
        return spec
    return os.path.abspath(os.path.expanduser(spec))


def train_command(draft: SetupDraft, *, corpus: str, name: str, runs_dir: Path) -> list[str]:
    """Return the words of the command for a draft: its preset, and what was typed over it."""
    verb = "sweep" if draft.check().varied else "train"
    words = ["megatron-model", verb, absolute_corpus(corpus) or "CORPUS"]
    if draft.start is not None:
        words += ["--from", str(draft.start.folder)]
    words += ["--preset", draft.preset]
    # The command line would make these gentler; what is on the screen is what is meant.
    meant = [f"training.{name}" for name in MADE_GENTLER] if draft.start is not None else []
    for key in form_fields():
        if key in draft.edits or key in meant:
            words += ["--set", f"{key}={draft.text(key)}"]
    words += ["--name", name]
    if runs_dir.absolute() != _default_runs_dir():
        words += ["--runs-dir", str(runs_dir.absolute())]
    return words


def _default_runs_dir() -> Path | None:
    try:
        return default_runs_dir().absolute()
    except RequestError:  # a user without a home has none
        return None


def for_shell(words: list[str]) -> str:
    """Return the command as it is pasted into a shell."""
    return shlex.join(words)


def for_screen(words: list[str]) -> str:
    """Return the command with its paths cut to what tells them apart; not for pasting."""
    return " ".join(_short(word) for word in words)


def _short(word: str) -> str:
    if "/" not in word or len(word) <= SHORT_PATH:
        return shlex.quote(word)
    return f"…/{Path(word).name}"
