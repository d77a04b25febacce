"""How Setup looks in its states: red, differing, searching, X-ray, its dialogs, and in ASCII."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from megatron_model.device import DeviceInfo
from megatron_tui.app import MegatronApp
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.setup.xray import XrayScreen
from megatron_tui.ui.pick import Pick
from tests.tui.conftest import _utc as _utc  # the fixture counts here too
from tests.tui.conftest import copy_recorded, make_app, make_workbench, tale, until

__all__ = ["tale"]

NARROW, LOW, USUAL, LARGE = (80, 24), (100, 30), (120, 40), (200, 60)
SMALL = DeviceInfo("cpu", "2 CPU cores", "RAM", 1 << 30, 60 << 20, False, 1.5e11)
Compare = Callable[..., bool]


@pytest.fixture
def app(tale: str) -> MegatronApp:
    copy_recorded(Path("runs"))
    return make_app(make_workbench(Path("runs")), corpus=tale)


def after(
    *keys: str, ready: Callable[[MegatronApp], bool] = lambda app: True
) -> Callable[[Pilot[Any]], Any]:
    """Return what to do before the picture: wait for the corpus, press keys, wait for `ready`."""

    async def run_before(pilot: Pilot[Any]) -> None:
        app = pilot.app
        assert isinstance(app, MegatronApp)
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete and screen.plan.device is not None)
        await until(lambda: len(screen.query_one("#corpora")._options) == 4)  # type: ignore[attr-defined]
        await pilot.press(*keys)
        await until(lambda: ready(app))
        await pilot.pause()

    return run_before


@pytest.mark.parametrize("size", [NARROW, LOW, USUAL, LARGE])
def test_setup_at_every_size(snap_compare: Compare, app: MegatronApp, size: Any) -> None:
    assert snap_compare(app, terminal_size=size, run_before=after())


@pytest.mark.parametrize("size", [NARROW, USUAL])
def test_red(snap_compare: Compare, tale: str, size: Any) -> None:
    copy_recorded(Path("runs"))
    app = make_app(make_workbench(Path("runs"), device=SMALL), corpus=tale)
    keys = ("slash", *"embed", "enter", *"1024", "enter")
    red = after(*keys, ready=lambda app: bool(app.screen.query(".-problem")))
    assert snap_compare(app, terminal_size=size, run_before=red)


@pytest.mark.parametrize("size", [NARROW, USUAL])
def test_what_differs(snap_compare: Compare, app: MegatronApp, size: Any) -> None:
    keys = ("slash", *"layers", "enter", "9", "enter", "slash", *"heads", "enter", "8", "enter")
    assert snap_compare(app, terminal_size=size, run_before=after(*keys, "equals_sign"))


def test_an_error_beside_its_field(snap_compare: Compare, app: MegatronApp) -> None:
    keys = ("slash", *"heads", "enter", "3")
    assert snap_compare(app, terminal_size=USUAL, run_before=after(*keys))


def test_finding(snap_compare: Compare, app: MegatronApp) -> None:
    assert snap_compare(app, terminal_size=NARROW, run_before=after("slash", *"rate"))


@pytest.mark.parametrize("size", [NARROW, USUAL])
def test_xray(snap_compare: Compare, app: MegatronApp, size: Any) -> None:
    looked = after("X", ready=lambda app: _looked_through(app.screen))
    assert snap_compare(app, terminal_size=size, run_before=looked)


def _looked_through(screen: object) -> bool:
    return isinstance(screen, XrayScreen) and screen.facts.text is not None


def test_presets(snap_compare: Compare, app: MegatronApp) -> None:
    listed = after("p", ready=lambda app: isinstance(app.screen, Pick))
    assert snap_compare(app, terminal_size=NARROW, run_before=listed)


def test_preview_on_a_narrow_terminal(snap_compare: Compare, app: MegatronApp) -> None:
    assert snap_compare(app, terminal_size=NARROW, run_before=after("v"))


def test_help_of_the_settings(snap_compare: Compare, app: MegatronApp) -> None:
    asked = after("slash", "enter", "question_mark", ready=lambda app: app.screen.is_modal)
    assert snap_compare(app, terminal_size=USUAL, run_before=asked)


def test_light_theme(snap_compare: Compare, app: MegatronApp) -> None:
    app.theme = "megatron-light"
    assert snap_compare(app, terminal_size=USUAL, run_before=after())
