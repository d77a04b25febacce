"""Events in words: one sentence each, in the two forms that a log and a line on stderr have."""

from __future__ import annotations

import pytest

from megatron_model.events import schema as events
from megatron_model.events.describe import describe, line_of, resume_hint
from megatron_model.events.schema import Event
from megatron_model.events.state import RunState

STARTED = events.RunStarted(
    step=0,
    name="a",
    corpus="tale.txt",
    characters=5000,
    vocabulary_size=65,
    parameters=12_345,
    steps=100,
    device="cpu",
)


@pytest.mark.parametrize(
    ("event", "entry", "line"),
    [
        (
            STARTED,
            "training began on cpu, 12,345 parameters",
            "training began on cpu, 12,345 parameters, float32, 5,000 characters (65 different)",
        ),
        (
            events.Evaluated(
                step=1000, val_loss=1.5, bits_per_character=2.1640, elapsed_seconds=1.0
            ),
            "validation 1.5000 at step 1,000",
            "step   1,000  validation 1.5000 (2.1640 bits per character)",
        ),
        (
            events.CheckpointSaved(step=20, path="checkpoints/step-00000020"),
            "checkpoint saved at step 20",
            "step      20  checkpoint saved: checkpoints/step-00000020",
        ),
        (
            events.SettingChanged(step=20, key="training.steps", old=1000, new=2000),
            "steps changed from 1,000 to 2,000 at step 20",
            "step      20  steps changed from 1,000 to 2,000",
        ),
        (events.RunPaused(step=20), "paused at step 20", "step      20  paused"),
        (
            events.RunHandedOver(step=20, elapsed_seconds=1.0),
            "handed over to another process at step 20",
            "step      20  handed over to another process",
        ),
        (
            events.RunFinished(step=100, reason="completed", elapsed_seconds=3.14),
            "finished: all 100 steps are done",
            "finished: all 100 steps are done (3.1 s)",
        ),
        (
            events.RunFinished(step=50, reason="budget", elapsed_seconds=3.14),
            "finished: the time budget is used up at step 50",
            "finished: the time budget is used up at step 50 (3.1 s)",
        ),
        (
            events.RunFailed(step=50, error="Cannot write."),
            "Cannot write.",
            "failed at step 50: Cannot write.",
        ),
    ],
)
def test_an_event_is_the_same_sentence_on_screen_and_on_stderr(
    event: Event, entry: str, line: str
) -> None:
    state = RunState()
    state.apply(event)
    assert [each.text for each in state.log] == [entry]
    assert line_of(event) == line
    words = describe(event)
    assert words is not None and words.text in entry and words.text in line


def test_what_is_no_news_has_no_words() -> None:
    for event in (
        events.StepCompleted(step=1, elapsed_seconds=1.0),
        events.WorkProgress(step=1, share=0.5),
    ):
        assert describe(event) is None
        assert line_of(event) == ""


def test_a_stopped_run_says_from_where_it_can_be_resumed() -> None:
    stopped = events.RunFinished(step=50, reason="stopped", elapsed_seconds=1.0)
    assert resume_hint(stopped, None) == "; nothing was saved, so it can only start over"
    assert resume_hint(stopped, 50) == "; it can be resumed"
    assert resume_hint(stopped, 1040) == "; it can be resumed from step 1,040"
    done = events.RunFinished(step=50, reason="completed", elapsed_seconds=1.0)
    assert resume_hint(done, 50) == ""
