"""Whether a run's steps are compiled: one answer for whoever trains and whoever plans, and why."""

from __future__ import annotations

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch

from megatron_model.config.fields import with_settings
from megatron_model.device import DeviceInfo
from megatron_model.events.schema import Evaluated, Event, Notice, PhaseChanged, StepCompleted
from megatron_model.planning.compile_choice import (
    STEP_LIBRARY,
    begin_compiling,
    choose_beforehand,
    is_ready,
)
from megatron_model.training import learner
from megatron_model.training.fused.library import build_library
from megatron_model.util.library_store import install, place
from megatron_tui.setup.plan import SetupPlan
from tests.model.helpers import make_trainer, tiny_config

MODERN = tiny_config(
    {
        "model.architecture": "modern",
        "model.layers": 1,
        "training.optimizer": "muon",
        "training.gradient_clip": 0.0,
        "training.compile": "auto",
        "training.sample_length": 0,
    }
)
ON = {"training.compile": "on"}
CLASSIC = {"model.architecture": "classic", "training.optimizer": "adamw"}
LONG = {"training.steps": 10**8}
SLOW = DeviceInfo("cpu", "a slow CPU", "RAM", 8 << 30, 8 << 30, False, 1e9)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No library is there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / "cache" / "megatron" / "compiled"


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Something that is called like a compiler; it hangs."""
    path = tmp_path / "bin" / "cc"
    path.parent.mkdir()
    path.write_text("#!/bin/sh\nexec sleep 1000\n")
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{path.parent}:{os.environ['PATH']}")
    return path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")


def put_library() -> Path:
    """Put a file without any code where the kernels are expected."""
    folder = place().folder
    assert folder is not None
    (folder / "built").write_bytes(b"whole, but no library" * 100)
    install(folder / "built", folder / STEP_LIBRARY.name)
    return folder / STEP_LIBRARY.name


CASES: list[dict[str, object]] = [
    {},
    LONG,
    ON,
    {**ON, **LONG},
    {"training.compile": "off", **LONG},
    {"model.architecture": "classic", "training.optimizer": "adamw", **LONG},
    {"model.dropout": 0.1, **LONG},
    {"training.gradient_clip": 1.0, **LONG, **ON},
    {"training.optimizer": "adamw", **LONG},
    {"training.max_seconds": 2.0},
    {"training.max_seconds": 2.0, **ON},
    {"training.max_seconds": 3600.0},
    {"training.max_seconds": 3600.0, **ON},
]


@pytest.mark.parametrize("changes", CASES, ids=str)
@pytest.mark.parametrize("there", [False, True], ids=["nothing-compiled", "compiled"])
def test_trainer_and_card_have_one_answer(
    changes: dict[str, object], there: bool, compiler: Path, tmp_path: Path
) -> None:
    config = with_settings(MODERN, changes)
    trainer = make_trainer(config)
    vocabulary = trainer.tokenizer.vocab_size
    if there:
        put_library()
        trainer = make_trainer(config)
    about = learner.describe(trainer.device, trainer.dtype)
    assert choose_beforehand(config, vocabulary, about).compiles == trainer.compiled
    wanted = config.training.compile != "off" and config.model.architecture == "modern"
    short = 0 < config.training.max_seconds < 3
    assert trainer.compiled == (wanted and (there or not short))


def test_the_plan_of_setup_asks_the_same_question(
    compiler: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = SetupPlan(tmp_path, "cpu")
    assert not plan.compiles, "nothing is known of the device yet"
    plan.devices = {"auto": SLOW, "cpu": SLOW}
    assert plan.compiles
    monkeypatch.setenv("PATH", "/nowhere")
    assert not plan.compiles, "there is no compiler"


def begun(trainer: Any) -> list[Event]:
    """Train up to the first step; return what happened."""
    found = []
    for event in trainer.run():
        found.append(event)
        if isinstance(event, StepCompleted):
            break
    return found


def notices(events: list[Event]) -> list[str]:
    return [event.text for event in events if isinstance(event, Notice)]


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("changes", [ON, {}], ids=["asked-for", "by-itself"])
def test_a_compiler_that_is_missing_is_said_once(changes: dict[str, object]) -> None:
    trainer = make_trainer(with_settings(MODERN, changes))
    said = ["the steps are not compiled: there is no C compiler"]
    assert notices(begun(trainer)) == said
    assert notices(begun(trainer)) == [], "it was said"


@pytest.mark.usefixtures("no_compiler")
@pytest.mark.parametrize("changes", [{"training.compile": "off"}, CLASSIC])
def test_what_nobody_wants_is_not_missed(changes: dict[str, object]) -> None:
    assert notices(begun(make_trainer(with_settings(MODERN, changes)))) == []


def test_a_recipe_that_is_never_compiled_says_so_when_asked(compiler: Path) -> None:
    config = with_settings(MODERN, {**ON, **CLASSIC})
    assert "for the modern architecture" in notices(begun(make_trainer(config)))[0]


def test_a_short_budget_is_for_steps(compiler: Path) -> None:
    config = with_settings(MODERN, {**ON, "training.max_seconds": 2.0})
    found = begun(make_trainer(config))
    assert notices(found) == ["the steps are not compiled: 2 s are too short a time to compile in"]
    assert not [e for e in found if isinstance(e, PhaseChanged) and e.phase == "compiling"]


def test_what_is_left_of_a_budget_decides(compiler: Path) -> None:
    trainer = make_trainer(with_settings(MODERN, {**ON, "training.max_seconds": 3600.0}))
    assert trainer.compiled
    found = list(trainer.learner.prepare(5, 2.0))
    assert notices(found) == ["the steps are not compiled: 2 s are too short a time to compile in"]
    assert not trainer.compiled


def test_compiling_takes_its_share_of_a_budget_at_most(
    compiler: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learner, "COMPILING_SHARE", 0.0001)
    trainer = make_trainer(with_settings(MODERN, {**ON, "training.max_seconds": 3600.0}))
    found = begun(trainer)
    assert notices(found) == [
        "compiling did not work here (the compiler took too long); training goes on without"
    ]
    assert isinstance(found[-1], StepCompleted)


def test_a_compiler_that_was_begun_early_is_the_one_that_is_waited_for(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begin_compiling(with_settings(MODERN, LONG))
    early = STEP_LIBRARY.start_build()
    assert STEP_LIBRARY.start_build() is not early, "what was taken is not given out again"
    early.end()
    begin_compiling(with_settings(MODERN, LONG))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    elsewhere = STEP_LIBRARY.start_build()
    assert elsewhere.path.is_relative_to(tmp_path / "another")
    elsewhere.end()


@pytest.mark.parametrize(
    "changes",
    [
        {"training.compile": "off"},
        {"training.max_seconds": 2.0},
        {"training.device": "cuda:1"},
        {"model.architecture": "classic", "training.optimizer": "adamw"},
    ],
    ids=str,
)
def test_no_compiler_is_begun_for_a_run_without_use_for_it(
    compiler: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object]
) -> None:
    begun: list[str] = []
    monkeypatch.setattr(STEP_LIBRARY, "start_build", lambda: begun.append("build"))
    begin_compiling(with_settings(MODERN, {**LONG, **changes}))
    assert begun == []
    begin_compiling(with_settings(MODERN, LONG))
    assert begun == ["build"]


def test_who_stops_waiting_ends_the_compiler(compiler: Path) -> None:
    building = build_library()
    assert 0 <= next(building) < 1
    building.close()
    folder = place().folder
    assert folder is not None
    assert [path.suffix for path in folder.iterdir()] in ([".lock"], [])


def test_a_library_that_is_none_does_not_end_a_run(compiler: Path) -> None:
    config = with_settings(MODERN, ON)
    planted = put_library()
    found = list(make_trainer(config).run())
    said = notices(found)
    assert len(said) == 1
    assert said[0].startswith("compiling did not work here (")
    assert "invalid ELF header" in said[0] or "not a mach-o" in said[0]
    assert isinstance(found[-1], StepCompleted)
    assert [event for event in found if isinstance(event, Evaluated)]
    assert not planted.exists(), "it is built anew next time"


def test_one_that_was_cut_short_is_not_there(compiler: Path) -> None:
    path = put_library()
    assert is_ready()
    path.write_bytes(path.read_bytes()[:5])
    assert not is_ready()


def test_without_a_folder_for_libraries_a_run_goes_on(
    compiler: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    monkeypatch.setattr(tempfile, "tempdir", str(cache))
    found = begun(make_trainer(with_settings(MODERN, ON)))
    assert notices(found) == [
        f"the steps are not compiled: compiled code cannot be kept in {cache}: File exists"
    ]


def test_another_folder_for_libraries_is_said_once(
    compiler: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("in the way")
    monkeypatch.setattr(learner, "COMPILING_SHARE", 0.0001)
    trainer = make_trainer(with_settings(MODERN, {**ON, "training.max_seconds": 3600.0}))
    said = notices(begun(trainer))
    assert len(said) == 2
    assert said[0].startswith(f"compiled code cannot be kept in {cache}: File exists; it is kept")


def failing_backend(*_: object) -> NoReturn:
    raise RuntimeError("there is no compiler")


@pytest.mark.slow
def test_a_compiler_that_fails_in_the_first_step_does_not_end_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on an accelerator, whose model torch compiles when it is first called."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=failing_backend))
    config = with_settings(tiny_config(), {"training.sample_length": 0})
    eager = [event for event in make_trainer(config).run() if isinstance(event, Evaluated)]
    trainer = make_trainer(config)
    run = trainer.run()
    next(event for event in run if isinstance(event, StepCompleted))
    trainer.learner.compiled = True
    trainer.learner._compute("torch.compile")
    found = list(run)
    said = notices(found)
    assert len(said) == 1
    assert said[0].startswith("compiling did not work here (")
    losses = [event.val_loss for event in found if isinstance(event, Evaluated)]
    assert losses == [event.val_loss for event in eager]
    assert not trainer.compiled
