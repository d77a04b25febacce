"""What the Training screen says of devices that train together: a line or a cell for each. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from textual.content import Content

from megatron_model.events.schema import RankMeasured, RanksMeasured
from megatron_model.events.state import RunState
from megatron_model.util.text import safe
from megatron_tui.services.run_handle import device_count
from megatron_tui.ui import formatting

FULL, SHORT, TINY = 38, 23, 13
"""Cells in which a device is told of in full, in short, and at least."""
GAP = 1
"""Cells between two columns of devices."""
SLOWEST = "◂"
"""Marks the device that the others wait for."""


@dataclass(frozen=True)
class RankLayout:
    """How the devices are placed in a panel: so many columns of so many rows and cells."""

    columns: int
    rows: int
    width: int


def rank_layout(count: int, width: int, height: int) -> RankLayout:
    """Return the fewest columns in which `count` devices fit into so many rows and cells.

    Where they do not fit in the most columns there can be, some have no place.
    """
    most = max(1, (width + GAP) // (TINY + GAP))
    columns = next((c for c in range(1, most) if math.ceil(count / c) <= height), most)
    rows = max(1, min(height, math.ceil(count / columns)))
    return RankLayout(columns, rows, (width + GAP) // columns - GAP)


def ranks_title(state: RunState) -> str:
    """Return what trains, such as ``8 x NVIDIA H100``."""
    ranks = state.ranks.ranks if state.ranks is not None else ()
    if not ranks:
        return f"{device_count(state)} devices"
    names = list(dict.fromkeys(safe(rank.name, one_line=True) for rank in ranks))
    if ranks[0].kind == "ram":
        return f"{len(ranks)} processes, RAM of each"
    hosts = len({rank.host for rank in ranks})
    where = f" on {hosts} machines" if hosts > 1 else ""
    return f"{len(ranks)} x {', '.join(names)}{where}"


def ranks_note(state: RunState) -> str:
    """Return which rank the others wait for, and by how much it is behind the fastest."""
    slowest = state.ranks.slowest if state.ranks is not None else None
    if slowest is None or slowest.seconds is None or state.ranks is None:
        return ""
    fastest = min(rank.seconds for rank in state.ranks.ranks if rank.seconds is not None)
    note = f"slowest: rank {slowest.rank}"
    behind = slowest.seconds / fastest - 1 if fastest else 0.0
    return f"{note}, +{formatting.percent(behind)}" if behind >= 0.005 else note


def rank_lines(state: RunState, layout: RankLayout) -> Content:
    """Return a line of titles and the devices, down the columns.

    Of those without a place there is a count in the last one; the slowest always has one.
    """
    ranks = state.ranks
    if ranks is None or not ranks.ranks:
        # As high as it will be, so that nothing moves.
        return Content.styled("No measurement yet." + "\n " * layout.rows, "$quiet")
    shown: Sequence[RankMeasured] = ranks.ranks
    places = layout.columns * layout.rows
    hidden = len(shown) - places
    if hidden > 0:
        shown = _with_slowest(ranks, places - 1)
    digits = len(str(max(rank.rank for rank in ranks.ranks)))
    slowest = ranks.slowest
    cells = [_cell(rank, rank is slowest, layout.width, digits) for rank in shown]
    if hidden > 0:
        cells.append(Content.styled(f"and {hidden + 1} more".ljust(layout.width), "$quiet"))
    used = min(layout.columns, math.ceil(len(cells) / layout.rows))
    titles = [Content.styled(_titles(layout.width, digits), "$quiet")] * used
    rows = [titles, *(cells[row :: layout.rows] for row in range(layout.rows))]
    return Content("\n").join(Content(" " * GAP).join(row) for row in rows)


def _with_slowest(ranks: RanksMeasured, count: int) -> list[RankMeasured]:
    """Return the first ones, the slowest among them in any case."""
    shown, slowest = list(ranks.ranks[:count]), ranks.slowest
    if shown and slowest is not None and slowest not in shown:
        shown[-1] = slowest
    return shown


def _cell(rank: RankMeasured, slowest: bool, width: int, digits: int) -> Content:
    """Return one device in so many cells: memory, how busy, and its own time of a step."""
    share = rank.used / rank.total if rank.total else 0.0
    busy = f"{formatting.percent(rank.utilization):>4}"
    step = formatting.duration(rank.seconds)
    mark = (SLOWEST if slowest else " ", "bold $warning")
    number = (f"{rank.rank:>{digits}} ", "$quiet")
    if width < SHORT:
        figures = (f"{formatting.percent(share):>4} {busy}", "bold")
        return _padded(Content.assemble(number, figures, mark), width)
    if width < FULL:
        size = formatting.size(rank.used).replace(" ", "").removesuffix("iB")
        bar = _bar(share, width - digits - 20)
        figures = (f" {size:>5} {busy} {step.replace(' ', ''):>5} ", "bold")
        return _padded(Content.assemble(number, bar, figures, mark), width)
    first, second = _bar_widths(width, digits)
    return _padded(
        Content.assemble(
            number,
            _bar(share, first),
            (f" {_memory(rank, width)} ", "bold"),
            _bar(rank.utilization or 0.0, second),
            (f" {busy} {step:>6} ", "bold"),
            mark,
        ),
        width,
    )


def _memory(rank: RankMeasured, width: int) -> str:
    """Return the memory in use, where there is room of how much, and the most there was."""
    used = f"{formatting.size(rank.used):>8}"
    if width < FULL + 28:
        return used
    return f"{used} of {formatting.size(rank.total):>8}, peak {formatting.size(rank.peak):>8}"


def _bar_widths(width: int, digits: int) -> tuple[int, int]:
    memory = 8 if width < FULL + 28 else 35
    bars = width - digits - 17 - memory
    return bars - bars // 2, bars // 2


def _titles(width: int, digits: int) -> str:
    """Return what stands over the columns of a cell."""
    start = " " * (digits + 1)
    if width < SHORT:
        return f"{start} mem busy".ljust(width)
    if width < FULL:
        return f"{start}{'memory':<{width - digits - 14}} {'busy':>4} {'step':>5}".ljust(width)
    first, second = _bar_widths(width, digits)
    memory = 8 if width < FULL + 28 else 35
    left = f"{start}{'memory':<{first + memory + 2}}{'busy':<{second + 5}}"
    return f"{left} {'step':>6}".ljust(width)


def _bar(share: float, width: int) -> Content:
    filled = round(min(1.0, max(0.0, share)) * width) if share == share else 0  # NaN is not itself
    return Content.assemble(
        ("━" * filled, "$chart-memory"), ("─" * max(0, width - filled), "$line")
    )


def _padded(line: Content, width: int) -> Content:
    return Content.assemble(line, " " * max(0, width - line.cell_length))
