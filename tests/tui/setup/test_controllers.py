"""What the Setup screen looks up and asks for, without a screen: its controllers by themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from megatron_model.config.fields import RunConfig, config_to_toml, with_settings
from megatron_model.device import DeviceInfo
from megatron_model.run.folder import RunFolder
from megatron_model.util.errors import RequestError
from megatron_tui.services.preferences import Preferences
from megatron_tui.services.torch_loader import TorchLoader
from megatron_tui.setup import recent_corpora
from megatron_tui.setup.corpus_facts import CorpusFacts
from megatron_tui.setup.corpus_reader import CorpusReader
from megatron_tui.setup.device_lookup import DeviceLookup
from megatron_tui.setup.dialogs import SetupDialogs
from megatron_tui.setup.measuring import StepMeasuring
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui.pick import AskPath, RunPick
from tests.tui.conftest import CPU
from tests.tui.setup.test_features import FakeProbe

CARD = DeviceInfo("cuda", "NVIDIA H100", "VRAM", 80 << 30, 78 << 30, True, 4e14)


class Background:
    """Keeps what was begun until the test runs it, on the test's own thread."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, Callable[[], None]]] = []

    def __call__(
        self,
        find: Callable[[], Iterable[Any]],
        take: Callable[[Any], object],
        done: Callable[[], object] | None = None,
        *,
        group: str,
        exclusive: bool = False,
    ) -> None:
        def work() -> None:
            for found in find():
                take(found)
            if done is not None:
                done()

        self.begun.append((group, work))

    @property
    def groups(self) -> list[str]:
        return [group for group, _ in self.begun]

    def run(self) -> None:
        while self.begun:
            self.begun.pop(0)[1]()


class Said(list[tuple[str, bool]]):
    """What a person was told, and whether it was an error."""

    def __call__(self, text: str, *, error: bool = False, title: str = "") -> None:
        self.append((text, error))


@pytest.fixture
def plan(tmp_path: Path, tale: str) -> SetupPlan:
    plan = SetupPlan(tmp_path / "runs", "smoke")
    plan.facts = CorpusFacts(tale, characters=20_000_000, vocabulary=("a", "b"))
    return plan


# Measuring


@pytest.fixture
def measuring(
    plan: SetupPlan, monkeypatch: pytest.MonkeyPatch
) -> tuple[StepMeasuring, Background, Said]:
    monkeypatch.setattr("megatron_model.training.probe.Probe", FakeProbe)
    background, said = Background(), Said()
    return StepMeasuring(plan, background, lambda: None, said), background, said


def test_the_fastest_batch_size_is_taken(
    plan: SetupPlan, measuring: tuple[StepMeasuring, Background, Said]
) -> None:
    steps, background, said = measuring
    steps.toggle(batches=True, training=False)
    assert steps.doing == "starting"
    background.run()
    assert steps.doing == ""
    assert plan.checked.config.training.batch_size == 2
    assert plan.measurement is not None
    assert [text.split(" is ")[0] for text, _ in said] == ["Batch size 2"]


def test_a_measurement_that_was_stopped_changes_no_setting(
    plan: SetupPlan, measuring: tuple[StepMeasuring, Background, Said]
) -> None:
    steps, background, said = measuring
    before = plan.checked.config
    steps.toggle(batches=True, training=False)
    steps.toggle(batches=True, training=False)
    assert background.groups == ["probe"], "the second time stops the first, and begins nothing"
    background.run()
    assert (plan.checked.config, said) == (before, [])
    steps.toggle(batches=False, training=False)
    assert background.groups == ["probe"], "it can be begun again"


def test_what_cannot_be_measured_is_refused_in_words(
    plan: SetupPlan, measuring: tuple[StepMeasuring, Background, Said]
) -> None:
    steps, background, said = measuring
    steps.toggle(batches=False, training=True)
    plan.change(plan.draft.with_text("training.devices", "2"))
    steps.toggle(batches=False, training=False)
    plan.change(plan.draft.with_text("training.devices", "none"))
    steps.toggle(batches=False, training=False)
    assert [error for _, error in said] == [True, False, True]
    assert "training.devices to 1" in said[1][0]
    assert (background.groups, steps.doing) == ([], "")


# The corpus


def test_what_is_out_of_date_is_dropped(tmp_path: Path, tale: str) -> None:
    plan, background, shown = SetupPlan(tmp_path / "runs", "smoke"), Background(), list[str]()
    finished: list[None] = []
    reader = CorpusReader(
        plan,
        background,
        changed=lambda: shown.append(plan.facts.spec),
        finished=lambda: finished.append(None),
    )
    reader.choose(tale)
    reader.read()
    reader.read()
    assert background.groups == ["corpus"], "asked for once"
    Path("other.txt").write_text("another text\n" * 50)
    reader.choose("other.txt")
    reader.read()
    shown.clear()
    background.run()
    assert set(shown) == {"other.txt"}
    assert plan.facts.characters == 650
    assert len(finished) == 2
    reader.choose("other.txt")
    reader.read()
    assert plan.facts.complete, "chosen again, it stays known"
    plan.change(plan.draft.with_text("data.encoding", "latin-1"))
    reader.read()
    assert not plan.facts.complete, "another way of reading is another text"


