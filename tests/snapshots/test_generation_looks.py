"""How the Generation screen and its views look: no clock, no path and no rounding of ours."""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from textual.pilot import Pilot
from textual.widgets import OptionList
from torch import nn

from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.run.checkpoint import LoadedModel, load_model
from megatron_model.run.folder import RunFolder
from megatron_tui.app import MegatronApp
from megatron_tui.generation.attention import AttentionScreen
from megatron_tui.generation.job_screen import JobScreen
from megatron_tui.generation.screen import GenerationScreen
from megatron_tui.ui.heat_view import HeatView
from megatron_tui.ui.panel import Panel
from tests.model.helpers import TEXT
from tests.snapshots.test_snapshots import Compare
from tests.tui.conftest import _utc as _utc  # the fixture counts here too
from tests.tui.conftest import make_app, make_workbench, until

SIZES = [(80, 24), (120, 40)]
WROTE = (
    " sang old under the\ndark sea. Went wolf came and the queen slept over.\n"
    "Gold wolf saw a king\n"
)


class Bigrams(nn.Module):
    """Knows what follows each character in a text; the doubt makes it know that less well."""

    def __init__(self, tokenizer: CharTokenizer, text: str, doubt: float) -> None:
        super().__init__()
        self.vocab_size, self.block_size = tokenizer.vocab_size, 64
        counts = torch.full((self.vocab_size, self.vocab_size), doubt)
        tokens = tokenizer.encode(text)
        for before, after in itertools.pairwise(tokens):
            counts[before, after] += 1
        self.logits = nn.Parameter(counts.log())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[tokens]


def bigrams(path: Path) -> LoadedModel:
    """Return a model that can be told by heart, in place of the one in the file."""
    loaded = load_model(path)
    doubt = 0.02 if "18" in path.parent.name else 0.2
    model = Bigrams(loaded.tokenizer, TEXT, doubt)
    return dataclasses.replace(loaded, model=model)


@pytest.fixture
def known(tmp_path: Path, finished_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> MegatronApp:
    """The app on models whose figures are the same everywhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run.path, Path("runs") / "tale-tiny")
    return make_app(make_workbench(Path("runs"), load_model=bigrams))


@pytest.fixture
def app(tmp_path: Path, finished_run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> MegatronApp:
    """The app on a small real run in the relative folder `runs`."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run.path, Path("runs") / "tale-tiny")
    return make_app(make_workbench(Path("runs")))


def pressed(*keys: str, typed: str = "The king") -> Callable[[Pilot[Any]], Any]:
    """Return what to do before the picture; what a model wrote is put there, and no speed."""

    async def run_before(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, MegatronApp)
        await pilot.press("f4")
        await until(lambda: isinstance(app.screen, GenerationScreen) and app.screen.is_mounted)
        await until(lambda: app.workbench.generation.status.phase == "ready")
        screen = app.screen
        assert isinstance(screen, GenerationScreen)
        names = {" ": "space"}
        await pilot.press(*(names.get(one, one) for one in typed))
        await pilot.press("escape", "r")
        await until(lambda: app.workbench.generation.status.phase == "done" and not screen.busy)
        screen.catch_up()
        assert screen.session.text is not None
        # Whatever the model wrote: another processor may round otherwise.
        screen.session.text._pieces = [WROTE]
        screen.session.text.length = len(WROTE)
        screen.take_text(screen.session.text)
        for key in keys:
            await pilot.press(key)
            await settled(pilot)
        await settled(pilot)

    return run_before


async def settled(pilot: Pilot[Any]) -> None:
    """Wait until the view in front has everything, and hide how fast it came."""
    app = pilot.app
    assert isinstance(app, MegatronApp)
    view = app.screen
    if isinstance(view, JobScreen):
        await until(lambda: view.feed is not None and not view.feed.busy)
        view.poll()
        if isinstance(view, AttentionScreen):
            await until(lambda: view._answered == view.query_one(HeatView).cursor)
    app.screen_stack[0].query_one("#output", Panel).set_subtitle("done, 87 characters")
    await pilot.pause()


@pytest.mark.parametrize("size", SIZES)
def test_written(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    assert snap_compare(app, terminal_size=size, run_before=pressed())


@pytest.mark.parametrize("size", SIZES)
def test_unknown(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    keys = ("i", "ctrl+d", "ctrl+d")
    assert snap_compare(app, terminal_size=size, run_before=pressed(*keys, "é", "#", typed="The"))


@pytest.mark.parametrize("size", SIZES)
def test_surprise(snap_compare: Compare, known: MegatronApp, size: tuple[int, int]) -> None:
    assert snap_compare(known, terminal_size=size, run_before=pressed("H", "j", "l", "l"))


@pytest.mark.parametrize("size", SIZES)
def test_attention(snap_compare: Compare, app: MegatronApp, size: tuple[int, int]) -> None:
    keys = ("A", "k", "right_square_bracket", "greater_than_sign")
    assert snap_compare(app, terminal_size=size, run_before=pressed(*keys))


@pytest.mark.parametrize("size", SIZES)
def test_difference(snap_compare: Compare, known: MegatronApp, size: tuple[int, int]) -> None:
    async def run_before(pilot: Pilot[Any]) -> None:
        await pressed("V")(pilot)
        await until(lambda: bool(pilot.app.screen.query(OptionList)))
        await pilot.press("end", "enter")
        await until(lambda: isinstance(pilot.app.screen, JobScreen))
        await settled(pilot)
        for key in ("v", "j", "l"):
            await pilot.press(key)
            await settled(pilot)

    assert snap_compare(known, terminal_size=size, run_before=run_before)


@pytest.mark.parametrize("keys", [("W",), ("p",), ("ctrl+r",), ("w",)])
def test_dialogs(snap_compare: Compare, app: MegatronApp, keys: tuple[str, ...]) -> None:
    assert snap_compare(app, terminal_size=(80, 24), run_before=pressed(*keys))


def test_no_colour(
    snap_compare: Compare, known: MegatronApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    known = make_app(known.workbench)
    assert snap_compare(known, terminal_size=(80, 24), run_before=pressed("H", "j"))


def test_ascii(snap_compare: Compare, known: MegatronApp) -> None:
    known.draw_in_ascii()
    assert snap_compare(known, terminal_size=(80, 24), run_before=pressed("H", "j"))


def test_light(snap_compare: Compare, known: MegatronApp) -> None:
    known.theme = "megatron-light"
    assert snap_compare(known, terminal_size=(120, 40), run_before=pressed("H", "j"))
