"""A corpus that cannot be read: it is said, whole, and the card does not look fine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from megatron_model.data.corpus import find_corpus
from megatron_tui.setup.corpus_picker import CorpusPicker
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.ui.path_input import PathInput
from tests.tui.conftest import make_app, make_workbench, tale, until

__all__ = ["tale"]


def drawn(screen: SetupScreen) -> str:
    """Return the words of the left half as they are drawn, line ends taken out."""
    left = screen.query_one("#left").region
    rows = [strip.crop(2, left.right - 2).text for strip in
            screen._compositor.render_strips(screen.size)]  # fmt: skip
    return " ".join(" ".join(rows).split())


@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
async def test_why_a_corpus_cannot_be_read_is_said_whole(
    runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: tuple[int, int]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "a-folder-whose-name-takes-more-than-a-line-of-the-narrow-screen"
    folder.mkdir()
    with pytest.raises(ValueError) as refusal:
        find_corpus(folder.name)
    app = make_app(make_workbench(runs_dir), corpus=folder.name)
    async with app.run_test(size=size, notifications=True) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: bool(screen.facts.error))
        # Behind the name, which is broken into lines.
        last = " ".join(str(refusal.value).split()[-4:])
        await until(lambda: last in drawn(screen))
        assert screen.query_one("#preflight").has_class("-problem")
        assert "The corpus cannot be read" in drawn(screen)
        await pilot.press("s")
        await until(lambda: bool(app._notifications))
        assert [one.message for one in app._notifications] == [screen.facts.error]
        assert not runs_dir.exists()


async def test_a_path_that_is_wrong_is_said_whole(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete)
        path = screen.query_one(PathInput)
        path.value = "talc.txt"
        screen.set_focus(path)
        await pilot.press("enter")
        with pytest.raises(ValueError) as refusal:
            find_corpus("talc.txt")
        said = " ".join(str(refusal.value).split()[-4:])
        await until(lambda: said in drawn(screen))
        # More is found out about the chosen one meanwhile.
        screen.query_one(CorpusPicker).show_facts(replace(screen.facts, characters=1234))
        await pilot.pause()
        assert said in drawn(screen)
        await pilot.press("backspace")
        await until(lambda: "1,234 characters" in drawn(screen))
