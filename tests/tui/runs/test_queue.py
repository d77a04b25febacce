"""The queue by keys: added on Setup; moved, held, tried again and removed on Runs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec import structs

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.queue import Queue
from megatron_model.run import lock
from megatron_tui.app import MegatronApp
from megatron_tui.runs.queue_panel import QueuePanel, QueueTable
from megatron_tui.services.past_speed import Pace, shape_of
from megatron_tui.services.queue import forecast
from megatron_tui.setup.screen import SetupScreen
from tests.tui.conftest import copy_recorded, make_app, make_workbench, until


@pytest.fixture
def queue(runs_dir: Path) -> Iterator[Queue]:
    """A queue with a keeper at work, which is this process: nothing is begun."""
    queue = Queue(runs_dir)
    with queue.locked():
        pass
    with lock.hold(queue.keeper_lock) as held:
        assert held
        yield queue


async def panel_of(app: MegatronApp) -> QueuePanel:
    app.switch_mode("runs")
    await until(lambda: bool(app.screen.query(QueuePanel)))
    return app.screen.query_one(QueuePanel)


def line(queue: Queue) -> list[int]:
    return [entry.id for entry in queue.entries() if entry.waits]


async def test_the_run_on_setup_is_queued_and_its_place_is_told(
    queue: Queue, corpus: Path, config: RunConfig
) -> None:
    queue.add(config, name="before")
    app = make_app(make_workbench(queue.runs_dir), corpus=str(corpus))
    async with app.run_test(size=(120, 40)) as pilot:
        screen = app.screen_stack[0]
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete and screen.plan.device is not None)
        await pilot.press("A")
        await until(lambda: len(queue.entries()) == 2)
        added = queue.entry(2)
        assert added.config == screen.plan.config
        assert added.name == screen.plan.default_name()
        await until(lambda: any("in the queue" in n.message for n in app._notifications))
        (notice,) = [n.message for n in app._notifications if "in the queue" in n.message]
        assert "it begins after 1 other run" in notice
        assert app.workbench.training.training is None


async def test_a_run_that_cannot_be_is_not_queued(queue: Queue) -> None:
    app = make_app(make_workbench(queue.runs_dir), corpus="/nowhere/at-all.txt")
    async with app.run_test(size=(120, 40)) as pilot:
        screen = app.screen_stack[0]
        assert isinstance(screen, SetupScreen)
        await until(lambda: bool(screen.facts.error))
        await pilot.press("A")
        await until(lambda: any("at-all.txt" in n.message for n in app._notifications))
    assert queue.entries() == []


async def test_entries_are_moved_held_tried_again_and_removed_by_keys(
    queue: Queue, config: RunConfig
) -> None:
    for number in range(1, 4):
        queue.add(config, name=f"night-{number}")
    queue.change(3, lambda each: structs.replace(each, state="failed", problem="No [b]room[/b]."))
    queue.file(9).write_text("{")
    app = make_app(make_workbench(queue.runs_dir))
    async with app.run_test(size=(120, 40)) as pilot:
        panel = await panel_of(app)
        table = panel.table
        await until(lambda: len(table.rows_shown) == 4)
        assert panel.has_class("-some"), "it is there although there is no run yet"
        assert panel.title == "queue: 2 waiting"
        table.focus()

        def cursor() -> int | None:
            return table.chosen.entry.id if table.chosen else None

        table.move_cursor(row=[row.entry.id for row in table.rows_shown].index(2))
        assert cursor() == 2
        await pilot.press("K")
        await until(lambda: line(queue) == [2, 1])
        await until(lambda: [r.entry.id for r in table.rows_shown if r.entry.waits] == [2, 1])
        assert cursor() == 2, "the cursor stays on its entry"
        await pilot.press("J")
        await until(lambda: line(queue) == [1, 2])
        await until(lambda: table.rows_shown[-1].entry.id == 2)
        await pilot.press("space")
        await until(lambda: queue.entry(2).state == "held")
        await until(lambda: table.rows_shown[-1].entry.state == "held")
        await pilot.press("space")
        await until(lambda: queue.entry(2).state == "waiting")
        await until(lambda: table.rows_shown[-1].entry.state == "waiting")
        assert not table.check_action("retry", ())
        table.move_cursor(row=[row.entry.id for row in table.rows_shown].index(3))
        await until(lambda: cursor() == 3)
        assert "[b]room[/b]" in str(table.get_row("3")[-1]), "what comes from outside is no markup"
        await pilot.press("r")
        await until(lambda: line(queue) == [1, 2, 3])
        await until(lambda: table.rows_shown[-1].entry.id == 3)
        await pilot.press("D")
        await until(lambda: line(queue) == [1, 2])
        table.move_cursor(row=0)
        await until(lambda: cursor() == 9)
        await pilot.press("D")
        await until(lambda: not queue.file(9).exists())


@pytest.mark.parametrize("size", [(80, 24), (120, 40)])
async def test_the_queue_leaves_room_for_the_runs(
    queue: Queue, config: RunConfig, size: tuple[int, int]
) -> None:
    copy_recorded(queue.runs_dir)
    for number in range(30):
        queue.add(config, name=f"night-{number}")
    queue.change(1, lambda each: structs.replace(each, state="failed", problem="Why not? " * 20))
    app = make_app(make_workbench(queue.runs_dir))
    async with app.run_test(size=size) as pilot:
        panel = await panel_of(app)
        await until(lambda: len(panel.table.rows_shown) == 30)
        await pilot.pause()
        assert panel.size.height <= 8
        assert app.screen.query_one("RunsTable").size.height >= 4
        assert not app.screen.query_one(QueueTable).show_horizontal_scrollbar
        assert panel.table.chosen is not None
        assert panel.table.chosen.entry.id == 1
        assert str(panel.border_subtitle).startswith("Why not? ")


def test_when_each_begins_and_ends(queue: Queue, config: RunConfig) -> None:
    timed = with_settings(config, {"training.max_seconds": 60})
    steps = with_settings(config, {"training.steps": 100})
    elsewhere = with_settings(timed, {"training.device": "cuda"})
    unknown = with_settings(config, {"model.layers": 1})
    configs = (timed, timed, steps, elsewhere, unknown, timed)
    entries = [queue.add(each) for each in configs]
    entries[0] = structs.replace(entries[0], state="running")
    paces = {shape_of(steps): Pace(0.5, None, None)}
    now = time.time()
    rows = forecast(entries, {1: 20.0}, paces, now)
    after = [
        tuple(None if moment is None else round(moment - now) for moment in (row.begins, row.ends))
        for row in rows
    ]
    assert after == [(None, 20), (20, 80), (80, 130), (0, 60), (130, None), (None, None)]
