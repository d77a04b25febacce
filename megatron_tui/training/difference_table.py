"""Runs side by side as a table: how they did, and what differs between their settings. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content

from megatron_model.config.fields import RunConfig, get_setting
from megatron_model.run.comparison import Compared, differing
from megatron_model.util.text import safe
from megatron_tui.comparison.lines import colour_of, sign_of
from megatron_tui.training.fork_form import label
from megatron_tui.ui import formatting
from megatron_tui.ui.draft import value_text

WIDEST = 18
"""Cells of the widest column of the table."""


def difference_rows(own: Compared, others: Sequence[Compared]) -> list[tuple[str, ...]]:
    """Return the rows of the table: results first, then every setting that is not the same in all.

    The first cell names the row, the second is of the run on show.
    """
    runs = [own, *others]
    rows = [
        ("best loss", *(formatting.loss(run.state.best_val_loss) for run in runs)),
        ("step", *(formatting.exact(run.state.step) for run in runs)),
        ("time", *(formatting.duration(run.state.elapsed_seconds or None) for run in runs)),
    ]
    for key in differing(runs):
        rows.append((label(key), *(_value(run.config, key) for run in runs)))
    return rows


def difference_table(own: Compared, others: Sequence[Compared], width: int) -> Content:
    """Return the table as text: columns that fit, long values cut in their middle."""
    rows = difference_rows(own, others)
    heading = ("", "this run", *(sign_of(place) for place in range(len(others))))
    named = max((len(row[0]) for row in rows), default=0)
    each = max(8, min(WIDEST, (width - named) // (len(others) + 1) - 2))
    lines = [_row(heading, named, each, bold=True)]
    lines += [_row(row, named, each, bold=False) for row in rows]
    if len(rows) == 3 and others:
        lines.append(Content.styled("Their settings are the same.", "$quiet"))
    return Content("\n").join(lines)


def _row(cells: Sequence[str], named: int, each: int, *, bold: bool) -> Content:
    parts = [Content.styled(cells[0].ljust(named), "$quiet")]
    for number, cell in enumerate(cells[1:]):
        style = "bold" if bold else ""
        if bold and number:
            style = f"bold ${colour_of(number - 1)}"
        text = formatting.shortened(cell, each)
        parts.append(Content.assemble("  ", (text.rjust(each), style)))
    return Content("").join(parts)


def _value(config: RunConfig | None, key: str) -> str:
    if config is None:
        return formatting.MISSING
    return safe(value_text(get_setting(config, key)), one_line=True)
