"""The same choice means the same run: on the Setup screen, in its preflight, in its command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.cli.asked import request
from megatron_model.cli.parser import parse
from megatron_model.config.fields import RunConfig, with_settings
from megatron_model.config.presets import PRESETS
from megatron_model.util.errors import RequestError
from megatron_tui.setup.corpus_facts import CorpusFacts, inspect_corpus
from megatron_tui.setup.corpus_picker import CorpusPicker, facts_line
from megatron_tui.setup.plan import SetupPlan
from megatron_tui.ui.panel import Label
from tests.tui.conftest import make_app, make_workbench, until
from tests.tui.setup.test_features import WIDE, card, setup

CHOICES = (
    {},
    {"training.steps": "77"},
    {"training.batch_size": "3", "model.block_size": "64"},
    {"training.max_seconds": "30"},
    {"training.token_dropout": "0.11", "training.steps": "3000"},
    {"data.validation_fraction": "0.3"},
    {"training.sequence_length": "32", "training.evaluate_every": "9"},
    {"model.architecture": "classic", "training.optimizer": "adamw"},
)


def of_command(words: list[str]) -> RunConfig:
    """Return what the command line makes of a command."""
    return request(parse(words[1:])).config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kilobytes", [12, 900])
def test_setup_and_its_command_mean_the_same_run(
    preset: str, kilobytes: int, tmp_path: Path
) -> None:
    text = tmp_path / "some text.txt"
    text.write_text("to be or not to be\n" * (kilobytes * 1000 // 19))
    for choice in CHOICES:
        plan = SetupPlan(tmp_path / "runs", preset)
        for key, value in choice.items():
            plan.change(plan.draft.with_text(key, value))
        # Known only after the typing, as when a corpus takes long to find.
        plan.facts = CorpusFacts(str(text), characters=len(text.read_text()))
        if not plan.checked.valid:  # then the command line refuses it as well
            with pytest.raises(RequestError):
                of_command(plan.command("a"))
            continue
        assert of_command(plan.command("a")) == plan.config, choice


async def test_screen_preflight_and_command_line_agree(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        # The tale is short: the preset reads it fewer times than it would a novel.
        assert screen.plan.config.training.steps < PRESETS["cpu"].config.training.steps
        await pilot.press("slash", *"layers", "enter", "3", "enter")
        await until(lambda: screen.draft.edits == {"model.layers": "3"})
        await pilot.press("y")
        words = shlex.split(app.clipboard)
        config, cost = screen.plan.config, screen.plan.cost
        assert of_command(words) == config
        assert f"{cost.epochs:.1f}" in card(app)
    corpus, *options = words[2 : words.index("--name")]
    program = "import sys; from megatron_model.cli.parser import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "preflight", corpus, *options, "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    # Memory differs with the device, which is another one in this test.
    for name in ("parameters", "weights_bytes", "characters_per_step", "epochs"):
        assert said[name] == getattr(cost, name), name


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_setup_counts_characters_not_bytes(
    runs_dir: Path, tmp_path: Path, encoding: str
) -> None:
    text = tmp_path / "cat.txt"
    text.write_bytes(("吾輩は猫である。\n" * 3000).encode(encoding))
    app = make_app(make_workbench(runs_dir), corpus=str(text))
    async with app.run_test(size=WIDE):
        screen = await setup(app)
        facts = [found.plain for found in screen.query_one(CorpusPicker).query(Label)]
        assert encoding.upper() in facts[-1]
        assert "27,000 characters" in facts[-1]
        assert screen.plan.config.training.steps == 198
        assert screen.plan.cost.warnings == []
        assert of_command(screen.plan.command("a")) == screen.plan.config


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_setup_estimates_by_the_encoding_until_the_text_is_read(
    tmp_path: Path, encoding: str
) -> None:
    text = tmp_path / "cat.txt"
    text.write_bytes(("吾輩は猫である。\n" * 30_000).encode(encoding))
    plan = SetupPlan(tmp_path / "runs", "cpu")
    steps = []
    for facts in inspect_corpus(str(text)):
        plan.facts = facts
        if facts.size is not None and plan.draft.size:
            steps.append(plan.config.training.steps)
            line = facts_line(facts).plain
            assert ("about 270k characters" in line) != facts.complete
            assert ("270,000 characters" in line) == facts.complete
    assert len(steps) > 1
    assert max(steps) - min(steps) <= 1


async def test_what_was_made_of_a_folder_stands_on_the_card(runs_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("1.txt", "2.txt", "10.txt"):
        (folder / name).write_text("a king" * 100)
    (folder / "link.txt").symlink_to("nothing")
    app = make_app(make_workbench(runs_dir), corpus=str(folder))
    async with app.run_test(size=WIDE):
        await setup(app)
        said = card(app)
        assert "Joined 3 files in the order 1.txt to 10.txt, with 2 line ends put" in said
        assert "Left out: 1 link that leads nowhere (link.txt)." in said


async def test_damage_is_passed_over_when_the_form_says_so(runs_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("größer\n".encode() * 300 + b"\xff")
    app = make_app(make_workbench(runs_dir), corpus=str(text))
    async with app.run_test(size=WIDE):
        screen = await setup(app)
        assert "data.errors=replace" in screen.facts.error
        screen.plan.change(screen.draft.with_text("data.errors", "drop"))
        screen.show_plan()
        await until(lambda: screen.facts.complete)
        assert "Replaced or dropped 1 damaged place" in card(app)
        assert screen.plan.config.data.errors == "drop"


async def test_settings_of_an_old_run_read_the_text_as_it_did(
    runs_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("2.txt", "10.txt"):
        (folder / name).write_text(name * 100)
    app = make_app(make_workbench(runs_dir), corpus=str(folder))
    async with app.run_test(size=WIDE):
        screen = await setup(app)
        assert screen.facts.characters == 1101
        old = with_settings(screen.plan.config, {"data.reading": 1})
        screen.plan.change(screen.draft.with_config(old))
        screen.show_plan()
        await until(lambda: screen.facts.complete)
        assert screen.facts.characters == 1100
        assert screen.facts.preview.startswith("10.txt")
        assert of_command(screen.plan.command("a")) == screen.plan.config
