"""Ask for a file, and write the table of runs that are compared into it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from textual.app import App

from megatron_model.run.comparison import FORMS, Along, Compared, write_table
from megatron_tui.ui.pick import AskPath, write_where

FIRST = "comparison.csv"


def ask_where_to_write(app: App[Any], runs: Sequence[Compared], by: Along = "step") -> None:
    """Ask for a file that ends in .csv or .md, and write the table."""

    def write(typed: str, again: bool) -> str:
        return write_where(typed, again, lambda path: write_table(path, runs, by))

    title = f"Write the table to a file that ends in {' or '.join(FORMS)}"
    app.push_screen(AskPath(title, FIRST, write), lambda typed: _tell(app, typed))


def _tell(app: App[Any], typed: str | None) -> None:
    if typed is not None:
        app.notify(f"Wrote {typed}", timeout=5, markup=False)
