"""The library as a program uses it, and the page that explains it: what stands there runs."""

from __future__ import annotations

import math
import re
import shutil
import threading
from pathlib import Path

import pytest
import torch

import megatron_model
from megatron_model import events
from megatron_model.config.fields import all_fields
from megatron_model.events.schema import RECORDED
from megatron_model.run.folder import MODEL_FILE, RunFolder
from megatron_model.util.errors import RequestError, RunFailedError
from tests.model.helpers import TEXT

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
TINY: dict[str, object] = {
    "preset": "smoke",
    "layers": 1,
    "embed_dim": 16,
    "heads": 2,
    "ff_dim": 32,
    "block_size": 16,
    "steps": 12,
    "batch_size": 4,
    "optimizer": "adamw",
    "log_every": 2,
    "evaluate_every": 6,
    "checkpoint_every": 5,
    "sample_length": 4,
    "device": "cpu",
    "compile": "off",
    "threads": 1,
}


def test_what_stands_on_the_page_runs(
    tmp_path: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tale.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "more.txt").write_text(TEXT[500:] + "«Fin»\n", encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) > 5
    names: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(PAGE), "exec"), names)


def test_every_public_name_is_explained_there() -> None:
    page = PAGE.read_text(encoding="utf-8")
    missing = [n for n in megatron_model.__all__ if n != "__version__" and f"`{n}" not in page]
    assert missing == []


def test_the_events_are_offered_and_the_names_of_settings_are_unique() -> None:
    assert all(getattr(events, kind.__name__) is kind for kind in RECORDED)
    fields = list(all_fields().values())
    assert len({field.name for field in fields}) == len(fields)


def test_a_run_trains_as_it_is_iterated_over(corpus: Path, runs_dir: Path) -> None:
    run = megatron_model.train(corpus, name="tale", **TINY)  # type: ignore[arg-type]
    assert not runs_dir.exists(), "nothing is written before it begins"
    assert "not begun" in repr(run)
    with pytest.raises(RequestError, match="has not begun"):
        _ = run.folder
    seen = list(run)
    assert isinstance(seen[-1], events.RunFinished)
    assert run.state.status == "finished" and run.state.step == 12
    assert run.state.best_val_loss == run.folder.state().best_val_loss
    assert list(run) == []
    assert [folder.name for folder in megatron_model.list_runs(runs_dir)] == ["tale"]
    again = megatron_model.train(corpus, name="tale", **TINY)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match='A run named "tale" exists'):
        again.finish()


def test_a_run_that_is_dropped_says_so(corpus: Path, runs_dir: Path) -> None:
    with pytest.warns(RuntimeWarning, match='"tale" was never trained') as warned:
        megatron_model.train(corpus, name="tale", **TINY)  # type: ignore[arg-type]
    assert [Path(warning.filename).name for warning in warned] == ["test_library.py"]


def test_a_run_stops_where_it_is_told_and_resumes(corpus: Path, runs_dir: Path) -> None:
    run = megatron_model.train(corpus, name="tale", **TINY)  # type: ignore[arg-type]
    for event in run:
        if isinstance(event, events.MetricsReported) and event.step == 4:
            run.stop()
    assert run.state.status == "stopped"
    assert run.state.step < 12
    more = megatron_model.resume("tale", steps=14)
    model = more.finish()
    assert (more.state.step, more.folder.read_config().training.steps) == (14, 14)
    assert model.step > 4


def test_a_text_is_kept_with_its_run(runs_dir: Path) -> None:
    run = megatron_model.train(TEXT, **TINY)  # type: ignore[arg-type]
    assert run.name == "text-smoke"
    run.finish()
    kept = Path(run.folder.read_config().data.corpus)
    assert kept == run.folder.path.absolute() / "corpus.txt"
    assert kept.read_text(encoding="utf-8") == TEXT
    assert megatron_model.resume(run.name, steps=14).finish().step > 0
    with pytest.raises(RequestError, match="half a character at 2"):
        megatron_model.train("a\n\ud800", **TINY)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="no file or folder"):
        megatron_model.train("one line", **TINY)  # type: ignore[arg-type]


