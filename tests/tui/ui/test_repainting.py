"""Widgets repaint only what changed of them."""

from __future__ import annotations

from pathlib import Path

from textual.content import Content
from textual.geometry import Region

from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.panel import Label, changed_regions
from tests.tui.conftest import until
from tests.tui.training.helpers import live, recorded, report, started


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
        header = shown.screen.query_one("WorkbenchHeader", Label)
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
