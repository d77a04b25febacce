"""Setup, feature by feature: each point of the list (features.md 4.1) reached by its keys.

The names are the list; what a look is has a snapshot in test_setup_looks.py.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from textual.widgets import Input, OptionList

from megatron_model.config.fields import RunConfig, config_from_toml, with_settings
from megatron_model.device import DeviceInfo
from megatron_model.planning.measurement import Measurement
from megatron_model.queue import Queue
from megatron_model.run.folder import RunFolder
from megatron_model.sweep.grid import grid
from megatron_model.training.probe import Progress
from megatron_tui.app import MegatronApp
from megatron_tui.app import make_app as megatron_app
from megatron_tui.services.queue import swept
from megatron_tui.setup.corpus_picker import CorpusPicker
from megatron_tui.setup.file_browser import FileBrowser
from megatron_tui.setup.preflight_card import PreflightCard
from megatron_tui.setup.preview_panel import PreviewPanel
from megatron_tui.setup.run_panel import RunPanel
from megatron_tui.setup.screen import SetupScreen
from megatron_tui.setup.xray import XrayScreen
from megatron_tui.training.screen import TrainingScreen
from megatron_tui.ui.dialogs import Confirm
from megatron_tui.ui.panel import Label
from megatron_tui.ui.path_input import PathInput
from megatron_tui.ui.pick import AskPath, Pick
from megatron_tui.ui.settings_form import FindField, SettingsForm, find_settings
from megatron_tui.ui.settings_list import SettingsList
from tests.tui.conftest import (
    GatedTrainer,
    copy_recorded,
    make_app,
    make_workbench,
    recorded_events,
    until,
)

WIDE = (120, 40)


async def setup(app: MegatronApp) -> SetupScreen:
    """Wait until the corpus is read and the device is known."""
    screen = app.screen_stack[0]
    assert isinstance(screen, SetupScreen)
    await until(
        lambda: (
            (screen.facts.complete or bool(screen.facts.error)) and screen.plan.device is not None
        )
    )
    return screen


def shown(node: Any) -> str:
    return "\n".join(text.plain for text in node.query(Label))


def card(app: MegatronApp) -> str:
    return shown(app.screen_stack[0].query_one(PreflightCard))


# Corpora


async def test_must_recent_corpora(runs_dir: Path, tale: str, tmp_path: Path) -> None:
    text = str(tmp_path / tale)
    RunFolder.create(runs_dir, "old", with_settings(RunConfig(), {"data.corpus": text}))
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        options = screen.query_one(OptionList)
        await until(lambda: options.option_count == 3)
        await pilot.press("up")
        await until(lambda: screen.facts.spec == text and screen.facts.complete)


async def test_what_is_known_of_a_corpus_outlives_a_longer_list(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        # As when the runs' corpora are found late: the list is filled anew, the choice the same.
        screen.query_one(CorpusPicker).add([str(Path("other.txt").absolute())])
        await pilot.pause()
        assert (screen.facts.spec, screen.facts.complete) == (tale, True)


async def test_a_corpus_that_cannot_be_inspected_is_an_error_not_a_wait(
    runs_dir: Path, tale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise ValueError("broken [cache]")

    monkeypatch.setattr("megatron_model.data.token_cache.prepare_corpus", broken)
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE):
        screen = await setup(app)
        assert "ValueError: broken [cache]" in screen.facts.error


async def test_must_recent_corpora_are_remembered_after_a_start(runs_dir: Path, tale: str) -> None:
    trainer = GatedTrainer(recorded_events())
    app = make_app(make_workbench(runs_dir, trainer), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        await setup(app)
        await pilot.press("ctrl+r")
        await until(lambda: app.workbench.training.training is not None)
        text = str(Path(tale).absolute())
        assert app.workbench.preferences.get("setup.corpora", list[str]()) == [text]
        assert app.workbench.preferences.get("setup.corpus", "") == text
        app.workbench.training.stop()
        trainer.release(1)


async def test_must_file_browser(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("b")
        await until(lambda: isinstance(app.screen, FileBrowser))
        await pilot.pause(0.3)
        await pilot.press("end", "enter")
        await until(lambda: isinstance(app.screen, SetupScreen))
        await until(lambda: screen.facts.spec.endswith(tale) and screen.facts.complete)


async def test_must_a_path_typed_with_completion(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir))
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        path = screen.query_one("#path", PathInput)
        path.focus()
        await pilot.press("t", "a", "tab")
        assert path.value == tale
        await pilot.press("enter")
        await until(lambda: screen.facts.spec == tale and screen.facts.complete)


async def test_must_preview(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await setup(app)
        panel = screen.query_one(PreviewPanel)
        assert not panel.display
        await pilot.press("v")
        await until(lambda: panel.display and panel.has_focus)
        assert shown(panel).startswith(Path(tale).read_text()[:40].splitlines()[0])
        await pilot.press("j", "v")
        await until(lambda: not panel.display)
        assert screen.query_one("#corpora").has_focus


async def test_must_size_lines_vocabulary(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE):
        screen = await setup(app)
        text = Path(tale).read_text()
        facts = shown(screen.query_one(CorpusPicker))
        assert f"{len(text):,} characters" in facts
        assert f"vocabulary {len(set(text))}" in facts
        assert "lines" in facts
        assert "KiB" in facts


async def test_must_encoding_is_detected_and_chosen_by_key(runs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "conte.txt"
    path.write_bytes(("Un éléphant dansait dans la forêt où il était né.\n" * 60).encode("cp1252"))
    app = make_app(make_workbench(runs_dir), corpus=str(path))
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        assert screen.facts.problem is not None
        facts = shown(screen.query_one(CorpusPicker))
        assert "line 1" in facts
        assert "byte 3" in facts
        assert "cp1252" in facts
        await pilot.press("ctrl+r")  # never a silent replacement: it does not start
        assert app.workbench.training.training is None
        await pilot.press("E")
        await until(lambda: isinstance(app.screen, Pick))
        assert isinstance(app.screen, Pick)
        assert app.screen.entry is not None
        assert app.screen.entry.value == "cp1252"
        assert "éléphant" in app.screen.entry.detail
        await pilot.press("enter")
        await until(lambda: screen.facts.complete)
        assert screen.plan.config.data.encoding == "cp1252"
        assert "éléphant" in screen.facts.preview
        await pilot.press("u")
        await until(lambda: screen.facts.problem is not None)


async def test_must_xray(runs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "mixed.txt"
    path.write_bytes(b"one two\r\nthree four\none two\n\x07bell and \xc3\xa9\n" * 30)
    app = make_app(make_workbench(runs_dir), corpus=str(path))
    async with app.run_test(size=WIDE) as pilot:
        await setup(app)
        await pilot.press("X")
        await until(lambda: isinstance(app.screen, XrayScreen))
        xray = app.screen
        assert isinstance(xray, XrayScreen)
        await until(lambda: xray.facts.text is not None)
        found = shown(xray)
        for words in ("valid UTF-8", "90 LF", "30 CRLF", "mixed", "U+0007", "unigram", "trigram"):
            assert words in found, words
        first = xray.facts.table[0].character
        await pilot.press("o")
        assert xray.order == "rare"
        await pilot.press("o", "j", "G")
        assert first in {row.character for row in xray.facts.table}
        await pilot.press("escape")
        await until(lambda: isinstance(app.screen, SetupScreen))


async def test_must_xray_names_the_first_offending_byte(runs_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "conte.txt"
    path.write_bytes(b"plain\n" * 9 + "né en été, déjà là.\n".encode("cp1252") * 40)
    app = make_app(make_workbench(runs_dir), corpus=str(path))
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await setup(app)
        await pilot.press("X")
        await until(lambda: isinstance(app.screen, XrayScreen))
        xray = app.screen
        assert isinstance(xray, XrayScreen)
        await until(lambda: xray.facts.report is not None)
        found = shown(xray)
        assert "line 10, byte 55" in found
        assert "% sure" in found
        await pilot.press("E")
        await until(lambda: isinstance(app.screen, Pick))
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, SetupScreen) and screen.facts.complete)


async def test_should_multi_file_corpus(runs_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "books"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(f"the book {name}\n" * 100)
    app = make_app(make_workbench(runs_dir), corpus=str(folder))
    async with app.run_test(size=WIDE):
        screen = await setup(app)
        assert screen.facts.files == 2
        assert "2 files" in shown(screen.query_one(CorpusPicker))


async def test_must_split_with_a_guard(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"block", "enter", *"8192", "enter")
        await until(lambda: bool(screen.plan.cost.problems))
        assert "validation split" in card(app)
        assert screen.query_one(PreflightCard).has_class("-problem")
        await pilot.press("exclamation_mark")
        await until(lambda: not screen.plan.cost.problems)
        assert screen.plan.config.model.block_size <= 256


# Presets and settings


async def test_must_presets(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("p")
        await until(lambda: isinstance(app.screen, Pick))
        names = [entry.value for entry in app.screen._entries]  # type: ignore[attr-defined]
        assert names == ["smoke", "cpu", "small", "medium", "large", "seed", "auto"]
        await pilot.press("end", "up", "enter")
        await until(lambda: screen.draft.preset == "seed")
        assert screen.plan.config.model == RunConfig().model
        assert app.workbench.preferences.get("setup.preset", "") == "seed"


async def test_must_choose_a_model_for_the_text_and_say_why(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("p")
        await until(lambda: isinstance(app.screen, Pick))
        await pilot.press("end", "enter")
        await until(lambda: screen.draft.preset == "auto")
        assert screen.plan.config.model.architecture == "modern"
        await until(lambda: "see p" in shown(screen.query_one(RunPanel)))
        assert screen.plan.command("")[3:5] == ["--preset", "auto"]


async def test_must_form_has_unit_range_and_help(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"warmup", "enter")
        form = screen.query_one(SettingsForm)
        assert "rises from zero" in shown(form)
        assert "at least 0 steps" in shown(form)


async def test_must_instant_validation_of_fields_that_depend_on_each_other(
    runs_dir: Path, tale: str
) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"heads", "enter", "3")
        await until(lambda: "model.heads" in screen.plan.checked.errors)
        assert "multiple" in shown(screen.query_one(SettingsForm))
        await pilot.press("enter", "ctrl+r")
        assert app.workbench.training.training is None


async def test_must_find_a_setting(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await setup(app)
        settings = screen.query_one(SettingsList)
        await pilot.press("slash", *"learn")
        await until(
            lambda: settings.keys == ["training.learning_rate", "training.muon_learning_rate"]
        )
        await pilot.press("escape")
        assert settings.field.key == "model.architecture"
        assert len(settings.keys) > 20
        assert not screen.query_one(FindField).display
        assert find_settings(screen.query_one(SettingsForm)._fields, ["positions"]) == [
            "model.architecture"
        ]


async def test_must_step_toggle_reset(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"batch", "enter", "right")
        await until(lambda: screen.draft.text("training.batch_size") == "22")
        await pilot.press("h")
        await until(lambda: not screen.draft.edits)
        await pilot.press("slash", *"schedule", "enter", "space")
        await until(lambda: screen.draft.text("training.schedule") == "cosine")
        await pilot.press("backspace")
        await until(lambda: not screen.draft.edits)
        await pilot.press("G", "home", "ctrl+d", "ctrl+u")
        assert screen.query_one(SettingsList).cursor == 0


async def test_should_difference_from_the_preset(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        settings = screen.query_one(SettingsList)
        await pilot.press("slash", *"layers", "enter", "9", "enter", "equals_sign")
        await until(lambda: settings.keys == ["model.layers"])
        row = "".join(segment.text for segment in settings.render_line(1))
        assert row.startswith("*layers")
        assert "preset 4" in row
        await pilot.press("escape")
        await until(lambda: len(settings.keys) > 20)


async def test_should_undo_and_redo(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"layers", "enter", "1", "2", "enter")
        await pilot.press("slash", *"heads", "enter", "8", "enter", "p", "home", "enter")
        await until(lambda: screen.draft.preset == "smoke")
        await pilot.press("u")
        assert (screen.draft.preset, len(screen.draft.edits)) == ("cpu", 2)
        await pilot.press("u")
        assert screen.draft.edits == {"model.layers": "12"}
        await pilot.press("u")  # typed in one go, taken back in one go
        assert screen.draft.edits == {}
        await pilot.press("u", "U", "U")
        assert screen.draft.edits == {"model.layers": "12", "model.heads": "8"}
        await pilot.press("slash", *"dropout", "enter", "right", "U")
        assert "model.dropout" in screen.draft.edits or screen.draft.edits


async def test_must_save_and_load_toml(runs_dir: Path, tale: str, tmp_path: Path) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"layers", "enter", "7", "enter", "ctrl+s")
        await until(lambda: isinstance(app.screen, AskPath))
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, SetupScreen))
        path = tmp_path / "tale-cpu.toml"
        assert config_from_toml(path) == screen.plan.config
        wanted = screen.plan.config
        await pilot.press("ctrl+s", "enter")  # never overwritten without being told
        await until(lambda: "press enter again to overwrite it" in shown(app.screen))
        await pilot.press("escape", "p", "home", "enter")
        await until(lambda: screen.draft.preset == "smoke")
        await pilot.press("ctrl+l", *"tale-cpu.toml", "enter")
        await until(lambda: isinstance(app.screen, SetupScreen))
        await until(lambda: screen.plan.config == wanted)
        await pilot.press("ctrl+l", *"nothing.toml", "enter")
        await until(lambda: "Cannot read" in shown(app.screen))
        (tmp_path / "wrong.toml").write_text("[model]\nlayer = 3\n")
        app.screen.query_one(Input).value = "wrong.toml"
        await pilot.press("enter")
        await until(lambda: 'Did you mean "model.layers"' in shown(app.screen))


async def test_must_exact_command_is_shown_and_copied(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        screen = await setup(app)
        await pilot.press("p", "home", "enter", "slash", *"steps", "enter", "5", "enter")
        await until(lambda: screen.draft.edits == {"training.steps": "5"})
        assert "--set training.steps=5" in shown(screen.query_one(RunPanel))
        await pilot.press("y")
        command = shlex.split(app.clipboard)
        assert command[:2] == ["megatron-model", "train"]
        wanted = screen.plan.config
    # It is exact: the run it makes has the configuration that was on screen.
    program = "import sys; from megatron_model.cli.parser import main; main()"
    done = subprocess.run([sys.executable, "-c", program, *command[1:]], capture_output=True)
    assert done.returncode == 0, done.stderr
    assert RunFolder.open(runs_dir / "tale-smoke").read_config() == wanted


async def test_must_run_name_and_refusing_to_overwrite(runs_dir: Path, tale: str) -> None:
    RunFolder.create(runs_dir, "mine", RunConfig())
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("R", "ctrl+u", *"mine")
        await until(lambda: "exists" in shown(screen.query_one(RunPanel)))
        await pilot.press("ctrl+r")
        assert app.workbench.training.training is None
        assert screen.query_one("#name").has_focus


# Preflight


async def test_must_card_moves_with_the_fields(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        for words in ("parameters", "weights", "gradients", "optimizer", "activations", "epochs"):
            assert words in card(app)
        for words in ("a step", "chars", "time", "on disk", "free", "held back"):
            assert words in card(app)
        before = card(app)
        await pilot.press("slash", *"layers", "enter", "right")
        await until(lambda: card(app) != before)
        assert screen.plan.disk_free is not None


async def test_must_overtraining_is_a_warning_with_a_fix(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"steps", "enter", *"90000", "enter")
        await until(lambda: "memorize" in card(app))
        await pilot.press("exclamation_mark")
        await until(lambda: "memorize" not in card(app))
        assert screen.plan.config.training.steps < 90000
        await pilot.press("u")
        await until(lambda: "memorize" in card(app))


async def test_must_red_when_it_does_not_fit_and_one_key_mends_it(
    runs_dir: Path, tale: str
) -> None:
    small = DeviceInfo("cpu", "2 CPU cores", "RAM", 1 << 30, 60 << 20, False, 1.5e11)
    app = make_app(make_workbench(runs_dir, device=small), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = await setup(app)
        await pilot.press("slash", *"embed", "enter", *"1024", "enter")
        await until(lambda: screen.query_one(PreflightCard).has_class("-problem"))
        assert "lower model.layers" in card(app)
        await pilot.press("ctrl+r")
        await until(lambda: isinstance(app.screen, Confirm))
        await pilot.press("n", "exclamation_mark")
        await until(lambda: not screen.query_one(PreflightCard).has_class("-problem"))
        assert screen.plan.cost.fits
        await pilot.press("u")
        await until(lambda: screen.query_one(PreflightCard).has_class("-problem"))


async def test_should_gpu_picker_with_free_memory(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("at")
        await until(lambda: isinstance(app.screen, Pick))
        pick = app.screen
        assert isinstance(pick, Pick)
        await until(lambda: [entry.value for entry in pick._entries][:2] == ["auto", "cpu"])
        assert "20.0 GiB of 24.0 GiB free" in pick._entries[1].detail
        await pilot.press("j", "enter")
        await until(lambda: screen.plan.config.training.device == "cpu")
        assert screen.plan.device is not None
        await pilot.press("slash", *"device", "enter", "enter", *"9", "enter")
        await until(lambda: 'no device "cpu9"' in card(app))


class FakeProbe:
    """Stands where the measuring process does."""

    def __init__(self, request: Any) -> None:
        self.request = request
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True

    def run(self) -> Any:
        yield Progress(doing="taking steps")
        sizes = (1, 2, 4) if self.request.batches else (self.request.config.training.batch_size,)
        for size in sizes:
            yield Progress(
                measured=Measurement(
                    seconds_per_step=2.0 if size == 4 else 0.5,
                    memory_bytes=123 << 20,
                    batch_size=size,
                    characters_per_step=size * 64,
                    steps=3,
                    compiled=False,
                )
            )


async def test_must_time_from_a_measured_step(
    runs_dir: Path, tale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_model.training.probe.Probe", FakeProbe)
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        assert "about" in card(app)
        await pilot.press("m")
        await until(lambda: "from measured steps" in card(app))
        assert "123 MiB" in card(app)
        assert screen.plan.cost.seconds == 0.5 * screen.plan.config.training.steps
        await pilot.press("slash", *"layers", "enter", "right")
        await until(lambda: "measured" not in card(app))  # it holds for those settings only
        await pilot.press("u")
        await until(lambda: "from measured steps" in card(app))


async def test_should_auto_batch_probe(
    runs_dir: Path, tale: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_model.training.probe.Probe", FakeProbe)
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE, notifications=True) as pilot:
        screen = await setup(app)
        await pilot.press("B")
        await until(lambda: screen.plan.config.training.batch_size == 2)
        assert "from measured steps" in card(app)


async def test_must_measuring_is_real_and_can_be_stopped(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("m")
        await until(lambda: "measuring" in card(app))
        await pilot.press("m")
        await until(lambda: not screen.measuring.doing, 30)
        assert screen.plan.measurement is None
        await pilot.press("p", "home", "enter", "m")
        await until(lambda: screen.plan.measurement is not None, 60)
        assert screen.plan.measurement.seconds_per_step > 0  # type: ignore[union-attr]
        await until(lambda: not screen.measuring.doing, 30)


# Runs to go on from


async def test_must_resume_and_fork_list(runs_dir: Path, tale: str) -> None:
    copy_recorded(runs_dir)
    trainer = GatedTrainer(recorded_events())
    app = make_app(make_workbench(runs_dir, trainer), corpus=tale)
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("f")
        await until(lambda: isinstance(app.screen, Pick))
        assert "step" in app.screen._entries[0].detail  # type: ignore[attr-defined]
        await pilot.press("enter")
        await until(lambda: isinstance(app.screen, SetupScreen))
        recorded = RunFolder.open(runs_dir / "shakespeare-cpu").read_config()
        await until(lambda: screen.plan.checked.config.training == recorded.training)
        assert screen.plan.checked.config.model == recorded.model
        await pilot.press("f", "r")
        await until(lambda: app.workbench.training.training is not None)
        await until(lambda: isinstance(app.screen, TrainingScreen))
        app.workbench.training.stop()
        trainer.release(1)
        await until(lambda: app.workbench.training.training is None)


async def test_what_was_found_stays_in_view(runs_dir: Path, tale: str) -> None:
    app = make_app(make_workbench(runs_dir), corpus=tale)
    async with app.run_test(size=(80, 24)) as pilot:
        screen = app.screen
        assert isinstance(screen, SetupScreen)
        await until(lambda: screen.facts.complete and app.workbench.torch_loader.state == "ready")
        settings = screen.query_one("#settings SettingsList", SettingsList)

        def in_view() -> bool:
            return 0 <= settings.cursor_row < settings.scrollable_content_region.height

        await pilot.press("slash", *"max", "enter")
        await until(lambda: len(settings.keys) > 20)  # the whole list again, not only what fitted
        assert settings.field.key == "training.max_seconds"
        await until(in_view)
        await pilot.press("1", "0", "enter")
        await until(lambda: screen.draft.text("training.max_seconds") == "10")
        await pilot.resize_terminal(120, 40)
        await pilot.resize_terminal(80, 24)
        await until(in_view)


async def test_a_run_begins_with_the_weights_of_another(
    runs_dir: Path, run_copy: RunFolder, tmp_path: Path
) -> None:
    """W takes shape and recipe over, u gives them back; screen and command ask for the same run."""
    text = tmp_path / "other.txt"
    text.write_text("The sea went over the king, and the wolf slept under a tree.\n" * 80)
    old = run_copy.read_config()
    app = megatron_app(runs_dir, str(text))
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        edits = screen.draft.edits
        await pilot.press("W")
        assert isinstance(app.screen, Pick)
        await pilot.press("enter")
        assert screen.plan.checked.config.model == old.model
        peak = old.training.learning_rate
        assert screen.plan.checked.config.training.learning_rate == pytest.approx(0.3 * peak)
        about = str(screen.query_one(".description", Label).render())
        assert f"begins with the weights of {run_copy.name}" in about
        await pilot.press("u")
        assert screen.draft.start is None
        assert screen.draft.edits == edits
        await pilot.press("U")
        assert screen.draft.start is not None
        screen.plan.change(screen.draft.with_values({"training.steps": 2}))
        screen.show_plan()
        command, wanted = screen.plan.command("by-command"), screen.plan.config
        await pilot.press("s")
        training = app.workbench.training
        await until(lambda: training.shown is not None, 60)
        await until(lambda: training.training is None, 60)
        run = training.shown
        assert run is not None and run.problem is None
    begun = RunFolder.open(runs_dir / f"other-from-{run_copy.name}")
    origin = begun.read_origin()
    assert origin is not None and origin.model == run_copy.name
    assert begun.state().step == 2
    assert begun.read_config() == wanted
    words = [sys.executable, "-m", "megatron_model", *command[1:]]
    subprocess.run(words, check=True, capture_output=True, timeout=120)
    assert RunFolder.open(runs_dir / "by-command").read_config() == wanted


async def test_another_shape_than_that_of_the_weights_is_refused_before_the_start(
    runs_dir: Path, run_copy: RunFolder
) -> None:
    app = megatron_app(runs_dir, "builtin:python-reference")
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("W", "enter")
        assert screen.draft.start is not None
        assert not any("model.layers" in problem for problem in screen.plan.problems)
        screen.plan.change(screen.draft.with_text("model.layers", "7"))
        assert any("model.layers is 2 in the model" in one for one in screen.plan.problems)


async def test_without_a_run_there_are_no_weights_to_begin_with(runs_dir: Path) -> None:
    app = make_app(make_workbench(runs_dir), corpus="builtin:python-reference")
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        await pilot.press("W")
        assert app.screen is screen
        assert screen.draft.start is None


async def test_several_values_make_a_sweep(
    runs_dir: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form tells its size, the question its values; then they wait in the queue."""
    started: list[Path] = []
    monkeypatch.setattr(
        "megatron_tui.services.queue.start_keeper", lambda queue: started.append(queue.runs_dir)
    )
    app = make_app(make_workbench(runs_dir), corpus=str(corpus))
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        settings = screen.query_one(SettingsList)
        settings.focus()
        settings.go_to("training.learning_rate")
        await pilot.press(*"0.01..0.04 x3 log", "enter")
        settings.go_to("training.seed")
        await pilot.press("enter", "ctrl+u", *"seeds 2", "enter")
        assert screen.plan.checked.errors == {}
        about = str(screen.query_one(".description", Label).render())
        assert "a sweep of 6 runs" in about
        command = screen.plan.command("rates")
        assert command[1] == "sweep"
        assert "training.learning_rate=0.01..0.04 x3 log" in command
        await pilot.press("ctrl+r")
        assert isinstance(app.screen, Confirm)
        await pilot.press("y")
        await until(lambda: len(started) == 1)
    entries = Queue(runs_dir).entries()
    assert [(e.config.training.learning_rate, e.config.training.seed) for e in entries] == [
        (rate, seed) for rate in (0.01, 0.02, 0.04) for seed in (1, 2)
    ]
    assert len({entry.tags for entry in entries}) == 1


