"""The same choice means the same run: on the Setup screen, in its preflight, in its command."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.cli import parse
from megatron_model.commands import _configuration
from megatron_model.config import RunConfig
from megatron_model.corpus import find_corpus
from megatron_model.errors import RequestError
from megatron_model.presets import PRESETS
from megatron_tui.corpus_facts import CorpusFacts
from megatron_tui.setup_plan import SetupPlan
from tests.tui.conftest import make_app, make_workbench, until
from tests.tui.test_setup_features import WIDE, card, setup

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
    _, config = _configuration(parse(words[1:]))
    return config


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
        plan.facts = CorpusFacts(str(text), size=find_corpus(str(text)).size)
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
        await pilot.press("c")
        words = shlex.split(app.clipboard)
        config, cost = screen.plan.config, screen.plan.cost
        assert of_command(words) == config
        assert f"{cost.epochs:.1f}" in card(app)
    corpus, *options = words[2 : words.index("--name")]
    program = "import sys; from megatron_model.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program, "preflight", corpus, *options, "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    said = json.loads(done.stdout)
    # Memory differs with the device, which is another one in this test.
    for name in ("parameters", "weights_bytes", "characters_per_step", "epochs"):
        assert said[name] == getattr(cost, name), name
