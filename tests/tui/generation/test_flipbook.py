"""The flipbook, reached by keys: pages that turn, and films that are written."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_model.run.folder import RunFolder
from megatron_tui.generation.flipbook import CHANGED, FlipbookScreen
from megatron_tui.ui.heat_view import HeatView
from megatron_tui.ui.pick import AskPath
from tests.tui.conftest import until
from tests.tui.generation.helpers import NARROW, WIDE, writing


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_pages_are_turned_and_exported(
    runs_dir: Path, run_copy: RunFolder, tmp_path: Path, size: tuple[int, int]
) -> None:
    async with writing(runs_dir, size) as shown:
        await shown.type("the")
        await shown.press("escape", "F")
        view = await shown.view(FlipbookScreen)
        await until(lambda: not view.busy)
        view.poll()
        await shown.pilot.pause()
        steps = [one.step for one in run_copy.checkpoints()]
        assert [page.step for page in view.pages] == steps
        assert view.number == len(steps) - 1
        heat = view.query_one(HeatView)
        assert heat.text == view.pages[-1].text
        lit = {place for place, tint in enumerate(heat.tints()) if tint == CHANGED}
        assert lit == set(view.pages[-1].changed)
        assert lit
        await shown.press("comma")
        assert f"step {steps[-2]:,}" in shown.panel("reading")
        assert heat.text == view.pages[-2].text
        await shown.press("full_stop", "full_stop")
        assert f"page {len(steps)} of {len(steps)}" in shown.panel("reading")
        await shown.press("space")
        await until(lambda: view.number == 0)  # it begins anew after the last one
        await shown.press("space")
        assert not view.playing
        for name in ("film.gif", "film.cast"):
            await shown.press("w")
            asked = await shown.view(AskPath)
            await shown.press("ctrl+u", *str(tmp_path / name), "enter")
            if name == "film.gif":
                assert shown.app.screen is asked
                await shown.press("escape")
        await until(lambda: (tmp_path / "film.cast").exists())
        assert not (tmp_path / "film.gif").exists()
