"""The way from a worker thread to the screen: bounded, in order, nothing recorded lost silently."""

from __future__ import annotations

from megatron_model.events import CheckpointSaved, Event, StepTaken
from megatron_tui.hub import EventHub, TextHub


def step(number: int) -> Event:
    return StepTaken(step=number, time=0.0, elapsed_seconds=0.0)


def saved(number: int) -> Event:
    return CheckpointSaved(step=number, time=0.0, path="x")


def test_progress_replaces_progress() -> None:
    hub = EventHub()
    for event in (step(1), step(2), saved(2), step(3), step(4)):
        hub.put(event)
    assert hub.drain() == ([step(2), saved(2), step(4)], False)
    assert hub.drain() == ([], False)


def test_an_overflow_is_said() -> None:
    hub = EventHub(limit=3)
    for number in range(5):
        hub.put(saved(number))
    events, overflowed = hub.drain()
    assert overflowed
    assert [event.step for event in events] == [2, 3, 4]


def test_text_is_bounded() -> None:
    hub = TextHub(limit=5)
    assert hub.put("abc")
    assert hub.put("de")
    assert not hub.put("f")
    assert hub.drain() == "abcde"
    assert hub.put("f")