def test_a_corpus_that_could_not_be_read_is_tried_again_when_it_is_chosen_again(
    tmp_path: Path, tale: str
) -> None:
    plan, background = SetupPlan(tmp_path / "runs", "smoke"), Background()
    reader = CorpusReader(plan, background, changed=lambda: None, finished=lambda: None)
    reader.choose("late.txt")
    reader.read()
    background.run()
    assert plan.facts.error
    Path("late.txt").write_text("there it is\n" * 50)
    reader.choose("late.txt")
    reader.read()
    background.run()
    assert plan.facts.complete


def test_corpora_are_remembered_and_found_in_runs(runs_dir: Path, tmp_path: Path) -> None:
    preferences = Preferences()
    recent_corpora.remember(preferences, "/a.txt")
    recent_corpora.remember(preferences, "/b.txt")
    recent_corpora.remember(preferences, "/a.txt")
    recent_corpora.remember(preferences, "builtin:python-stdlib")
    assert recent_corpora.remembered(preferences) == ["/a.txt", "/b.txt"]
    assert recent_corpora.last_corpus(preferences) == "builtin:python-stdlib"
    for name, spec in (("one", "/x.txt"), ("two", "builtin:python-stdlib"), ("three", "/x.txt")):
        RunFolder.create(runs_dir, name, with_settings(RunConfig(), {"data.corpus": spec}))
    (RunFolder.create(runs_dir, "broken", RunConfig()).path / "run.toml").write_text("[")
    assert recent_corpora.corpora_of_runs(runs_dir) == ["/x.txt"]


# Devices


def lookup_of(plan: SetupPlan, device: DeviceInfo) -> tuple[DeviceLookup, Background]:
    engine, background = TorchLoader(lambda: device), Background()
    engine.device, engine.state, engine.cards = device, "ready", 1
    return DeviceLookup(plan, engine, background, lambda: None), background


def test_a_device_is_looked_at_once_and_a_wrong_name_is_said(plan: SetupPlan) -> None:
    lookup, background = lookup_of(plan, CPU)
    plan.change(plan.draft.with_text("training.device", "cpu9"))
    lookup.look_at_named()
    lookup.look_at_named()
    assert background.groups == ["device"]
    background.run()
    assert 'no device "cpu9"' in plan.device_errors["cpu9"]
    assert any("cpu9" in problem for problem in plan.problems)
    listed: list[str] = []
    lookup.list_all(lambda: listed.extend(plan.devices))
    background.run()
    assert listed == ["auto", "cpu"]


@pytest.mark.parametrize("chosen", [False, True])
def test_the_device_suggests_a_preset_unless_one_was_chosen(tmp_path: Path, chosen: bool) -> None:
    plan = SetupPlan(tmp_path, "cpu", preset_chosen=chosen)
    lookup, _ = lookup_of(plan, CARD)
    lookup.take_default()
    assert plan.draft.preset == ("cpu" if chosen else "small")
    assert not plan.history.undoable, "nobody chose the one before"
    plan.choose_preset("medium")
    lookup.take_default()
    assert plan.draft.preset == "medium"


# Dialogs


def dialogs_of(plan: SetupPlan, ask: Any) -> tuple[SetupDialogs, list[str], Said]:
    chosen, said = list[str](), Said()
    dialogs = SetupDialogs(plan, ask, changed=lambda: None, choose_corpus=chosen.append, say=said)
    return dialogs, chosen, said


def test_settings_of_a_file_are_taken_with_its_corpus(plan: SetupPlan) -> None:
    config = with_settings(RunConfig(), {"model.layers": 7, "data.corpus": "/some.txt"})
    Path("right.toml").write_text(config_to_toml(config))
    Path("wrong.toml").write_text("[model]\nlayer = 3\n")
    refusals: list[str] = []

    def ask(dialog: AskPath, take: Callable[[str], object]) -> None:
        refusals.append(dialog._take("wrong.toml", False))
        refusals.append(dialog._take("right.toml", False))
        take("right.toml")

    dialogs, chosen, said = dialogs_of(plan, ask)
    dialogs.load()
    assert 'Did you mean "model.layers"' in refusals[0]
    assert refusals[1] == ""
    assert plan.checked.config.model.layers == 7
    assert (chosen, plan.preset_chosen) == (["/some.txt"], True)
    assert "right.toml" in said[0][0]


def test_a_run_is_taken_or_resumed_and_one_that_cannot_be_read_is_refused(
    plan: SetupPlan, runs_dir: Path
) -> None:
    config = with_settings(RunConfig(), {"model.layers": 7})
    folder = RunFolder.create(runs_dir, "old", config)
    answers, resumed = ["old", f"{RunPick.RESUME}old", "old"], list[RunFolder]()

    def ask(dialog: RunPick, take: Callable[[str], object]) -> None:
        take(answers.pop(0))

    dialogs, chosen, said = dialogs_of(plan, ask)
    dialogs.ask_run(runs_dir, resumed.append)
    assert plan.checked.config.model.layers == 7
    assert (chosen, resumed) == ([], [])
    dialogs.ask_run(runs_dir, resumed.append)
    assert [run.path for run in resumed] == [folder.path]
    (folder.path / "run.toml").write_text("[")
    with pytest.raises(RequestError):
        folder.read_config()
    dialogs.ask_run(runs_dir, resumed.append)
    assert said[-1][1]
