"""What the Generation screen does, reached by keys: writing, settings, prompts, weights, saving."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList

from megatron_model.config.fields import RunConfig
from megatron_model.run.folder import RunFolder
from megatron_tui.generation.dialogs import HistoryScreen
from megatron_tui.generation.prompt_area import PromptArea
from megatron_tui.generation.writing_session import READING
from megatron_tui.services.preferences import Preferences
from megatron_tui.ui.panel import Label
from megatron_tui.ui.pick import AskPath, Pick
from megatron_tui.ui.settings_list import SettingsList
from megatron_tui.ui.stream_view import StreamView
from tests.tui.conftest import until
from tests.tui.generation.helpers import (
    NARROW,
    WIDE,
    Writing,
    in_training,
    run_header,
    stream,
    writing,
)
from tests.tui.services.test_services import Letters

# Streaming


@pytest.mark.parametrize("size", [WIDE, NARROW])
async def test_streaming_with_its_speed(
    run_copy: RunFolder, runs_dir: Path, size: tuple[int, int]
) -> None:
    async with writing(runs_dir, size) as shown:
        await shown.type("the king")
        await shown.press("enter")
        assert await shown.done() == "the king" + stream(run_copy, "the king")
        assert "done, 500 characters, " in shown.panel("output")
        assert "characters/s" in shown.panel("output")


async def test_text_comes_while_it_is_written(runs_dir: Path, run_copy: RunFolder) -> None:
    model = Letters()
    async with writing(runs_dir, load_model=lambda path: model) as shown:
        await shown.type("x")
        await shown.press("enter")
        for count in (1, 4):
            model.gate.release(count)
            await until(lambda: shown.text == "x" + "a" * shown.status.characters != "x")
        await until(lambda: shown.text == "xaaaaa")
        assert shown.panel("output").endswith("characters/s")
        assert "writing, 5 characters" in shown.panel("output")
        shown.app.workbench.generation.cancel()
        model.gate.release()


async def test_an_empty_prompt_begins_anywhere(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("enter")
        assert await shown.done() == stream(run_copy, "")


async def test_streaming_at_the_speed_of_a_reader(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "full_stop")
        assert shown.choice("pace") == "reading"
        await shown.press("i", "t", "enter")
        await until(lambda: shown.status.phase == "done")
        await until(lambda: len(shown.text) > 4)
        # All of it is there, but nobody reads that fast.
        assert shown.screen.busy
        assert "reading along" in shown.panel("output")
        before = len(shown.text)
        shown.screen._poll()
        assert 0 < len(shown.text) - before <= READING
        await shown.press("escape")
        stopped = shown.text
        assert not shown.screen.busy
        shown.screen._poll()
        assert shown.text == stopped
        # What nobody saw was never written: it goes on from there.
        await shown.press("escape", "full_stop", "g")
        assert (await shown.done())[1:] == stream(
            run_copy, "t", max_new_tokens=500 + len(stopped) - 1
        )


async def test_100_000_characters(runs_dir: Path, run_copy: RunFolder) -> None:
    model = Letters()
    model.gate.release(100_000)
    async with writing(runs_dir, load_model=lambda path: model) as shown:
        await shown.press("escape")
        await shown.set("max_new_tokens", "100000")
        await shown.press("r")
        await until(lambda: shown.status.phase == "done")
        await until(lambda: len(shown.text) == 100_000)
        view = shown.screen.query_one(StreamView)
        await until(lambda: view.is_vertical_scroll_end)
        assert "done, 100,000 characters" in shown.panel("output")
        view.focus()
        await shown.press("home")
        assert view.scroll_offset.y == 0
        await shown.press("G")
        await until(lambda: view.is_vertical_scroll_end)


async def test_the_view_stays_where_it_was_scrolled_to(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.set("max_new_tokens", "3000")
        await shown.press("r")
        await shown.done()
        view = shown.screen.query_one(StreamView)
        await until(lambda: view.is_vertical_scroll_end)
        view.focus()
        await shown.press("home", "g")
        await until(lambda: len(shown.text) == 6000)
        assert view.scroll_offset.y == 0


# How characters are drawn


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("temperature", "1.4", 1.4), ("top_k", "3", 3), ("top_p", "0.6", 0.6),
        ("min_p", "0.1", 0.1), ("repetition_penalty", "1.5", 1.5), ("seed", "42", 42),
        ("max_new_tokens", "77", 77), ("stop", ".", "."),
    ],
)  # fmt: skip
async def test_setting(
    runs_dir: Path, run_copy: RunFolder, key: str, text: str, value: object
) -> None:
    async with writing(runs_dir) as shown:
        await shown.set(key, text)
        await shown.press("i", "t", "h", "enter")
        assert await shown.done() == "th" + stream(run_copy, "th", **{key: value})


async def test_greedy(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "0")
        assert shown.value("temperature") == "0"
        await shown.press("r")
        assert await shown.done() == stream(run_copy, "", temperature=0.0)
        await shown.press("0")
        assert shown.value("temperature") == "0.8"


async def test_keys_that_nudge_the_settings(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "t", "t", "T", "k", "k", "K", "o", "o", "O")
        assert [shown.value(key) for key in ("temperature", "top_k", "top_p")] == [
            "0.7", "80", "0.98",
        ]  # fmt: skip
        assert "*" in str(shown.screen.query_one(SettingsList).render_line(1).text)


async def test_a_wrong_value_is_said_and_nothing_is_written(
    runs_dir: Path, run_copy: RunFolder
) -> None:
    async with writing(runs_dir) as shown:
        await shown.set("top_p", "7")
        await shown.press("i", "enter")
        assert shown.status.phase == "ready"
        assert shown.screen.query_one(SettingsList).has_focus
        assert shown.screen.query_one(SettingsList).field.key == "top_p"


async def test_seed_goes_on_unless_it_is_locked(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.press("escape", "r")
        texts = [await shown.done()]
        await shown.press("r")
        texts.append(await shown.done())
        await shown.press("Z", "r")
        assert "seed locked" in shown.panel("sampling")
        texts.append(await shown.done())
        await shown.press("z")
        texts.append(await shown.done())
        assert texts[0] == stream(run_copy, "", seed=1337)
        assert texts[1] == texts[2] == stream(run_copy, "", seed=1338)
        assert texts[3] == stream(run_copy, "", seed=1339)


# The weights


async def test_checkpoint_picker_with_its_vocabulary(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        assert shown.choice("weights") == "best"
        checkpoints = run_copy.checkpoints()
        assert f"step {checkpoints[-1].step}" in shown.line("#about-model") or shown.line(
            "#about-model"
        ).startswith("step ")
        model = shown.status.model
        assert model is not None
        assert shown.line("#vocabulary").startswith(f"{len(model.tokenizer.vocabulary)} ")
        assert "acdefgh" in shown.line("#vocabulary")
        await shown.press("escape", "W")
        pick = await shown.view(Pick)
        options = pick.query_one(OptionList)
        assert options.option_count == 2 + len(checkpoints)
        assert "acdefgh" in pick.query_one(".more", Label).plain
        await shown.press("down", "enter")
        assert shown.choice("weights") == "latest"
        latest = run_copy.latest_checkpoint()
        assert latest is not None
        await until(lambda: shown.status.weights == latest.path / "model.safetensors")
        await shown.press("W", "end", "enter")
        oldest = checkpoints[0]
        assert shown.choice("weights") == f"step {oldest.step:,}"
        await until(lambda: shown.status.phase == "ready")
        assert shown.status.model is not None
        assert shown.status.model.step == oldest.step


async def test_live_weights_with_the_cost_shown(runs_dir: Path, config: RunConfig) -> None:
    async with in_training(runs_dir, config) as (shown, go_on):
        await shown.press("escape", "W")
        pick = await shown.view(Pick)
        names = [entry.name for entry in pick._entries]
        assert "live" in names
        for _ in range(names.index("live")):
            await shown.press("down")
        await shown.press("enter")
        assert shown.choice("weights") == "live"
        await go_on(lambda: shown.status.phase == "ready")
        run = shown.app.workbench.training.training
        assert run is not None
        steps: list[int] = []
        for _ in range(2):
            if steps:
                await go_on(lambda: run.state.step > steps[-1] + 1)
            await shown.press("r")
            await go_on(lambda: shown.status.phase == "done" and not shown.screen.busy)
            model = shown.status.model
            assert model is not None
            steps.append(model.step)
            await until(lambda: len(shown.text) == 500)
            about = shown.line("#about-model")
            assert f"step {steps[-1]:,}; training paused " in about
            assert about.endswith("characters")
        # Taken anew for each text, while the run goes on.
        assert steps[0] < steps[1]
        assert run.standing == "running"


async def test_context_window_meter(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        block = run_copy.read_config().model.block_size
        await until(lambda: shown.line("#context").endswith(f" 0 of {block}"))
        await shown.set("max_new_tokens", "5")
        await shown.press("i")
        await shown.type("the")
        await shown.press("enter")
        await shown.done()
        assert shown.line("#context").endswith(f" 8 of {block}")
        assert "━" in shown.line("#context")
        await shown.press("escape", "g")
        await until(lambda: len(shown.text) == 13)
        await shown.done()
        await shown.press("g")
        await until(lambda: len(shown.text) == 18)
        # 18 are more than the 16 it can see: with the 17th it was cut to the last 8.
        await until(lambda: shown.line("#context").endswith(f"last 9 of {block}"))


# What the model never saw


def marked(shown: Writing) -> str:
    """The characters of the prompt that stand out."""
    area = shown.screen.query_one(PromptArea)
    line = area.get_line(0)
    return "".join(line.plain[span.start : span.end] for span in line.spans if span.style)


async def test_unknown_characters_are_marked_as_typed(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("the")
        assert marked(shown) == ""
        await shown.type("é")
        assert marked(shown) == "é"
        await shown.type(" ki#")
        assert marked(shown) == "é#"
        assert "é #" in shown.line("#unknown")
        await shown.press("backspace")
        assert marked(shown) == "é"
        assert "#" not in shown.line("#unknown")


async def test_unknown_characters_block(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("thé")
        await shown.press("enter")
        assert shown.status.phase == "ready"
        assert "cannot read this prompt" in shown.line("#unknown")
        assert shown.text == ""


async def test_unknown_characters_dropped(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("thé k")
        await shown.press("ctrl+d")
        assert "Left out" in shown.line("#unknown")
        await shown.press("enter")
        assert (await shown.done()) == "th k" + stream(run_copy, "th k")
        assert shown.prompt == "thé k"


async def test_unknown_characters_replaced(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("thé k")
        await shown.press("ctrl+d", "ctrl+d")
        assert "é→e" in shown.line("#unknown")
        await shown.press("enter")
        assert (await shown.done()) == "the k" + stream(run_copy, "the k")
        await shown.press("ctrl+d")
        assert shown.screen.reader.policy == "block"


# Stop, again, on


@pytest.mark.parametrize("key", ["escape", "ctrl+c"])
@pytest.mark.parametrize("focus", ["prompt", "settings", "text"])
async def test_cancel_within_one_token(
    runs_dir: Path, run_copy: RunFolder, key: str, focus: str
) -> None:
    model = Letters()
    async with writing(runs_dir, load_model=lambda path: model) as shown:
        await shown.press("enter")
        model.gate.release(3)
        await until(lambda: shown.text == "aaa")
        if focus == "settings":
            shown.screen.query_one(SettingsList).focus()
        elif focus == "text":
            shown.screen.query_one(StreamView).focus()
        await shown.press(key)
        model.gate.release(1)
        await until(lambda: shown.status.phase == "stopped")
        await shown.pilot.pause()
        assert shown.text == "aaa"
        assert shown.status.characters == 3


async def test_regenerate(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("a wolf")
        await shown.press("enter")
        await shown.done()
        await shown.type(" sang")
        await shown.press("escape", "r")
        assert await shown.done() == "a wolf" + stream(run_copy, "a wolf", seed=1338)


async def test_continue(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.set("max_new_tokens", "30")
        await shown.press("i", "t", "h", "enter")
        await shown.done()
        for length in (60, 90):
            await shown.press("escape", "g")
            await until(lambda length=length: len(shown.text) == 2 + length)  # type: ignore[misc]
            await shown.done()
            # As if it had been asked for at once.
            assert shown.text == "th" + stream(run_copy, "th", max_new_tokens=length)
        before = shown.text
        await shown.press("T", "g")
        await until(lambda: len(shown.text) == len(before) + 30)
        assert shown.text == before + stream(run_copy, before, max_new_tokens=30, temperature=0.9)


# The prompts of the past


async def test_prompt_history(runs_dir: Path, run_copy: RunFolder, tmp_path: Path) -> None:
    kept = tmp_path / "preferences.json"
    async with writing(runs_dir, preferences=Preferences(kept)) as shown:
        for prompt in ("the king", "a wolf"):
            shown.screen.query_one(PromptArea).put("")
            await shown.type(prompt)
            await shown.press("enter")
            await shown.done()
        shown.screen.query_one(PromptArea).put("new")
        await shown.press("up")
        assert shown.prompt == "a wolf"
        await shown.press("up", "up")
        assert shown.prompt == "the king"
        await shown.press("down", "down")
        assert shown.prompt == "new"
    async with writing(runs_dir, preferences=Preferences(kept)) as shown:
        await shown.press("up", "up")
        assert shown.prompt == "the king"


async def test_prompt_history_is_searched(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        for prompt in ("the king", "the queen\nsang", "a wolf"):
            shown.screen.history.add(prompt)
        await shown.press("ctrl+r")
        history = await shown.view(HistoryScreen)
        assert history.found == ["a wolf", "the queen\nsang", "the king"]
        await shown.type("the")
        assert history.found == ["the queen\nsang", "the king"]
        assert history.query_one(Input).value == "the"
        assert "sang" in shown.line(".whole")
        await shown.press("down", "enter")
        assert shown.prompt == "the king"
        await shown.press("ctrl+r")
        await shown.view(HistoryScreen)
        await shown.type("no such words")
        assert "No prompt" in shown.line(".whole")
        await shown.press("enter")
        assert shown.prompt == "the king"
        await shown.press("ctrl+r", "escape")
        assert shown.prompt == "the king"


async def test_several_lines(runs_dir: Path, run_copy: RunFolder) -> None:
    async with writing(runs_dir) as shown:
        await shown.type("one\ntwo")
        assert shown.prompt == "one\ntwo"
        # Within the prompt the arrows move the cursor; at its first line they leave it.
        shown.screen.history.add("old")
        await shown.press("up")
        assert shown.prompt == "one\ntwo"
        await shown.press("up")
        assert shown.prompt == "old"


# Out of the workbench


async def test_copy_with_osc_52(
    runs_dir: Path, run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with writing(runs_dir) as shown:
        assert "Copy" not in shown.key_bar
        await shown.type("the")
        await shown.press("enter")
        text = await shown.done()
        sent: list[str] = []
        driver = shown.app._driver
        assert driver is not None
        monkeypatch.setattr(driver, "write", sent.append)
        await shown.press("escape", "y")
        wanted = base64.b64encode(text.encode()).decode()
        assert f"\x1b]52;c;{wanted}\x07" in "".join(sent)


async def test_save_with_a_header_that_reproduces_it(
    runs_dir: Path, run_copy: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with writing(runs_dir) as shown:
        await shown.press("escape", "T", "K", "k")
        await shown.press("i")
        await shown.type("the king\n")
        await shown.press("enter")
        await shown.done()
        await shown.press("escape", "g")
        await until(lambda: len(shown.text) == 9 + 1000)
        text = await shown.done()
        await shown.press("w")
        ask = await shown.view(AskPath)
        name = ask.query_one(Input).value
        assert name.startswith("tale-tiny-best-step-")
        await shown.press("enter")
        await until(lambda: (tmp_path / name).exists())
        saved = (tmp_path / name).read_text()
        assert saved.endswith(text + "\n")
        await shown.press("w", "enter")
        await shown.view(AskPath)
        assert "already" in shown.line(".more")
        await shown.press("escape")
    assert run_header(tmp_path / name, monkeypatch) == text + "\n"


async def test_a_text_goes_on_behind_other_screens(runs_dir: Path, run_copy: RunFolder) -> None:
    model = Letters()
    async with writing(runs_dir, load_model=lambda path: model) as shown:
        await shown.press("enter")
        model.gate.release(2)
        await until(lambda: shown.text == "aa")
        await shown.press("f5")
        # A checkpoint that is better now does not end what another one writes.
        latest = run_copy.checkpoint_path(99)
        shutil.copytree(run_copy.checkpoints()[-1].path, latest)
        (latest / "training.json").write_text('{"val_loss": 0.1}')
        model.gate.release(3)
        await until(lambda: shown.status.characters == 5)
        await shown.press("f4")
        await until(lambda: shown.text == "aaaaa")
        assert shown.status.phase == "writing"
        assert "step 99" in shown.line("#about-model")
        shown.app.workbench.generation.cancel()
        model.gate.release()
