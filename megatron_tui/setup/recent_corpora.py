"""The corpora that were used before: those of recorded runs, and those remembered by name."""

from __future__ import annotations

from pathlib import Path

from megatron_model.data.corpus import BUILTIN_CORPORA
from megatron_model.run.folder import list_runs
from megatron_model.util.errors import RequestError
from megatron_tui.services.preferences import Preferences

RECENT = 12
"""How many runs are looked at, and how many corpora are remembered."""


def remembered(preferences: Preferences) -> list[str]:
    """Return the corpora of earlier sessions, the last one first."""
    return preferences.get("setup.corpora", list[str]())[:RECENT]


def last_corpus(preferences: Preferences) -> str:
    """Return the corpus that the last run was started on, built-in ones included."""
    return preferences.get("setup.corpus", "")


def remember(preferences: Preferences, spec: str) -> None:
    """Keep the corpus that a run was started on for the next session."""
    preferences.set("setup.corpus", spec)
    if spec not in BUILTIN_CORPORA:
        before = preferences.get("setup.corpora", list[str]())
        preferences.set("setup.corpora", list(dict.fromkeys([spec, *before]))[:RECENT])


def corpora_of_runs(runs_dir: Path) -> list[str]:
    """Return the corpora of the newest runs, without the built-in ones."""
    found: list[str] = []
    for folder in list_runs(runs_dir)[:RECENT]:
        try:
            found.append(folder.read_config().data.corpus)
        except RequestError:
            continue
    return [spec for spec in dict.fromkeys(found) if spec and spec not in BUILTIN_CORPORA]
