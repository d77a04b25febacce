"""The views over the Generation screen, reached by keys: surprise, attention, duel, samples."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.drivers.headless_driver import HeadlessDriver
from textual.events import Paste
from textual.widgets import OptionList

from megatron_model.config.fields import RunConfig, SamplingConfig
from megatron_model.run.folder import RunFolder
from megatron_tui.generation.attention import AttentionScreen
from megatron_tui.generation.dialogs import AskText
from megatron_tui.generation.duel import DuelScreen, difference
from megatron_tui.generation.samples import TEMPERATURES, SamplePanel, SamplesScreen
from megatron_tui.generation.screen import GenerationScreen
from megatron_tui.generation.surprise import SurpriseScreen
from megatron_tui.generation.validation_place import STRETCH
from megatron_tui.shell.help import HelpScreen
from megatron_tui.ui.heat_view import HeatView, lead_tint, surprise_tint
from megatron_tui.ui.panel import Label
from megatron_tui.ui.pick import Pick
from megatron_tui.ui.stream_view import StreamView
from tests.tui.conftest import until
from tests.tui.generation.helpers import NARROW, WIDE, Writing, in_training, stream, writing

LN2 = math.log(2)


def best(run: RunFolder) -> Any:
    """The best model of a run."""
    from megatron_model.run.checkpoint import load_model

    checkpoint = run.best_checkpoint()
    assert checkpoint is not None
    return load_model(checkpoint.path / "model.safetensors")


def validation(run: RunFolder, start: int = 0, length: int = 2000) -> str:
    from megatron_model.analysis.validation_text import validation_stretch

    return validation_stretch(best(run), start, length).text


async def read(shown: Writing) -> SurpriseScreen:
    """The surprise view, once it has read everything."""
    view = await shown.view(SurpriseScreen)
    await until(lambda: view.feed is not None and not view.feed.busy)
    view.poll()
    await shown.pilot.pause()
    return view


# Surprise


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_surprise_of_what_was_written(
    runs_dir: Path, run_copy: RunFolder, size: tuple[int, int]
) -> None:
    from megatron_model.analysis.insight import surprise

    async with writing(runs_dir, size) as shown:
        await shown.type("the king")
        await shown.press("enter")
        text = await shown.done()
        await shown.press("escape", "H")
        view = await read(shown)
        heat = view.query_one(HeatView)
        model = best(run_copy)
        scores = list(surprise(model.model, model.tokenizer, text, model.block_size))
        assert view.scores == scores
        assert heat.text == text
        assert heat.tints() == [surprise_tint(-score.log_probability / LN2) for score in scores]
        assert len(set(heat.tints())) > 1
        assert "what it wrote, 508 characters" in shown.panel("reading")
        whole = -sum(score.log_probability for score in scores) / LN2 / len(scores)
        assert f"whole  {whole:.2f} bits/character" in shown.line("#totals")
        await shown.press("escape")
        assert isinstance(shown.app.screen, GenerationScreen)
        assert shown.text == text


async def test_bits_of_the_line_under_the_cursor(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "H")
        view = await read(shown)
        text = "".join(score.character for score in view.scores)
        end = text.index("\n")
        line = -sum(score.log_probability for score in view.scores[: end + 1]) / LN2 / (end + 1)
        assert f"line   {line:.2f} bits/character" in shown.line("#totals")


async def test_surprise_of_the_validation_text(
    runs_dir: Path, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_tui.generation.validation_place.STRETCH", 100)
    async with writing(runs_dir) as shown:
        # Nothing was written yet: it begins with the validation text.
        await shown.press("escape", "H")
        view = await read(shown)
        total = len(validation(run_copy, 0, 10**6))
        assert view.query_one(HeatView).text == validation(run_copy, 0, 100)
        await shown.press("n")
        view = await read(shown)
        assert view.query_one(HeatView).text == validation(run_copy, 100, 100)
        assert f"validation text from 100 of {total:,}" in shown.panel("reading")
        await shown.press("N", "N")
        view = await read(shown)
        assert view.query_one(HeatView).text == validation(run_copy, 0, 10**6)[-100:]
        assert "Written" not in shown.key_bar
        await shown.press("escape", "r")
        text = await shown.done()
        await shown.press("H")
        view = await read(shown)
        assert view.source == "written"
        await shown.press("v")
        assert (await read(shown)).query_one(HeatView).text == validation(run_copy, 0, 100)
        await shown.press("g")
        assert (await read(shown)).query_one(HeatView).text == text


async def test_surprise_of_a_pasted_text(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "H")
        view = await read(shown)
        await shown.press("i")
        await shown.view(AskText)
        await shown.press(*"the", "enter", *"king", "ctrl+s")
        view = await read(shown)
        assert view.query_one(HeatView).text == "the\nking"
        assert "a pasted text, 8 characters" in shown.panel("reading")
        shown.app.screen.post_message(Paste("a wölf\r\nsäng"))
        await until(lambda: view.query_one(HeatView).text == "a wlf\nsng")
        assert "2 unknown left out" in shown.panel("reading")
        await shown.press("i", "x", "escape")
        assert (await read(shown)).query_one(HeatView).text == "a wlf\nsng"


async def test_top_candidates_under_the_cursor(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "H")
        view = await read(shown)
        heat = view.query_one(HeatView)
        seen = []
        for keys in ([], ["l"], ["l"], ["h"], ["j"], ["k"], ["end"], ["home"], ["right", "left"]):
            await shown.press(*keys)
            score = view.scores[heat.cursor]
            bits = -score.log_probability / LN2
            assert f"{bits:.2f} bits" in shown.line("#character")
            lines = shown.line("#candidates").splitlines()
            assert len(lines) in (5, 6)
            marks = [line for line in lines if line.startswith("▸")]
            assert len(marks) == 1
            seen.append(heat.cursor)
        assert seen[:4] == [0, 1, 2, 1]
        assert seen[4] > 20
        assert seen[5:] == [1, len(view.scores) - 1, 0, 0]


async def test_go_from_one_surprise_to_the_next(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "H")
        view = await read(shown)
        heat = view.query_one(HeatView)
        await shown.press("asterisk")
        peaks = [index for index, tint in enumerate(heat.tints()) if tint[-1] in "45" and index > 0]
        assert heat.cursor == peaks[0]
        await shown.press("asterisk", "number_sign")
        assert heat.cursor == peaks[0]


async def test_a_click_puts_the_cursor(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "H")
        view = await read(shown)
        await shown.pilot.click(HeatView, offset=(7, 0))
        assert view.query_one(HeatView).cursor == 7


async def test_a_corpus_that_is_gone_is_said(
    runs_dir: Path, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from megatron_model.analysis import validation_text
    from megatron_model.data.corpus import find_corpus

    monkeypatch.setattr(validation_text, "find_corpus", lambda *_: find_corpus("gone.txt"))
    async with writing(runs_dir) as shown:
        await shown.press("escape", "H")
        await read(shown)
        assert "gone.txt" in shown.line("#problem")


# Attention


async def attended(shown: Writing, place: int) -> AttentionScreen:
    view = await shown.view(AttentionScreen)
    await until(lambda: view._answered == place)
    await shown.pilot.pause()
    return view


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_attention_of_the_character_under_the_cursor(
    runs_dir: Path, run_copy: RunFolder, size: tuple[int, int]
) -> None:
    from megatron_model.analysis.insight import attention_of

    async with writing(runs_dir, size) as shown:
        await shown.set("max_new_tokens", "30")
        await shown.press("i", *"the", "enter")
        text = await shown.done()
        await shown.press("escape", "A")
        view = await attended(shown, 32)
        model = best(run_copy)
        expected = attention_of(model.model, model.tokenizer, text, 32)
        assert view.view is not None
        assert (view.view.weights == expected.weights).all()
        assert "layer 1 of 2, all heads" in shown.panel("reading")
        assert view.shares() == pytest.approx(expected.weights[0].mean(0).tolist())
        tints = view.query_one(HeatView).tints()
        # Only the window is seen.
        assert set(tints[: expected.start]) == {"heat--plain"}
        assert "heat--share-5" in tints[expected.start :]
        await shown.press("h", "h")
        view = await attended(shown, 30)
        assert "30" in str(view._answered)


async def test_layer_and_head_by_keys(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "r")
        await shown.done()
        await shown.press("A")
        view = await attended(shown, 499)
        seen = []
        for key in ("]", "]", "[", ">", ">", ">", "<", "<", "0"):
            names = {"]": "right_square_bracket", "[": "left_square_bracket",
                     ">": "greater_than_sign", "<": "less_than_sign"}  # fmt: skip
            await shown.press(names.get(key, key))
            seen.append((view.depth, view.head))
        assert seen == [
            (1, None), (0, None), (1, None), (1, 0), (1, 1), (1, None), (1, 1), (1, 0), (1, None),
        ]  # fmt: skip
        await shown.press("greater_than_sign")
        assert "layer 2 of 2, head 1 of 2" in shown.panel("reading")
        assert view.view is not None
        assert view.shares() == pytest.approx(view.view.weights[1, 0].tolist())
        assert "heads look back" in shown.line("#totals")
        assert "%" in shown.line("#candidates")


# Duel


async def fight(shown: Writing, *moves: str) -> DuelScreen:
    """Open the duel against the weights that the moves lead to; wait for its end."""
    await shown.press("V")
    await shown.view(Pick)
    await shown.press(*moves, "enter")
    return await fought(shown)


async def fought(shown: Writing) -> DuelScreen:
    view = await shown.view(DuelScreen)
    await until(lambda: view.feed is not None and not view.feed.busy)
    view.poll()
    await shown.pilot.pause()
    return view


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_duel_of_two_checkpoints(
    runs_dir: Path, run_copy: RunFolder, size: tuple[int, int]
) -> None:
    from megatron_model.run.checkpoint import load_model

    async with writing(runs_dir, size) as shown:
        await shown.type("the ")
        await shown.press("escape")
        view = await fight(shown, "end")
        models = [load_model(side.weights) for side in view.sides]  # type: ignore[arg-type]
        assert models[0].step != models[1].step
        texts = ["the " + "".join(model.stream("the ", SamplingConfig())) for model in models]
        shows = [view.query_one(f"#{name} StreamView", StreamView) for name in ("first", "second")]
        assert [show.text for show in shows] == texts
        parted = next(i for i, pair in enumerate(zip(*texts, strict=True)) if len(set(pair)) > 1)
        assert view.diverged_at == parted - 4
        # The place is marked in both.
        assert [show._apart for show in shows] == [parted, parted]
        assert f"the same {parted - 4} character" in shown.line("#outcome")
        await shown.press("r")
        await fought(shown)
        assert shows[0].text == "the " + "".join(
            models[0].stream("the ", SamplingConfig(seed=1338))
        )
        await shown.press("tilde")
        await fought(shown)
        assert shows[1].text == "the " + "".join(
            models[0].stream("the ", SamplingConfig(seed=1338))
        )


async def test_duel_is_offered_against_other_weights_only(
    runs_dir: Path, run_copy: RunFolder
) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "V")
        pick = await shown.view(Pick)
        best_step = best(run_copy).step
        assert pick._entries
        assert all(f"step {best_step}" not in entry.detail for entry in pick._entries)
        await shown.press("escape")
        assert isinstance(shown.app.screen, GenerationScreen)


async def test_difference_of_their_surprise_on_real_text(
    runs_dir: Path, run_copy: RunFolder
) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape")
        view = await fight(shown, "end")
        assert "Stretch" not in shown.key_bar
        await shown.press("v")
        await fought(shown)
        heat = view.query_one(HeatView)
        assert heat.text == validation(run_copy, 0, STRETCH)
        assert heat.tints() == [lead_tint(difference(pair)) for pair in view.scores]
        means = [
            -sum(pair[side].log_probability for pair in view.scores) / LN2 / len(view.scores)
            for side in (0, 1)
        ]
        assert means[0] != means[1]
        better = "first" if means[0] < means[1] else "second"
        outcome = shown.line("#outcome")
        assert f"{means[0]:.3f}" in outcome
        assert f"the {better} is better by {abs(means[0] - means[1]):.3f}" in outcome
        await shown.press("l", "l")
        assert "bits" in shown.line("#candidates")
        assert "knew it better by" in shown.line("#totals")
        await shown.press("g")
        await fought(shown)
        assert not view.reading
        await shown.press("escape")


async def test_duel_needs_two(runs_dir: Path, run_copy: RunFolder) -> None:
    import shutil

    for checkpoint in run_copy.checkpoints()[:-1]:
        shutil.rmtree(checkpoint.path)
    async with writing(runs_dir) as shown:
        await shown.press("escape", "V")
        assert isinstance(shown.app.screen, GenerationScreen)
        await until(lambda: any("takes two" in one.message for one in shown.app._notifications))


# Several


async def written(shown: Writing) -> SamplesScreen:
    view = await shown.view(SamplesScreen)
    await until(lambda: view.feed is not None and not view.feed.busy)
    view.poll()
    await shown.pilot.pause()
    return view


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_several_samples_side_by_side(
    runs_dir: Path, run_copy: RunFolder, size: tuple[int, int]
) -> None:
    async with writing(runs_dir, size) as shown:
        await shown.set("max_new_tokens", "40")
        await shown.press("i", *"the", "escape", "B")
        view = await written(shown)
        texts = [panel.query_one(StreamView).text for panel in view.query(SamplePanel)][:4]
        assert texts == [
            "the" + stream(run_copy, "the", max_new_tokens=40, seed=1337 + index)
            for index in range(4)
        ]
        assert "characters/s together" in shown.line("#state")
        await shown.press("plus")
        view = await written(shown)
        assert len([panel for panel in view.query(SamplePanel) if panel.display]) == 5
        await shown.press("minus", "minus", "r")
        view = await written(shown)
        assert [text.sampling.seed for text in view.texts] == [1340, 1341, 1342]
        await shown.press("2")
        await until(lambda: isinstance(shown.app.screen, GenerationScreen))
        assert shown.text == "the" + stream(run_copy, "the", max_new_tokens=40, seed=1341)
        assert shown.value("seed") == "1341"
        await shown.press("g")
        await until(lambda: len(shown.text) == 3 + 80)
        assert shown.text == "the" + stream(run_copy, "the", max_new_tokens=80, seed=1341)


async def test_temperature_ladder(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.set("max_new_tokens", "40")
        await shown.press("i", *"the", "escape", "I")
        view = await written(shown)
        panels = [panel for panel in view.query(SamplePanel) if panel.display]
        assert [panel.query_one(StreamView).text for panel in panels] == [
            "the" + stream(run_copy, "the", max_new_tokens=40, temperature=temperature)
            for temperature in TEMPERATURES
        ]
        assert [panel.title.partition(" ")[2].strip() for panel in panels] == [
            f"temperature {temperature:g}" for temperature in TEMPERATURES
        ]
        assert "Texts" not in shown.key_bar
        await shown.press("tab", "enter")
        await until(lambda: isinstance(shown.app.screen, GenerationScreen))
        assert shown.value("temperature") == f"{TEMPERATURES[1]:g}"


async def test_a_prompt_that_blocks_is_said_in_every_view(
    runs_dir: Path, run_copy: RunFolder
) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("thé")
        await shown.press("escape", "B")
        await written(shown)
        assert "never saw" in shown.line("#state")


async def test_live_weights_in_every_view(runs_dir: Path, config: RunConfig) -> None:
    async with in_training(runs_dir, config) as (shown, go_on):
        shown.screen.choose_weights("live")
        await go_on(lambda: shown.status.phase == "ready")
        await shown.press("escape", "B")
        view = await shown.view(SamplesScreen)
        await go_on(lambda: view.feed is not None and view.feed.phase == "done")
        await shown.press("escape", "H")
        surprise = await shown.view(SurpriseScreen)
        await go_on(lambda: surprise.feed is not None and surprise.feed.phase == "done")
        await until(lambda: len(surprise.scores) > 100)
        await shown.press("escape")


# The prompt and the settings


async def test_damaged_weights_are_passed_over_and_said(
    runs_dir: Path, run_copy: RunFolder
) -> None:
    damaged, second = run_copy.readable_checkpoints("best")[:2]
    path = damaged.path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
    async with writing(runs_dir) as shown:
        await until(lambda: shown.status.phase == "ready")
        chosen = shown.screen.models.chosen
        assert chosen is not None
        assert chosen.checkpoint == second
        [said] = [note.message for note in shown.app._notifications]
        assert damaged.path.name in said
        assert "checksum" in said
        assert damaged.path not in [
            c.checkpoint.path for c in shown.screen.models.choices if c.checkpoint
        ]


async def test_edit_the_prompt_in_an_editor(
    runs_dir: Path, run_copy: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "editor.py"
    program.write_text(
        "import sys\n"
        "text = open(sys.argv[1]).read()\n"
        "open(sys.argv[1], 'w').write(text.upper() + 'and more\\n')\n"
    )
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{sys.executable} {program}")
    monkeypatch.setattr(HeadlessDriver, "can_suspend", True)
    async with writing(runs_dir) as shown:
        await shown.type("the king\n")
        await shown.press("ctrl+g")
        assert shown.prompt == "THE KING\nand more\n"
        for editor, problem in (("false", "status 1"), ("/no/such", "Cannot start")):
            monkeypatch.setenv("EDITOR", editor)
            await shown.press("ctrl+g")
            await until(
                lambda problem=problem: any(  # type: ignore[misc]
                    problem in notice.message for notice in shown.app._notifications
                )
            )
            assert shown.prompt == "THE KING\nand more\n"


async def test_an_editor_that_cannot_have_the_terminal_is_said(
    runs_dir: Path, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDITOR", "true")
    async with writing(runs_dir) as shown:
        await shown.press("escape", "ctrl+g")
        await until(
            lambda: any("cannot be handed" in one.message for one in shown.app._notifications)
        )


async def test_parameter_presets(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "p")
        pick = await shown.view(Pick)
        names = [entry.name for entry in pick._entries]
        options = pick.query_one(OptionList)
        while names[options.highlighted or 0] != "lively":
            await shown.press("down")
        assert "not absurd" in pick.query_one(".more", Label).plain
        await shown.press("enter")
        assert (shown.value("temperature"), shown.value("min_p")) == ("1.1", "0.05")
        await shown.press("r")
        assert await shown.done() == stream(run_copy, "", temperature=1.1, min_p=0.05)


async def test_every_view_has_help_and_comes_back(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir, NARROW) as shown:
        await shown.press("escape", "r")
        await shown.done()
        for key, kind in (("H", SurpriseScreen), ("A", AttentionScreen), ("B", SamplesScreen)):
            await shown.press(key)
            view = await shown.view(kind)
            await shown.press("question_mark")
            await shown.view(HelpScreen)
            helped = "\n".join(text.plain for text in shown.app.screen.query(Label))
            assert "Back to the text" in helped
            assert "panel" in helped
            await shown.press("escape")
            assert shown.app.screen is view
            await shown.press("f3", "f4")
            assert shown.app.screen is view
            await shown.press("escape")
            await until(lambda: isinstance(shown.app.screen, GenerationScreen))
        assert shown.app.workbench.generation.busy is False
