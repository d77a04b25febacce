"""A text that was stopped goes on as if it had not been; weights are lent between two steps."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest
import torch

from megatron_model.config.fields import RunConfig, SamplingConfig, with_settings
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.events.schema import RunFinished, RunPaused, StepCompleted
from megatron_model.inference.sampler import generate_stream
from megatron_model.run.control import Control
from megatron_model.run.folder import RunFolder
from megatron_model.run.live_weights import WeightsRequest
from megatron_model.run.runner import run_training
from megatron_model.util.errors import RequestError
from tests.model.helpers import ARCHITECTURES, TEXT, make_trainer
from tests.model.model.test_models import model_with_opinions

TOKENIZER = CharTokenizer("\nabcdefghij")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("penalty", [1.0, 1.3])
@pytest.mark.parametrize("prompt", ["", "abc", "abcdefghij" * 3])
def test_a_text_goes_on_as_if_it_had_not_been_stopped(
    architecture: str, penalty: float, prompt: str
) -> None:
    model = model_with_opinions(architecture)
    sampling = SamplingConfig(max_new_tokens=90, seed=3, repetition_penalty=penalty)
    whole = "".join(generate_stream(model, TOKENIZER, prompt, sampling))
    for cut in (0, 1, 12, 13, 16, 17, 40, 89, 90):
        more = generate_stream(model, TOKENIZER, prompt, sampling, written=whole[:cut])
        assert whole[:cut] + "".join(more) == whole


def test_a_stop_text_may_begin_before_the_stop() -> None:
    model = model_with_opinions("classic")
    sampling = SamplingConfig(max_new_tokens=90, seed=3)
    whole = "".join(generate_stream(model, TOKENIZER, "a", sampling))
    wanted = msgspec.structs.replace(sampling, stop=whole[20:23])
    end = whole.index(whole[20:23]) + 3
    begun = whole[: end - 1]
    assert (
        begun + "".join(generate_stream(model, TOKENIZER, "a", wanted, written=begun))
        == (whole[:end])
    )


# Lending


def start(runs_dir: Path, config: RunConfig) -> RunFolder:
    return RunFolder.create(runs_dir, "lender", with_settings(config, {"training.steps": 40}))


def test_weights_are_lent_between_two_steps_and_training_cannot_reach_them(
    runs_dir: Path, config: RunConfig
) -> None:
    control, request = Control(), WeightsRequest()
    steps = []
    for event in run_training(start(runs_dir, config), control):
        if isinstance(event, StepCompleted):
            steps.append(event.step)
            if event.step == 5:
                control.ask_for_weights(request)
    assert steps[-1] == 40
    lent = request.wait(lambda: True)
    assert lent is not None
    assert lent.model.step == 5
    assert lent.seconds > 0
    loaded = lent.load()
    assert loaded.block_size == config.model.block_size
    text = "".join(loaded.stream("The ", SamplingConfig(max_new_tokens=20)))
    assert len(text) == 20


def test_lending_does_not_change_the_run(runs_dir: Path, config: RunConfig) -> None:
    finals = []
    for name, asks in (("alone", False), ("lender", True)):
        folder = RunFolder.create(runs_dir, name, config)
        control = Control()
        for event in run_training(folder, control):
            if asks and isinstance(event, StepCompleted):
                control.ask_for_weights(WeightsRequest())
        latest = folder.latest_checkpoint()
        assert latest is not None
        finals.append((latest.path / "model.safetensors").read_bytes()[-5000:])
    assert finals[0] == finals[1]


def test_a_paused_run_lends_too(runs_dir: Path, config: RunConfig) -> None:
    control, request = Control(), WeightsRequest()
    got: list[object] = []

    def borrow() -> None:
        got.append(request.wait(lambda: False))
        control.put("stop")

    for event in run_training(start(runs_dir, config), control):
        if isinstance(event, StepCompleted) and event.step == 3:
            control.put("pause")
        if isinstance(event, RunPaused):
            control.ask_for_weights(request)
            threading.Thread(target=borrow).start()
    assert isinstance(event, RunFinished)
    assert len(got) == 1
    assert got[0] is not None


def test_who_waits_for_a_run_that_is_gone_gets_nothing() -> None:
    assert WeightsRequest().wait(lambda: True, seconds=0.001) is None


def test_no_memory_for_a_copy_is_said_and_the_run_goes_on(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, request = make_trainer(config, TEXT), WeightsRequest()

    def full(*_: object, **__: object) -> torch.Tensor:
        raise MemoryError

    monkeypatch.setattr(torch.Tensor, "to", full)
    request.answer(trainer)
    with pytest.raises(RequestError, match="no memory"):
        request.wait(lambda: True)
