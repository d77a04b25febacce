"""The way from a worker thread to the screen: bounded, in order, nothing recorded lost silently."""

from __future__ import annotations

from megatron_model.events.schema import CheckpointSaved, Event, StepCompleted
from megatron_tui.services.feed import EventFeed, JobFeed


def step(number: int) -> Event:
    return StepCompleted(step=number, time=0.0, elapsed_seconds=0.0)


def saved(number: int) -> Event:
    return CheckpointSaved(step=number, time=0.0, path="x")


def test_progress_replaces_progress() -> None:
    feed = EventFeed()
    for event in (step(1), step(2), saved(2), step(3), step(4)):
        feed.put(event)
    assert feed.drain() == ([step(2), saved(2), step(4)], False)
    assert feed.drain() == ([], False)


def test_an_overflow_is_reported() -> None:
    feed = EventFeed(limit=3)
    for number in range(5):
        feed.put(saved(number))
    events, overflowed = feed.drain()
    assert overflowed
    assert [event.step for event in events] == [2, 3, 4]


def test_a_job_feed_is_bounded_and_ends_when_it_is_cancelled() -> None:
    feed: JobFeed[int] = JobFeed(limit=2)
    assert [feed.put(1), feed.put(2), feed.put(3)] == [True, True, False]
    assert feed.drain() == [1, 2]
    assert feed.put(4)
    feed.cancel()
    assert not feed.put(5)
    assert (feed.drain(), feed.count) == ([4], 3)
