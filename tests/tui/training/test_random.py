"""Thousands of random keys and resizes on the Training screen while a recorded run streams in."""

from __future__ import annotations

import asyncio
import math
import random
from pathlib import Path

import psutil
from textual.events import Key, Resize
from textual.geometry import Size

from megatron_model.config.fields import RunConfig
from megatron_model.events.schema import (
    DeviceSampled,
    Evaluated,
    Event,
    PhaseChanged,
    SampleGenerated,
)
from megatron_model.run.folder import RunFolder
from megatron_tui.training.screen import TrainingScreen
from tests.tui.conftest import NOW, GatedTrainer, copy_recorded, make_app, make_workbench, until
from tests.tui.training.helpers import report, started

OFTEN = [*"xYLP_+-0hl[]{}mMn", "left", "right", "home", "end", "tab", "shift+tab", "down", "space"]
SELDOM = [*"ceCgF12345", "enter", "escape", "up", "question_mark", "f3"]
"""Keys that lay out the screen anew or open a dialog, which takes long."""
CHARACTERS = {"+": "plus", "-": "minus", "[": "left_square_bracket", "]": "right_square_bracket",
              "{": "left_curly_bracket", "}": "right_curly_bracket", "_": "underscore"}  # fmt: skip
SIZES = [(80, 24), (100, 30), (120, 40), (200, 60), (81, 25), (60, 15), (149, 31)]

PRESSES = 2000
BURST = 25
MEMORY = 40 << 20


def stream(draw: random.Random) -> list[Event]:
    """Return a run with everything in it that could hurt a chart."""
    events: list[Event] = [started(steps=100_000)]
    step = 0
    while len(events) < 4000:
        step += draw.randint(1, 40)
        loss = draw.choice([2.0, 2.1, 1e-9, 1e10, -3.0, math.nan, math.inf, draw.random() * 4])
        events.append(report(step, loss, gradient_norm=draw.choice([0.5, math.nan, 1e30])))
        if draw.random() < 0.1:
            events.append(
                Evaluated(step=step, val_loss=loss, bits_per_character=1.0, elapsed_seconds=step)
            )
            text = "a\x1b[31m[/x]\u202e" * draw.randint(0, 60)
            events.append(SampleGenerated(step=step, time=NOW, prompt="\n", text=text))
            events.append(PhaseChanged(step=step, time=NOW, phase="training"))
        if draw.random() < 0.2:
            events.append(
                DeviceSampled(
                    step=step, kind="gpu", name="[x] \x9b", used=draw.getrandbits(40),
                    peak=1 << 40, total=1 << 41, utilization=draw.random(), temperature=50.0,
                )
            )  # fmt: skip
    return events


async def test_random_keys_and_resizes_while_a_run_streams_in(runs_dir: Path) -> None:
    draw = random.Random(20_261)
    events = stream(draw)
    trainer = GatedTrainer(events)
    copy_recorded(runs_dir, "other")
    app = make_app(make_workbench(runs_dir, trainer))
    async with app.run_test(size=(120, 40)):
        app._train(RunFolder.create(runs_dir, "a", RunConfig()))
        await until(lambda: isinstance(app.screen, TrainingScreen))
        seen: set[str] = set()
        pressed = 0
        base = 0
        while pressed < PRESSES:
            trainer.release(25)
            for _ in range(BURST):
                key = draw.choice(OFTEN if draw.random() < 0.85 else SELDOM)
                name = CHARACTERS.get(key, key)
                app.post_message(Key(name, key if len(key) == 1 else None))
                pressed += 1
            if draw.random() < 0.2:
                size = Size(*draw.choice(SIZES))
                app.post_message(Resize(size, size))
            # Typed ahead, but no further than one burst, each key of which has been let through.
            while (
                app.message_queue_size
                or app.screen.message_queue_size
                or app.keyboard._task is not None
            ):
                await asyncio.sleep(0)
            seen.add(type(app.screen).__name__)
            if base == 0 and pressed >= 400:
                base = psutil.Process().memory_info().rss
        grown = psutil.Process().memory_info().rss - base
        assert grown < MEMORY
        run = app.workbench.training.training
        assert run is not None and len(run.state.train_loss) > 200
        assert pressed + len(run.state.log) + len(run.state.train_loss) > 1000
        assert {"TrainingScreen", "TooSmall", "CompareScreen", "AskValues"} <= seen
        app.workbench.training.stop()
        trainer.release(len(events))
        await until(app.workbench.training.idle.is_set)
