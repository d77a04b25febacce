"""What the Generation screen decides with, without the screen: prompt, models, writing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_model.config.fields import SamplingConfig
from megatron_model.data.tokenizer import CharTokenizer
from megatron_model.run.folder import RunFolder
from megatron_tui.generation.model_selection import ModelSelection
from megatron_tui.generation.prompt import PromptReader
from megatron_tui.generation.sampling_draft import SamplingDraft, with_later_seed
from megatron_tui.generation.writing_session import READING, WritingSession
from megatron_tui.services.model_choice import ModelChoice
from megatron_tui.services.preferences import Preferences
from tests.tui.conftest import copy_recorded, make_workbench, until
from tests.tui.services.test_services import Letters

KNOWN = CharTokenizer(" abcdefghijklmnopqrstuvwxyz")


# The prompt


def test_without_a_model_every_prompt_can_be_read() -> None:
    reader = PromptReader(Preferences(), lambda: None)
    assert reader.unknown("é#") == []
    assert reader.readable("é#") == "é#"
    assert reader.describe_unknown("é#").plain == ""


def test_the_policy_is_remembered_and_decides_what_is_read(tmp_path: Path) -> None:
    preferences = Preferences(tmp_path / "preferences.json")
    read = []
    for _ in range(3):
        reader = PromptReader(preferences, lambda: KNOWN)
        read.append((reader.policy, reader.readable("thé #"), reader.describe_unknown("thé #")))
        reader.choose_next_policy()
    assert [(policy, text) for policy, text, _ in read] == [
        ("block", "thé #"), ("drop", "th "), ("replace", "the "),
    ]  # fmt: skip
    assert [about.plain for _, _, about in read] == [
        "The model has never seen é # and cannot read this prompt. ctrl+d drops them.",
        "Left out, because the model has never seen them: é #. ctrl+d replaces them.",
        "Replaced: é→e #→nothing. ctrl+d refuses them.",
    ]
    assert PromptReader(preferences, lambda: KNOWN).policy == "block"


def test_of_many_unknown_characters_the_first_are_named() -> None:
    reader = PromptReader(Preferences(), lambda: KNOWN)
    assert "1 2 3 4 5 6 7 8 and 2 more" in reader.describe_unknown("1234567890").plain
    assert "U+0007" in reader.describe_unknown("\a").plain


# The models


async def test_a_run_asked_for_elsewhere_is_chosen_and_kept(runs_dir: Path) -> None:
    copy_recorded(runs_dir, "one")
    copy_recorded(runs_dir, "two")
    workbench = make_workbench(runs_dir, load_model=lambda path: Letters())
    models = ModelSelection(workbench)
    assert (models.run_names, models.choices) == ([], [])
    models.list_runs()
    assert sorted(models.run_names) == ["one", "two"]
    assert models.run == models.run_names[0]
    models.choose_run("two")
    assert workbench.chosen_run is not None
    assert workbench.chosen_run.name == "two"
    workbench.chosen_run = RunFolder.open(runs_dir / "one")
    models.list_runs()
    assert models.run == "one"
    models.choose_run("no such run")
    assert models.run == "one"
    models.update()
    assert models.chosen is not None
    assert (models.chosen.run, models.chosen.name, models.weights) == ("one", "best", "best")
    assert models.weight_names == ["best", "latest"]
    await until(lambda: workbench.generation.status.phase == "ready")
    assert workbench.generation.status.weights == models.chosen.weights
    models.weights = "step that is gone"
    models.update(load=False)
    assert models.weights == "best"
    assert models.copying_cost == ""


# Writing


def session_of(tmp_path: Path, model: Letters) -> tuple[WritingSession, ModelChoice]:
    workbench = make_workbench(tmp_path, load_model=lambda path: model)
    choice = ModelChoice(RunFolder(tmp_path / "run"), "best", tmp_path / "model.safetensors")
    return WritingSession(workbench.generation), choice


async def test_what_is_shown_joins_the_text(tmp_path: Path) -> None:
    model = Letters()
    model.gate.release(5)
    session, choice = session_of(tmp_path, model)
    assert session.advance(1.0) == ""
    session.start(choice, "x", SamplingConfig(max_new_tokens=5))
    await until(lambda: not session._generation.busy)
    assert session.text is not None
    assert session.text.text == "x"
    assert session.advance(0.1) == "aaaaa"
    assert session.text.text == "xaaaaa"
    assert not session.busy
    assert session.describe(session._generation.status).startswith("done, 5 characters, ")


async def test_at_reading_pace_the_rest_waits_and_stopping_drops_it(tmp_path: Path) -> None:
    model = Letters()
    model.gate.release(100)
    session, choice = session_of(tmp_path, model)
    session.at_reading_pace = True
    session.start(choice, "", SamplingConfig(max_new_tokens=100))
    await until(lambda: not session._generation.busy)
    assert session.advance(0.0) == "a", "the first character comes at once"
    assert session.advance(0.1) == "a" * int(READING * 0.1)
    assert session.has_unread
    assert session.busy
    assert session.describe(session._generation.status).startswith("reading along, 4 characters")
    session.stop()
    assert session.advance(1.0) == ""
    assert not session.busy
    assert session.text is not None
    assert session.text.length == 4


class Recorder(Letters):
    """Remembers what it was asked to go on from."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[tuple[str, int, str]] = []

    def stream(self, prompt: str, sampling: SamplingConfig, written: str = "") -> Iterator[str]:
        self.asked.append((prompt, sampling.max_new_tokens, written))
        return super().stream(prompt, sampling)


