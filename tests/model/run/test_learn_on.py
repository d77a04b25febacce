"""Learning on: a run that begins with a model's weights knows what it knew, and resumes exactly."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch

from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.events.schema import (
    Event,
    MetricsReported,
    RunFinished,
    RunStarted,
    WeightsTakenOver,
    decode_event,
    encode_event,
)
from megatron_model.planning.compile_choice import STEP_LIBRARY
from megatron_model.run import fork
from megatron_model.run.checkpoint import LoadedModel, load_model
from megatron_model.run.folder import MODEL_FILE, RunFolder, find_model
from megatron_model.run.learn_on import widened
from megatron_model.run.request import Start, ask
from megatron_model.run.taken_recipe import RATE_FACTOR, gentler, name_of, recipe_of
from megatron_model.training.nonfinite import BAD_STEPS
from megatron_model.util.errors import RequestError
from tests.model.helpers import ARCHITECTURES, history, tiny_config, train, train_and
from tests.model.run.test_divergence import spoil


def tale(seed: int, words: str, lines: int) -> str:
    draw = random.Random(seed)
    return "".join(" ".join(draw.choices(words.split(), k=8)) + ".\n" for _ in range(lines))


WORDS = "the a old king queen wolf sea went came saw under over dark gold sang slept and"
NEAR = f"{WORDS} the a old king queen café"


@pytest.fixture
def near(tmp_path: Path) -> Path:
    """A text of nearly the same words, with a character more; it has no z and no digits."""
    path = tmp_path / "near.txt"
    path.write_text(tale(3, NEAR, 60), encoding="utf-8")
    return path


def trained(tmp_path: Path, config: RunConfig, name: str = "old") -> RunFolder:
    text = tmp_path / f"{name}.txt"
    text.write_text(tale(1, f"{WORDS} zoo 17", 120), encoding="utf-8")
    folder = RunFolder.create(
        tmp_path / "models", name, with_settings(config, {"data.corpus": str(text)})
    )
    train(folder)
    return folder


def start_of(folder: RunFolder) -> Start:
    path = find_model(str(folder.path), folder.path.parent)
    return Start(load_model(path, "cpu"), name_of(path))


def begun(
    near: Path, runs_dir: Path, start: Start | None, name: str, **changes: object
) -> RunFolder:
    asked = {f"training.{key}": value for key, value in changes.items()}
    return ask(str(near), preset=None, changes=asked, start=start).create(runs_dir, name)


def logits(model: LoadedModel, text: str, of: str) -> torch.Tensor:
    """The logits after `text` of the characters `of`."""
    tokens = torch.tensor([model.tokenizer.encode(text)])
    with torch.no_grad():
        return model.model(tokens)[..., model.tokenizer.encode(of)]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_the_model_knew_it_still_knows(
    architecture: str, tmp_path: Path, runs_dir: Path, near: Path
) -> None:
    old = trained(tmp_path, tiny_config({"model.architecture": architecture}))
    start = start_of(old)
    folder = begun(near, runs_dir, start, "new")
    shutil.rmtree(old.path)  # nothing of it is needed any more
    ours = load_model(folder.checkpoint_path(0) / MODEL_FILE, "cpu")
    assert set(ours.tokenizer.vocabulary) == set(start.model.tokenizer.vocabulary) | {"é"}
    known = start.model.tokenizer.vocabulary
    text = "the old zoo 17"
    assert torch.equal(logits(ours, text, known), logits(start.model, text, known))
    new = logits(ours, text, "é")
    assert new.isfinite().all()

    seen = train(folder)
    taken = [event for event in seen if isinstance(event, WeightsTakenOver)]
    assert [(e.step, e.model, e.model_step, e.new_characters) for e in taken] == [
        (0, "old", start.model.step, "é")
    ]
    assert taken[0].known_characters == len(known)
    assert taken[0].model_val_loss == start.model.val_loss
    started = next(event for event in seen if isinstance(event, RunStarted))
    assert started.vocabulary_size == len(known) + 1
    state = folder.state()
    assert state.taken_over is not None and state.taken_over.model == "old"
    assert any(line.text.startswith("weights of old at step") for line in state.log)
    assert folder.latest_checkpoint() is not None
    assert "z" in load_model(find_model("new", runs_dir), "cpu").tokenizer.vocabulary


def test_forty_steps_from_a_model_beat_forty_from_scratch(
    tmp_path: Path, runs_dir: Path, near: Path
) -> None:
    learner = tiny_config({"training.steps": 250, "training.evaluate_every": 250})
    start = start_of(trained(tmp_path, learner))
    short = {"steps": 40, "evaluate_every": 40, "threads": 1, "compile": "off"}
    gone_on = train(begun(near, runs_dir, start, "on", **short))
    scratch = RunFolder.create(
        runs_dir,
        "scratch",
        with_settings(
            learner,
            {"data.corpus": str(near), "training.steps": 40, "training.evaluate_every": 40},
        ),
    )
    losses = [history(events)["validation", 40] for events in (gone_on, train(scratch))]
    assert losses[0] < losses[1] - 0.2


@pytest.mark.parametrize(
    ("architecture", "compile"),
    [
        ("classic", "off"),
        ("modern", "off"),
        pytest.param(
            "modern",
            "on",
            marks=pytest.mark.skipif(bool(STEP_LIBRARY.obstacle()), reason="no C compiler"),
        ),
    ],
)
def test_a_run_that_was_interrupted_goes_on_exactly(
    architecture: str, compile: str, tmp_path: Path, runs_dir: Path, near: Path
) -> None:
    optimizer = "muon" if architecture == "modern" else "adamw"
    start = start_of(
        trained(
            tmp_path,
            tiny_config({"model.architecture": architecture, "training.optimizer": optimizer}),
        )
    )
    settings = {"threads": 1, "compile": compile, "precision": "float32"}
    whole = begun(near, runs_dir, start, "whole", **settings)
    parts = begun(near, runs_dir, start, "parts", **settings)
    expected = history(train(whole))

    def reports(event: Event) -> bool:
        return isinstance(event, MetricsReported) and event.step == 8

    seen = train_and(parts, reports, "abort")  # nothing is saved after the checkpoint of step 5
    assert [c.step for c in parts.checkpoints()][-1] < 8
    resumed = history(train(parts))
    assert resumed.items() <= expected.items()
    assert ("validation", 18) in resumed
    assert len([e for e in seen if isinstance(e, WeightsTakenOver)]) == 1


def test_a_fork_keeps_the_vocabulary(tmp_path: Path, runs_dir: Path, near: Path) -> None:
    folder = begun(near, runs_dir, start_of(trained(tmp_path, tiny_config())), "new")
    train(folder)
    checkpoint = fork.nearest_checkpoint(folder, 15)
    assert checkpoint is not None
    child = fork.fork_run(folder, checkpoint, "child", folder.read_config())
    seen = train(child)
    assert not [e for e in seen if isinstance(e, WeightsTakenOver)]
    assert history(seen)["validation", 18] == history(folder.read_events()[0])["validation", 18]


def test_weights_that_are_gone_are_not_drawn_instead(
    tmp_path: Path, runs_dir: Path, near: Path
) -> None:
    folder = begun(near, runs_dir, start_of(trained(tmp_path, tiny_config())), "new")
    shutil.rmtree(folder.checkpoint_path(0))
    with pytest.raises(RequestError, match="weights of old that this run was to begin with"):
        train(folder)


def test_the_shape_is_the_models_and_the_rates_are_gentler(near: Path, tmp_path: Path) -> None:
    old = trained(tmp_path, tiny_config({"training.learning_rate": 0.01}))
    start = start_of(old)
    asked = ask(str(near), start=start)
    assert asked.config.model == start.model.config.model
    assert asked.config.training.learning_rate == pytest.approx(0.01 * RATE_FACTOR)
    assert asked.config.training.device == "auto"
    assert asked.label == "from-old"
    chosen = {"training.learning_rate": "0.02", "model.dropout": "0.1"}
    config = ask(str(near), start=start, changes=chosen).config
    assert (config.training.learning_rate, config.model.dropout) == (0.02, 0.1)
    with pytest.raises(RequestError, match="model.layers is 2 in the model"):
        ask(str(near), start=start, changes={"model.layers": 3})
    with pytest.raises(RequestError, match="auto chooses a shape"):
        ask(str(near), start=start, preset="auto")
    smoke = ask(str(near), start=start, preset="cpu").config
    assert smoke.model == start.model.config.model
    assert smoke.training.batch_size == 12


def test_a_recipe_of_few_steps_has_a_shorter_warm_up() -> None:
    config = with_settings(recipe_of(tiny_config()), {"training.steps": 30})
    assert gentler(config).training.warmup_steps == 3
    assert gentler(config, ["training.warmup_steps"]).training.warmup_steps == 10


def test_new_rows_lie_among_the_old_ones() -> None:
    rows = torch.arange(12.0).reshape(4, 3)
    bias = torch.tensor([1.0, 2.0, 3.0, 6.0])
    weights = {"token_embedding.weight": rows, "head.bias": bias, "norm.weight": torch.ones(3)}
    wide = widened(weights, "abcd", "dxa", seed=1)
    assert torch.equal(wide["token_embedding.weight"][[0, 2]], rows[[3, 0]])
    mean, spread = rows.mean(0), rows.std(0)
    assert ((wide["token_embedding.weight"][1] - mean).abs() < spread).all()
    assert torch.equal(wide["head.bias"][[0, 2]], bias[[3, 0]])
    assert wide["norm.weight"] is weights["norm.weight"]


def test_an_event_with_nothing_but_its_step_is_read() -> None:
    line = b'{"event":"weights_taken_over","step":0,"time":1.0}\n'
    event = decode_event(line)
    assert isinstance(event, WeightsTakenOver)
    assert decode_event(encode_event(event)) == event


def test_a_run_that_diverges_before_its_first_checkpoint_keeps_what_it_learnt(
    tmp_path: Path, runs_dir: Path, near: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = start_of(trained(tmp_path, tiny_config()))
    rare = {"checkpoint_every": 1000, "evaluate_every": 1000, "threads": 1, "compile": "off"}
    folder = begun(near, runs_dir, start, "new", **rare)
    updates = spoil(monkeypatch, lambda number: 4 <= number < 4 + BAD_STEPS)
    seen = train(folder)
    assert [event.step for event in seen if isinstance(event, RunStarted)] == [0, 4 + BAD_STEPS]
    assert updates == sorted(set(updates)), "it does not go back to its beginning"
    assert len([event for event in seen if isinstance(event, WeightsTakenOver)]) == 1
    assert isinstance(seen[-1], RunFinished)