async def test_an_empty_range_is_said_beside_its_field(runs_dir: Path, corpus: Path) -> None:
    app = make_app(make_workbench(runs_dir), corpus=str(corpus))
    async with app.run_test(size=WIDE):
        screen = await setup(app)
        screen.plan.change(screen.draft.with_text("training.learning_rate", "0.1..0.01 x3"))
        assert "is empty" in screen.plan.checked.errors["training.learning_rate"]


async def test_a_sweep_that_does_not_fit_is_asked_about_first(runs_dir: Path, corpus: Path) -> None:
    small = DeviceInfo("cpu", "2 CPU cores", "RAM", 1 << 30, 60 << 20, False, 1.5e11)
    app = make_app(make_workbench(runs_dir, device=small), corpus=str(corpus))
    async with app.run_test(size=WIDE) as pilot:
        screen = await setup(app)
        screen.plan.change(
            screen.draft.with_text("training.seed", "seeds 2").with_text("model.embed_dim", "1024")
        )
        assert screen.plan.problems
        await pilot.press("ctrl+r")
        await until(lambda: isinstance(app.screen, Confirm))
        assert "preflight objects" in shown(app.screen)
        await pilot.press("y")
        await until(lambda: "a sweep of 2 runs" in shown(app.screen))
        await pilot.press("n")
        assert app.screen is screen
    assert not Queue(runs_dir).path.exists()


def test_a_second_sweep_of_a_text_has_a_name_of_its_own(
    runs_dir: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("megatron_tui.services.queue.start_keeper", lambda queue: None)
    config = with_settings(RunConfig(), {"data.corpus": str(corpus)})
    for seeds in ([1, 2], [3, 4]):
        swept(runs_dir, "tale-sweep", grid(config, {"training.seed": seeds}))
    tags = [entry.tags for entry in Queue(runs_dir).entries()]
    assert tags == [("sweep-tale-sweep",)] * 2 + [("sweep-tale-sweep-2",)] * 2