async def test_a_text_is_extended_only_by_what_wrote_it(tmp_path: Path) -> None:
    model = Recorder()
    model.gate.release(1000)
    session, choice = session_of(tmp_path, model)
    sampling = SamplingConfig(max_new_tokens=3)
    assert not session.extend(choice, sampling), "there is no text yet"
    session.start(choice, "x", sampling)
    await until(lambda: not session._generation.busy)
    session.advance(0.1)
    other = ModelChoice(choice.folder, "latest", tmp_path / "other.safetensors")
    assert not session.extend(other, sampling)
    assert not session.extend(choice, SamplingConfig(max_new_tokens=3, temperature=1.5))
    assert not session.extend(choice, with_later_seed(sampling))
    assert session.extend(choice, SamplingConfig(max_new_tokens=7))
    await until(lambda: not session._generation.busy)
    assert model.asked == [("x", 3, ""), ("x", 10, "aaa")]


async def test_a_text_that_its_stop_text_ended_is_not_extended(tmp_path: Path) -> None:
    model = Letters()
    model.gate.release(2)
    session, choice = session_of(tmp_path, model)
    sampling = SamplingConfig(max_new_tokens=2, stop="aa")
    session.start(choice, "x", sampling)
    await until(lambda: not session._generation.busy)
    session.advance(0.1)
    assert not session.extend(choice, sampling)


# Seeds and saving


def test_seeds_go_round() -> None:
    last = SamplingConfig(seed=2**63 - 1)
    assert with_later_seed(last).seed == 0
    assert with_later_seed(last, 3).seed == 2
    draft = SamplingDraft(Preferences())
    draft.put("seed", str(2**63 - 1))
    draft.next_seed()
    assert draft.sampling.seed == 0


async def test_a_text_is_saved_under_a_typed_name_or_it_is_said_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Letters()
    session, choice = session_of(tmp_path, model)
    session.start(choice, "x", SamplingConfig(max_new_tokens=1))
    model.gate.release(1)
    text = session.text
    assert text is not None
    assert text.save_as(" ", over=False) == text.save_as(str(tmp_path), over=False) != ""
    assert text.save_as("text.txt", over=False) == ""
    assert "already exists" in text.save_as("text.txt", over=False)
    assert text.save_as("text.txt", over=True) == ""
