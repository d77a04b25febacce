"""Makes the pictures of the README and of docs/: a real run on a built-in corpus, driven by keys.

python -m tools.screenshots [--seconds S] [--only {one,two}]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs

FOLDER = Path(__file__).parent.parent / "docs"
SIZES = ((120, 40), (80, 24))


async def until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait until `condition` holds; end the program after `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise SystemExit("the workbench did not get there in time")
        await asyncio.sleep(0.05)


async def shoot(pilot: Any, name: str) -> None:
    """Save the screen in front, in both sizes."""
    for width, height in SIZES:
        await pilot.resize_terminal(width, height)
        await asyncio.sleep(0.6)
        svg = pilot.app.export_screenshot(title="megatron-tui")
        (FOLDER / f"{name}-{width}x{height}.svg").write_text(svg, encoding="utf-8")
    await pilot.resize_terminal(*SIZES[0])
    await asyncio.sleep(0.3)


async def tour(seconds: float) -> None:
    """Go through the screens as a person would."""
    from megatron_tui.app import make_app
    from megatron_tui.generation.duel import DuelScreen
    from megatron_tui.generation.surprise import SurpriseScreen
    from megatron_tui.setup.screen import SetupScreen
    from megatron_tui.ui.pick import Pick

    def fought(screen: DuelScreen) -> bool:
        return screen.feed is not None and not screen.feed.busy and screen.diverged_at is not None

    app = make_app()
    async with app.run_test(size=SIZES[0]) as pilot:
        bench = app.workbench
        await until(lambda: bench.torch_loader.state == "ready", 60)
        await asyncio.sleep(3)
        await shoot(pilot, "setup")
        setup = app.screen
        assert isinstance(setup, SetupScreen)
        changes = {"max_seconds": seconds, "evaluate_every": 50, "checkpoint_every": 100}
        setup.plan.change(setup.draft.with_values({f"training.{k}": v for k, v in changes.items()}))
        await pilot.press("ctrl+r")
        await until(lambda: bench.training.training is not None, 30)
        run = bench.training.training
        assert run is not None
        await until(lambda: run.state.progress > 0.7, 4 * seconds)
        await pilot.press("f3")
        await shoot(pilot, "training")
        await until(lambda: bench.training.training is None, 4 * seconds)
        await pilot.press("f4")
        await until(lambda: bench.generation.status.phase == "ready", 60)
        await pilot.press(*"The ", "enter")
        await until(lambda: bench.generation.status.phase == "done", 120)
        await shoot(pilot, "generation")
        await pilot.press("escape", "H")
        await until(lambda: isinstance(app.screen, SurpriseScreen) and bool(app.screen.scores), 60)
        await pilot.press(*["l"] * 30)
        await shoot(pilot, "surprise")
        await pilot.press("escape", "V")
        await until(lambda: isinstance(app.screen, Pick), 10)
        await pilot.press("end", "enter")
        await until(lambda: isinstance(app.screen, DuelScreen) and fought(app.screen), 120)
        await shoot(pilot, "duel")
        await pilot.press("escape")
        await pilot.press("f5")
        await asyncio.sleep(1)
        await shoot(pilot, "runs")


async def two_devices(seconds: float) -> None:
    """Start a run on two processes as a person would, and take its picture."""
    from megatron_tui.app import make_app
    from megatron_tui.setup.screen import SetupScreen

    app = make_app()
    async with app.run_test(size=SIZES[0]) as pilot:
        bench = app.workbench
        await until(lambda: bench.torch_loader.state == "ready", 60)
        setup = app.screen
        assert isinstance(setup, SetupScreen)
        await until(lambda: setup.facts.complete, 60)
        changes = {"devices": 2, "max_seconds": seconds, "evaluate_every": 50}
        setup.plan.change(setup.draft.with_values({f"training.{k}": v for k, v in changes.items()}))
        await pilot.press("ctrl+r")
        await until(lambda: bench.training.launched is not None, 30)
        run = bench.training.launched
        assert run is not None
        try:
            # The first time the step is compiled.
            await until(lambda: run.state.progress > 0.7, 300 + 4 * seconds)
            await pilot.press("f3")
            await asyncio.sleep(1)
            svg = app.export_screenshot(title="megatron-tui")
            (FOLDER / "training-two-devices.svg").write_text(svg, encoding="utf-8")
        finally:
            run.command("stop")
            await until(lambda: bench.training.launched is None, 120)


def main() -> None:
    """Make every picture anew."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=100, help="about how long the run takes")
    parser.add_argument("--only", choices=("one", "two"), help="pictures of so many devices")
    options = parser.parse_args()
    FOLDER.mkdir(exist_ok=True)
    os.environ["TEXTUAL_ANIMATIONS"] = "none"
    # Every colour, whatever terminal this is started in.
    os.environ.update(COLORTERM="truecolor", TERM="xterm-256color")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.pop("MEGATRON_RUNS_DIR", None)
        # The pictures are nobody's own; what is compiled stays where it is.
        os.environ["XDG_CACHE_HOME"] = str(platformdirs.user_cache_path())
        os.environ["HOME"] = folder
        for kind in ("CONFIG", "DATA", "STATE"):
            os.environ.pop(f"XDG_{kind}_HOME", None)
        if options.only != "two":
            asyncio.run(tour(options.seconds))
        if options.only != "one":
            asyncio.run(two_devices(options.seconds))
    print(f"pictures in {FOLDER.name}/")


if __name__ == "__main__":
    main()
