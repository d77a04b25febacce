"""The microscope and the other ways to write, reached by keys: rivals, branches, lines, gaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_model.config.fields import SamplingConfig
from megatron_model.run.folder import RunFolder
from megatron_tui.generation.dialogs import AskCharacter, AskText
from megatron_tui.generation.filling import FillingScreen
from megatron_tui.generation.lines import LinesScreen
from megatron_tui.generation.microscope import AT_ONCE, MOST, MicroscopeScreen
from megatron_tui.generation.screen import GenerationScreen
from megatron_tui.ui.heat_view import HeatView
from tests.tui.conftest import until
from tests.tui.generation.helpers import NARROW, WIDE, Writing, stream, writing
from tests.tui.generation.test_views import best


async def looking(shown: Writing) -> MicroscopeScreen:
    """The microscope, once nothing more comes."""
    view = await shown.view(MicroscopeScreen)
    view.at_reading_pace = False
    await until(lambda: not view.busy and all(one.end is not None for one in view.branches))
    await shown.pilot.pause()
    return view


def heat(view: MicroscopeScreen, number: int) -> HeatView:
    return view.query_one(f"#branch-{number} HeatView", HeatView)


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_a_text_under_the_microscope_is_the_text_that_was_written(
    runs_dir: Path, run_copy: RunFolder, size: tuple[int, int]
) -> None:
    from megatron_model.analysis.insight import watch

    async with writing(runs_dir, size) as shown:
        await shown.type("the king")
        await shown.press("enter")
        text = await shown.done()
        await shown.press("escape", "x")
        view = await looking(shown)
        assert heat(view, 0).text == text + " "
        model = best(run_copy)
        moments = list(
            watch(
                model.model, model.tokenizer, "the king", SamplingConfig(), text[8:], candidates=9
            )
        )
        assert view.branches[0].moments == moments[:-1]
        # At its end: what might come next.
        assert heat(view, 0).cursor == len(text)
        assert shown.line("#character") == "what might come next"
        assert "seed 1337 · temperature 0.8" in shown.line("#totals")
        await shown.press("home")
        assert shown.line("#character") == "given, not written"
        await shown.press(*["l"] * 8)
        assert "drawn" in shown.line("#character")
        assert "▸" in shown.line("#candidates")


async def test_a_text_is_written_under_the_microscope_as_anywhere(
    runs_dir: Path, run_copy: RunFolder
) -> None:
    async with writing(runs_dir) as shown:
        await shown.set("max_new_tokens", "30")
        await shown.press("i", "t", "escape", "x")
        view = await looking(shown)
        assert view.branches[0].text.text == "t" + stream(run_copy, "t", max_new_tokens=30)
        await shown.press("n")
        view = await looking(shown)
        assert view.branches[0].text.text == "t" + stream(run_copy, "t", max_new_tokens=31)
        await shown.press("enter")
        await until(lambda: isinstance(shown.app.screen, GenerationScreen))
        assert shown.text == "t" + stream(run_copy, "t", max_new_tokens=31)


async def test_branches_stand_side_by_side(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.set("max_new_tokens", "20")
        await shown.press("i", *"the", "enter")
        text = await shown.done()
        await shown.press("escape", "x")
        await looking(shown)
        await shown.press("home", *["l"] * 5)
        view = await looking(shown)
        moment = view.branches[0].moment(5)
        assert moment is not None
        rival = moment.rivals[2].character
        await shown.press("3")
        view = await looking(shown)
        prompt = text[:5] + rival
        branch = view.branches[1].text
        assert branch.text == prompt + stream(run_copy, prompt, max_new_tokens=AT_ONCE)
        assert heat(view, 0).text == text + " "
        assert "at 6" in shown.panel("branch-1")
        # Any character, if the model knows it.
        await shown.press("home", "C")
        asked = await shown.view(AskCharacter)
        await shown.press("ß")
        assert "never seen" in shown.line(".whole")
        assert shown.app.screen is asked
        await shown.press("enter")
        view = await looking(shown)
        assert view.branches[2].text.prompt == "\n"
        assert view.active == 2
        await shown.press("D")
        assert len(view.branches) == 2
        await shown.press("shift+tab")
        await shown.press("home", "C", "t")
        await looking(shown)
        await shown.press("home", "C", "h")
        view = await looking(shown)
        assert len(view.branches) == MOST
        await shown.press("1")
        assert len(view.branches) == MOST


async def test_it_stops_where_it_was_shown_to(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("t", "escape", "x")
        view = await shown.view(MicroscopeScreen)
        await until(lambda: view.branches[0].text.length >= 6)
        await shown.press("S")
        view = await looking(shown)
        length = view.branches[0].text.length
        assert 6 <= length < 500
        assert view.branches[0].text.text == "t" + stream(run_copy, "t", max_new_tokens=length)


async def test_each_line_goes_on_by_itself(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("the\nking\n\na")
        await shown.press("escape", "E")
        view = await shown.view(LinesScreen)
        await until(lambda: not view.busy)
        view.poll()
        expected = [
            line + (stream(run_copy, line, stop="\n").removesuffix("\n") if line else "")
            for line in ("the", "king", "", "a")
        ]
        assert view.lines == expected
        assert view.query_one(HeatView).text == "\n".join(expected)
        assert "4 of 4 lines" in shown.panel("reading")


async def test_a_gap_is_filled_in(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.set("max_new_tokens", "12")
        await shown.press("i")
        await shown.type("the king ")
        await shown.press("escape", "f")
        await shown.view(AskText)
        await shown.press(*"the", "ctrl+s")
        view = await shown.view(FillingScreen)
        await until(lambda: not view.busy)
        view.poll()
        await shown.pilot.pause()
        assert "judged by what comes after" in shown.panel("reading")
        middle = view.best[0].middle
        assert view.best == sorted(view.best, key=lambda one: -one.log_probability)
        await shown.press("1")
        await until(lambda: isinstance(shown.app.screen, GenerationScreen))
        assert shown.prompt == "the king " + middle + "the"
