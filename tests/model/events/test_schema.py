"""The record of a run: every event as one JSON line and back."""

from __future__ import annotations

import json
import math
import time
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_model.events import schema as events
from megatron_model.events.schema import (
    RECORDED,
    CheckpointSaved,
    DeviceSampled,
    Evaluated,
    Event,
    MetricsReported,
    PhaseChanged,
    RunFailed,
    RunFinished,
    RunPaused,
    RunResumed,
    RunStarted,
    SampleGenerated,
    decode_event,
    encode_event,
)

STARTED = RunStarted(
    step=0,
    name="tale",
    corpus="/texts/tale.txt",
    characters=10**12,
    vocabulary_size=60,
    parameters=10**9,
    steps=100,
    device="cpu",
)
REPORT = MetricsReported(
    step=3,
    train_loss=1.5,
    learning_rate=1e-3,
    gradient_norm=0.3,
    tokens_per_second=1e6,
    elapsed_seconds=2.5,
)
EXAMPLES: list[Event] = [
    STARTED,
    PhaseChanged(step=0, phase="training"),
    REPORT,
    Evaluated(step=3, val_loss=1.4, bits_per_character=2.0, elapsed_seconds=2.6),
    SampleGenerated(step=3, prompt="The ", text="\x1b[31m\n\u2028\u202e雪\U0001f600\x00"),
    CheckpointSaved(step=3, path="checkpoints/step-00000003", val_loss=1.4),
    DeviceSampled(step=3, kind="ram", name="this process", used=1, peak=2, total=3),
    events.RanksMeasured(
        step=3,
        ranks=(
            events.RankMeasured(
                rank=0, host="box", kind="gpu", name="A", used=1, peak=2, total=3, seconds=0.1
            ),
        ),
    ),
    events.WeightsTakenOver(
        step=0, model="tale", model_step=500, known_characters=60, new_characters="é\u2028"
    ),
    events.SettingChanged(step=3, key="training.steps", old=10, new=20),
    RunPaused(step=3),
    RunResumed(step=3),
    events.Alert(step=3, text="The disk is full."),
    events.RunHandedOver(step=3, elapsed_seconds=3.0),
    RunFinished(step=4, reason="budget", elapsed_seconds=9.0),
    RunFailed(step=4, error="The disk is full."),
    *([events.Notice(step=4, text="a choice")] if hasattr(events, "Notice") else []),
]


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_every_event_survives_its_line(event: Event) -> None:
    line = encode_event(event)
    assert decode_event(line) == event
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line.decode().splitlines()) in (1, 2)  # U+2028 ends a line for Python's str only


def test_every_recorded_kind_has_an_example_here() -> None:
    assert {type(event) for event in EXAMPLES} == set(RECORDED)


# The contract that other programs rely on


CONTRACT = {
    "run_started": set(),
    "step_finished": {
        "train_loss",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "elapsed_seconds",
    },
    "evaluated": {"val_loss", "bits_per_character", "elapsed_seconds"},
    "sample_generated": {"prompt", "text"},
    "checkpoint_saved": {"path"},
    "device_sampled": set(),
    "run_paused": set(),
    "run_resumed": set(),
    "run_finished": {"reason"},
    "run_failed": {"error"},
}


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_a_line_has_the_names_of_the_contract(event: Event) -> None:
    record = json.loads(encode_event(event))
    assert {"event", "time", "step", *CONTRACT.get(record["event"], set())} <= record.keys()
    assert record["step"] == event.step
    assert record["time"] == event.time


def test_every_kind_of_the_contract_exists() -> None:
    assert {json.loads(encode_event(event))["event"] for event in EXAMPLES} >= CONTRACT.keys()


def test_an_event_is_stamped_when_it_happens() -> None:
    before = time.time()
    assert before <= RunPaused(step=0).time <= time.time()


def test_an_event_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        STARTED.step = 5  # type: ignore[misc]


# What is not an event


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"null",
        b"[]",
        b"{}",
        b'{"event":"run_paused"}',
        b'{"event":"run_paused","step":"many","time":1.0}',
        b'{"event":"moon_landing","step":1,"time":1.0}',
        b'{"event":"step_taken","step":1,"time":1.0,"elapsed_seconds":1.0}',
        b'{"event":"evaluated","step":1,"time":1.0,"val_loss":null}',
        b'{"event":"run_failed","step":1,"time":1.0,"error":"\xff"}',
        b"\x00\x00\x00\x00",
        b'{"event":"run_paused","step":1,"time":1.0}{"event"',
    ],
)
def test_what_is_no_event_reads_as_none(line: bytes) -> None:
    assert decode_event(line) is None


@pytest.mark.parametrize("event", EXAMPLES, ids=lambda event: type(event).__name__)
def test_a_torn_line_reads_as_none(event: Event) -> None:
    line = encode_event(event).rstrip(b"\n")
    for end in range(0, len(line), 5):
        assert decode_event(line[:end]) is None


def test_a_field_of_a_later_version_is_ignored() -> None:
    assert decode_event(b'{"event":"run_paused","step":1,"time":2.0,"why":"lunch"}') == RunPaused(
        step=1, time=2.0
    )


def test_a_loss_that_is_no_number_does_not_come_back_as_one() -> None:
    assert (
        decode_event(
            encode_event(
                Evaluated(
                    step=1, val_loss=math.nan, bits_per_character=math.nan, elapsed_seconds=0.0
                )
            )
        )
        is None
    )


# Any event at all


numbers = st.floats(allow_nan=False, allow_infinity=False)
steps = st.integers(0, 2**60)
texts = st.text(st.characters(exclude_categories=["Cs"]))
any_event = st.one_of(
    st.builds(
        MetricsReported,
        step=steps,
        time=numbers,
        train_loss=numbers,
        learning_rate=numbers,
        gradient_norm=numbers,
        tokens_per_second=numbers,
        elapsed_seconds=numbers,
    ),
    st.builds(SampleGenerated, step=steps, time=numbers, prompt=texts, text=texts),
    st.builds(RunFailed, step=steps, time=numbers, error=texts),
    st.builds(CheckpointSaved, step=steps, time=numbers, path=texts, val_loss=st.none() | numbers),
    st.builds(
        PhaseChanged,
        step=steps,
        time=numbers,
        phase=st.sampled_from(typing.get_args(events.Phase)),
    ),
)


@given(any_event)
def test_any_event_survives_its_line(event: Event) -> None:
    line = encode_event(event)
    assert line.find(b"\n") == len(line) - 1
    assert decode_event(line) == event


@given(st.binary())
def test_no_bytes_at_all_raise(line: bytes) -> None:
    decode_event(line)


def test_a_line_nested_without_end_is_damage() -> None:
    line = b'{"event":"noticed","step":1,"text":"x","more":' + b"[" * 5000
    assert decode_event(line) is None
