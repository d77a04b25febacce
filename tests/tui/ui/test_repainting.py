"""Redrawing less shows the same: partial updates, and texts that repaint only what changed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual._compositor import Compositor
from textual.content import Content
from textual.geometry import Region

from megatron_tui.screens.training import TrainingScreen
from megatron_tui.sparing import SparingCompositor, bands
from megatron_tui.widgets.panel import Text, changed_regions
from tests.tui.conftest import until
from tests.tui.test_training_features import Shown, live, recorded, report, started


def test_bands_share_no_row() -> None:
    regions = [Region(0, 9, 5, 2), Region(3, 0, 4, 1), Region(8, 10, 2, 3), Region(0, 1, 1, 1)]
    assert bands(regions) == [Region(3, 0, 4, 1), Region(0, 1, 1, 1), Region(0, 9, 10, 4)]
    assert bands([]) == []


Cells = dict[tuple[int, int], tuple[str, str]]


def painted(shown: Shown, *names: str) -> Cells:
    """Return what a partial update of some panels writes, cell by cell."""
    screen = shown.screen
    compositor = screen._compositor
    widgets = {screen.query_one(f"#{name}") for name in names}
    for widget in widgets:
        widget.refresh()
    compositor.update_widgets(widgets)
    update = compositor.render_update()
    assert update is not None
    return cells_of(update.render_segments(shown.app.console))  # type: ignore[union-attr]


def cells_of(written: str) -> Cells:
    """Return the cells that a terminal fills when it is sent this."""
    cells: Cells = {}
    row = column = 0
    style = ""
    for move, ink, text in re.findall(r"\x1b\[([\d;]*)H|\x1b\[([\d;]*)m|([^\x1b\n]+)", written):
        if move:
            row, column = (int(number) for number in move.split(";"))
        elif text:
            for character in text:
                cells[row, column] = (character, style)
                column += cell_len(character)
        else:
            style = ink
    return cells


async def test_a_partial_update_writes_what_textual_would(runs_dir: Path) -> None:
    async with recorded(runs_dir) as shown:
        assert isinstance(shown.screen._compositor, SparingCompositor)
        for names in (("now",), ("now", "log"), ("loss", "log"), ("metrics", "sample")):
            ours = painted(shown, *names)
            with pytest.MonkeyPatch.context() as patch:
                for method in ("render_partial_update", "_get_renders"):
                    patch.setattr(SparingCompositor, method, getattr(Compositor, method))
                theirs = painted(shown, *names)
            assert ours == theirs and len(ours) > 300


def lines(*texts: str) -> Content:
    return Content("\n").join([Content(text) for text in texts])


def test_only_cells_that_differ_are_repainted() -> None:
    old, new = lines("loss 1.234", "same", "step 9"), lines("loss 1.274", "same", "step 10")
    assert changed_regions(old, new, 20) == [Region(8, 0, 1, 1), Region(0, 2, 7, 1)]
    assert changed_regions(old, lines("one"), 20) is None
    assert changed_regions(old, new, 8) is None  # a line that wraps
    bold = Content.assemble(("loss", "bold"), " 1.234\nsame\nstep 9")
    assert changed_regions(old, bold, 20) == [Region(0, 0, 10, 1)]


async def test_a_step_repaints_a_few_cells_and_no_chart(runs_dir: Path) -> None:
    events = [started(), *(report(step) for step in range(10, 400, 10))]
    async with live(runs_dir, events) as (shown, trainer):
        trainer.release(12)
        await until(lambda: shown.run.state.step == 110 and "┤" in shown.loss.text)
        await until(lambda: not shown.screen._dirty_widgets)
        drawn = shown.loss._rows
        shown.run.state.step += 1  # as when a step was taken, but nothing reported
        shown.screen.update_run()
        assert shown.loss._rows is drawn
        header = shown.screen.query_one("WorkbenchHeader", Text)
        assert sum(region.area for region in header._repaint_regions) <= 3


async def test_coming_back_to_a_screen_keeps_its_styles_unless_the_theme_changed(
    runs_dir: Path,
) -> None:
    async with recorded(runs_dir) as shown:
        background = shown.screen.styles.background
        await shown.press("f5", "f3")
        await until(lambda: isinstance(shown.app.screen, TrainingScreen))
        assert shown.screen.styles.background == background
        await shown.press("f5")
        shown.app.theme = "megatron-light"
        await shown.press("f3")
        await until(lambda: isinstance(shown.app.screen, TrainingScreen))
        await until(lambda: shown.screen.styles.background != background)