def test_a_model_is_found_by_everything_that_names_it(finished_run: RunFolder) -> None:
    runs = finished_run.path.parent
    best = finished_run.best_checkpoint()
    assert best is not None
    named = [
        finished_run,
        finished_run.path,
        str(finished_run.path),
        best.path,
        best.path / MODEL_FILE,
    ]
    models = [megatron_model.load(one) for one in named]
    models.append(megatron_model.load(finished_run.name, runs_dir=runs))
    assert {model.step for model in models} == {best.step}
    with pytest.raises(RequestError, match="must be best or latest"):
        megatron_model.load(finished_run, which="newest")


def test_a_model_writes_and_measures(finished_run: RunFolder) -> None:
    model = megatron_model.load(finished_run)
    options: dict[str, float] = {"max_new_tokens": 20, "temperature": 0.5, "seed": 3}
    text = model.generate("The ", **options)
    assert text == "The " + "".join(model.stream("The ", **options))
    assert len(text) == 24
    with pytest.raises(RequestError, match="temperature is 11"):
        model.stream("The ", temperature=11)

    scores = model.score(TEXT[:40])
    assert "".join(score.character for score in scores) == TEXT[:40]
    assert all(score.log_probability < 0 for score in scores)
    # Within one block both predict the same characters from the same ones.
    short = TEXT[: model.config.model.block_size]
    tokens = torch.tensor([model.tokenizer.encode(short)])
    logs = model.network(tokens[:, :-1]).log_softmax(-1)
    expected = -float(logs.gather(-1, tokens[:, 1:, None]).mean())
    assert math.isclose(model.loss(short), expected, rel_tol=1e-5)
    with pytest.raises(RequestError, match="at least 2 characters"):
        model.loss("T")
    for measure in (model.loss, model.score):
        with pytest.raises(RequestError, match="The text has 1 character that the model never saw"):
            measure("The é")


def test_a_model_is_saved_to_a_file_of_its_own(finished_run: RunFolder, tmp_path: Path) -> None:
    model = megatron_model.load(finished_run)
    model.save(tmp_path / "tale.safetensors")
    again = megatron_model.load(tmp_path / "tale.safetensors")
    assert again.generate("The ", max_new_tokens=20) == model.generate("The ", max_new_tokens=20)
    assert (again.step, again.val_loss, again.config) == (model.step, model.val_loss, model.config)
    with pytest.raises(RequestError, match="must end in .safetensors"):
        model.save(tmp_path / "tale.bin")
    with pytest.raises(RequestError, match="Cannot write"):
        model.save(tmp_path / "nowhere" / "tale.safetensors")


def test_a_mistake_is_one_sentence_before_anything_is_written(corpus: Path, runs_dir: Path) -> None:
    for settings, words in (
        ({"layer": 3}, 'Unknown setting "layer". Did you mean "layers"?'),
        ({"steps": 2.5}, "training.steps must be a whole number"),
        ({"heads": 7}, "must be a multiple of model.heads"),
        ({"preset": "huge"}, 'Unknown preset "huge"'),
        ({"name": "../up"}, "cannot be a run name"),
    ):
        with pytest.raises(RequestError, match=re.escape(words)):
            megatron_model.train(corpus, **settings)  # type: ignore[arg-type]
    assert not runs_dir.exists()


def test_a_run_that_fails_raises_from_finish(corpus: Path, runs_dir: Path) -> None:
    long = {**TINY, "steps": 1_000_000}
    run = megatron_model.train(corpus, name="tale", **long)  # type: ignore[arg-type]
    for event in run:
        if isinstance(event, events.StepCompleted):
            break
    shutil.rmtree(run.folder.path)
    with pytest.raises(RunFailedError, match="was deleted while it trained"):
        run.finish()


def test_preflight_asks_as_train_does(corpus: Path, runs_dir: Path) -> None:
    cost = megatron_model.preflight(corpus, **TINY)  # type: ignore[arg-type]
    run = megatron_model.train(corpus, name="tale", **TINY)  # type: ignore[arg-type]
    started = next(event for event in run if isinstance(event, events.RunStarted))
    assert cost.parameters == started.parameters
    run.stop()
    list(run)


def test_another_thread_may_stop_a_run(corpus: Path, runs_dir: Path) -> None:
    long = {**TINY, "steps": 100_000}
    run = megatron_model.train(corpus, name="tale", **long)  # type: ignore[arg-type]
    next(run)
    thread = threading.Thread(target=run.stop)
    thread.start()
    thread.join()
    run.finish()
    assert run.state.status == "stopped"
