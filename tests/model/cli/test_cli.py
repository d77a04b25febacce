"""The command line: exit statuses, what goes to which stream, and one line for every mistake."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from megatron_model import __version__, cli
from megatron_model.checkpoint import load_model, load_weights
from megatron_model.config import config_to_toml
from megatron_model.events import CheckpointSaved, Evaluated, RunFinished, decode_event
from megatron_model.run_folder import MODEL_FILE, RunFolder
from tests.model.helpers import tiny_config


class Result(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], runs_dir: Path
) -> Iterator[Run]:
    """Run the command line in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def run_once(*arguments: str | Path) -> Result:
        monkeypatch.setattr(sys, "argv", ["megatron-model", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        status = ended.value.code
        assert isinstance(status, int)
        return Result(status, *capsys.readouterr())

    yield run_once
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A configuration file of the tiniest run."""
    path = tmp_path_factory.mktemp("settings") / "tiny.toml"
    path.write_text(config_to_toml(tiny_config()), encoding="utf-8")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_refused(result: Result, *words: str) -> None:
    assert (result.status, result.out) == (2, "")
    lines = result.err.splitlines()
    assert len(lines) == 1, result.err
    assert lines[0].startswith("megatron-model")
    assert "Traceback" not in result.err
    for word in words:
        assert word in lines[0]


# What is refused


def test_a_corpus_that_does_not_exist(run: Run, tiny: Path, corpus: Path, runs_dir: Path) -> None:
    result = run("train", corpus.with_name("tal.txt"), "--config", tiny)
    assert_refused(result, "tal.txt", 'Did you mean "tale.txt"?')
    assert not runs_dir.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["empty"]),
        (b"\x7fELF\0\0\0\0\1\2\3" * 50, ["binary"]),
        ("Là-bas, l'été, les garçons déçus. ".encode("latin-1") * 60, ["data.encoding"]),
        (b"too short", ["model.block_size", "9"]),
    ],
    ids=["empty", "binary", "undecodable", "short"],
)
def test_a_corpus_that_cannot_be_learnt(
    run: Run, tiny: Path, tmp_path: Path, runs_dir: Path, content: bytes, words: list[str]
) -> None:
    path = tmp_path / "text"
    path.write_bytes(content)
    assert_refused(run("train", path, "--config", tiny), *words)
    assert contents(runs_dir) == {}
    assert list(runs_dir.glob("*")) == []
    assert path.read_bytes() == content


def test_a_corpus_whose_name_is_no_text(
    run: Run, tiny: Path, tmp_path: Path, corpus: Path, runs_dir: Path
) -> None:
    path = tmp_path / os.fsdecode(b"caf\xe9.txt")
    shutil.copy(corpus, path)
    assert_refused(run("train", path, "--config", tiny), "data.corpus", "UTF-8")
    assert not runs_dir.exists()


SETTINGS = [
    ("model.heads=3", ["model.embed_dim (16)", "model.heads (3)", "15 would be"]),
    ("model.layer=3", ['Unknown setting "model.layer"', 'Did you mean "model.layers"?']),
    ("model.layers", ["KEY=VALUE"]),
    ("model.layers=many", ["model.layers", "whole number", "many"]),
    ("model.layers=0", ["model.layers is 0", "at least 1"]),
    ("model.ff_dim=100000000000000000000", ["model.ff_dim", "at most"]),
    ("model.architecture=moden", ['Did you mean "modern"?']),
    ("training.learning_rate=nan", ["training.learning_rate", "finite"]),
    ("training.learning_rate=0,001", ["training.learning_rate", "0,001"]),
    ("training.device=cuda:99", ["training.device", "cuda:99"]),
    ("training.device=cpu:", ["training.device", "cpu:"]),
    ("data.encoding=utf-9", ["data.encoding", 'Did you mean "utf-8"?']),
    ("training.sample_prompt=\udcff", ["training.sample_prompt", "UTF-8"]),
]


@pytest.mark.parametrize(("setting", "words"), SETTINGS, ids=[ascii(s) for s, _ in SETTINGS])
def test_a_setting_that_makes_no_sense(
    run: Run, tiny: Path, corpus: Path, runs_dir: Path, setting: str, words: list[str]
) -> None:
    assert_refused(run("train", corpus, "--config", tiny, "--set", setting), *words)
    assert list(runs_dir.glob("*")) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ['Unknown verb "trian"', 'Did you mean "train"?']),
        ([], ["VERB"]),
        (["train"], ["CORPUS"]),
        (["train", "{corpus}", "--preset", "smok"], ['"smok"', 'Did you mean "smoke"?']),
        (["train", "{corpus}", "--presets", "cpu"], ["--presets"]),
        (["train", "{corpus}", "--config", "no.toml"], ["no.toml"]),
        (["train", "{corpus}", "--max-seconds", "long"], ["--max-seconds", "long"]),
        (["train", "{corpus}", "--max-seconds=-1"], ["training.max_seconds", "at least 0"]),
        (["train", "{corpus}", "--name", "a/b"], ["a/b", "run name"]),
        (["train", "{corpus}", "--name", ""], ["name"]),
        (["train", "{corpus}", "--runs-dir", "{corpus}"], ["tale.txt"]),
        (["train", "builtin:python-refrence"], ['Did you mean "builtin:python-reference"?']),
        (["train", "--resume", "nothing"], ['no run "nothing"']),
        (["train", "{corpus}", "--resume", "nothing"], ["--resume"]),
        (["sample", "nothing"], ['no run "nothing"']),
        (["sample", "x" * 300], ["no run"]),
        (["sample", "{corpus}"], ["tale.txt", ".safetensors"]),
        (["evaluate", "nothing"], ['no run "nothing"']),
        (["export", "nothing", "a.pt"], ['no run "nothing"']),
        (["export", "nothing", "a.bin"], ["a.bin", ".pt or .safetensors"]),
        (["preflight", "{corpus}.gone"], ["tale.txt"]),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_a_command_line_that_makes_no_sense(
    run: Run, corpus: Path, runs_dir: Path, arguments: list[str], words: list[str]
) -> None:
    filled = [argument.replace("{corpus}", str(corpus)) for argument in arguments]
    assert_refused(run(*filled), *words)
    assert list(runs_dir.glob("*")) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[model]\nlayers = 1\nlayer = 2", ["model.layer"]),
        ("[model]\nlayers = 'two'", ["model.layers", "whole number"]),
        ("[modell]\n", ['Did you mean "model"?']),
        ("[model\n", ["not valid TOML"]),
        ("\udcff", ["not valid TOML"]),
    ],
)
def test_a_configuration_file_that_makes_no_sense(
    run: Run, corpus: Path, tmp_path: Path, text: str, words: list[str]
) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    assert_refused(run("train", corpus, "--config", path), "settings.toml", *words)


def test_a_name_that_is_taken(
    run: Run, tiny: Path, corpus: Path, run_copy: RunFolder, runs_dir: Path
) -> None:
    before = contents(runs_dir)
    result = run("train", corpus, "--config", tiny, "--name", run_copy.name)
    assert_refused(result, f'"{run_copy.name}" exists', "resume")
    assert contents(runs_dir) == before


@pytest.mark.parametrize(
    ("setting", "word"),
    [
        ("model.layers=1", "model.layers cannot change"),
        ("training.optimizer=muon", "training.optimizer cannot change"),
        ("data.corpus={other}", "has changed"),
        ("data.corpus=/nowhere", "/nowhere"),
        ("training.device=cuda:99", "cuda:99"),
    ],
)
def test_a_resume_that_makes_no_sense_harms_nothing(
    run: Run, run_copy: RunFolder, runs_dir: Path, tmp_path: Path, setting: str, word: str
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("another text altogether\n" * 100)
    before = contents(runs_dir)
    filled = setting.replace("{other}", str(other))
    assert_refused(run("train", "--resume", run_copy.name, "--set", filled), word)
    after = contents(runs_dir)
    after.pop(str(run_copy.path / "lock"), None)
    before.pop(str(run_copy.path / "lock"), None)
    assert after == before


def test_a_prompt_with_characters_the_model_never_saw(run: Run, finished_run: RunFolder) -> None:
    result = run("sample", finished_run.path, "--prompt", "the 雪")
    assert_refused(result, "雪", "U+96EA")
    kept = run(
        "sample", finished_run.path, "--prompt=the 雪", "--drop-unknown", "--max-new-tokens=5"
    )
    assert kept.status == 0
    assert kept.out.startswith("the ")


@pytest.mark.parametrize(
    ("option", "value"),
    [("temperature", "-1"), ("top-p", "2"), ("min-p", "x"), ("seed", "1.5"), ("top-k", "-3")],
)
def test_a_way_of_sampling_that_makes_no_sense(
    run: Run, finished_run: RunFolder, option: str, value: str
) -> None:
    result = run("sample", finished_run.path, f"--{option}={value}")
    assert_refused(result, option.replace("-", "_"))


def test_a_damaged_model(run: Run, run_copy: RunFolder) -> None:
    path = run_copy.checkpoints()[-1].path / MODEL_FILE
    path.write_bytes(path.read_bytes()[:-9])
    assert_refused(run("sample", path), str(path))
    assert_refused(run("evaluate", path), str(path))
    assert_refused(run("export", path, run_copy.path / "a.pt"), str(path))


def test_an_output_that_cannot_be_written(run: Run, finished_run: RunFolder) -> None:
    assert_refused(run("export", finished_run.path, "/nowhere/a.pt"), "/nowhere/a.pt")


def test_a_corpus_the_model_cannot_read(run: Run, finished_run: RunFolder, tmp_path: Path) -> None:
    path = tmp_path / "foreign.txt"
    path.write_text("Ω und so weiter\n" * 50, encoding="utf-8")
    assert_refused(run("evaluate", finished_run.path, path), "The corpus", "Ω")


# What is done


def test_training_prints_for_people_on_stderr(run: Run, tiny: Path, corpus: Path) -> None:
    result = run("train", corpus, "--config", tiny, "--set", "training.steps=4")
    assert (result.status, result.out) == (0, "")
    assert "step       2  loss " in result.err
    assert "completed at step 4" in result.err
    assert "Traceback" not in result.err


def test_json_is_the_event_lines_alone(run: Run, tiny: Path, corpus: Path, runs_dir: Path) -> None:
    result = run("train", corpus, "--config", tiny, "--json", "--set", "training.steps=4")
    assert result.status == 0
    lines = result.out.splitlines(keepends=True)
    assert all(decode_event(line.encode()) is not None for line in lines)
    begun = next(i for i, line in enumerate(lines) if '"run_started"' in line)
    log = RunFolder(runs_dir / "tale-tiny").events_path.read_text(encoding="utf-8")
    assert "".join(lines[begun:]) == log


def test_settings_come_from_preset_file_and_command_line_in_this_order(
    run: Run, corpus: Path, tmp_path: Path, runs_dir: Path
) -> None:
    path = tmp_path / "small.toml"
    path.write_text("[model]\nlayers = 1\nembed_dim = 8\nheads = 2\n[training]\nsteps = 1\n")
    arguments = ["--config", str(path), "--set", "model.embed_dim=12", "--set", "model.ff_dim=8"]
    assert run("train", corpus, "--preset", "smoke", *arguments, "--name", "mixed").status == 0
    config = RunFolder(runs_dir / "mixed").config
    assert (config.model.layers, config.model.embed_dim, config.model.heads) == (1, 12, 2)
    assert config.model.architecture == "modern"
    assert config.data.corpus == str(corpus)


def test_runs_without_a_name_are_numbered(
    run: Run, tiny: Path, corpus: Path, runs_dir: Path
) -> None:
    for _ in range(2):
        run("train", corpus, "--config", tiny, "--set", "training.steps=1")
    assert sorted(path.name for path in runs_dir.iterdir()) == ["tale-tiny", "tale-tiny-2"]


def test_the_time_budget_is_a_setting(run: Run, tiny: Path, corpus: Path, runs_dir: Path) -> None:
    result = run("train", corpus, "--config", tiny, "--max-seconds", "0.2", "--json")
    assert result.status == 0
    finished = decode_event(result.out.splitlines()[-1].encode())
    assert isinstance(finished, RunFinished)
    assert finished.reason == "budget"
    events = RunFolder(runs_dir / "tale-tiny").read_events()[0]
    for kind in (Evaluated, CheckpointSaved):
        assert [event.step for event in events if isinstance(event, kind)][-1] == finished.step


def test_a_home_folder_is_meant_by_a_tilde(
    run: Run, tiny: Path, corpus: Path, runs_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(corpus.parent))
    assert run("train", "~/tale.txt", "--config", tiny, "--set", "training.steps=1").status == 0
    assert RunFolder(runs_dir / "tale-tiny").config.data.corpus == str(corpus)


def test_a_corpus_that_moved_can_be_named_anew(
    run: Run, run_copy: RunFolder, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(corpus, tmp_path / "moved.txt")
    monkeypatch.chdir(tmp_path)
    changes = ["--set", "data.corpus=moved.txt", "--set", "training.steps=19"]
    assert run("train", "--resume", run_copy.name, *changes).status == 0
    assert run_copy.config.data.corpus == str(tmp_path / "moved.txt")
    assert run_copy.state().step == 19


def test_evaluate_prints_the_loss_of_the_log(run: Run, finished_run: RunFolder) -> None:
    state = finished_run.state()
    evaluated = dict(zip(state.val_loss.steps, state.val_loss.values, strict=True))
    for checkpoint in finished_run.checkpoints():
        if checkpoint.val_loss is None:
            continue
        result = run("evaluate", checkpoint.path)
        assert result.status == 0
        assert result.out.startswith(f"validation loss {evaluated[checkpoint.step]:.4f},")
    best = json.loads(run("evaluate", finished_run.path, "--json").out)
    assert best["val_loss"] == pytest.approx(state.best_val_loss, abs=1e-6)
    assert best["step"] == state.best_step
    assert best["bits_per_character"] == pytest.approx(best["val_loss"] / 0.6931472, rel=1e-6)


def test_sample_prints_the_text_alone(run: Run, finished_run: RunFolder) -> None:
    first = run("sample", finished_run.path, "--prompt", "the ", "--max-new-tokens", "30")
    assert (first.status, first.err) == (0, "")
    assert first.out.startswith("the ")
    assert len(first.out) == len("the ") + 30 + len("\n")
    assert run("sample", finished_run.path, "--prompt", "the ", "--max-new-tokens", "30") == first
    other = run("sample", finished_run.path, "--prompt=the ", "--max-new-tokens=30", "--seed=5")
    assert other.out != first.out
    assert run("sample", finished_run.path, "--max-new-tokens", "0").out == "\n"


def test_sample_reads_a_run_a_checkpoint_or_a_file(run: Run, run_copy: RunFolder) -> None:
    best = run_copy.best_checkpoint()
    assert best is not None
    specs = [run_copy.name, run_copy.path, best.path, best.path / MODEL_FILE]
    texts = {run("sample", spec, "--max-new-tokens", "10").out for spec in specs}
    assert len(texts) == 1


def test_the_runs_are_listed(run: Run, run_copy: RunFolder, finished_run: RunFolder) -> None:
    listed = [json.loads(line) for line in run("runs", "--json").out.splitlines()]
    assert [(r["name"], r["status"], r["step"], r["steps"]) for r in listed] == [
        (run_copy.name, "finished", 18, 18)
    ]
    assert listed[0]["best_val_loss"] == finished_run.state().best_val_loss
    assert run_copy.name in run("runs").out
    with run_copy.events_path.open("rb+") as file:
        lines = file.readlines()
        file.truncate(len(b"".join(lines[:-1])))  # as after a kill
    assert json.loads(run("runs", "--json").out)["status"] == "interrupted"


def test_no_runs_are_listed_where_there_are_none(run: Run) -> None:
    assert run("runs") == (0, "", "")


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_model_is_exported(
    run: Run, finished_run: RunFolder, tmp_path: Path, ending: str
) -> None:
    output = tmp_path / f"model.{ending}"
    assert run("export", finished_run.path, output).status == 0
    best = finished_run.best_checkpoint()
    assert best is not None
    wanted = load_weights(best.path)
    if ending == "pt":
        found = torch.load(output, weights_only=True)
    else:
        found = load_model(output).model.state_dict()
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_the_preflight_says_what_a_run_costs(run: Run, tiny: Path, corpus: Path) -> None:
    result = run("preflight", corpus, "--config", tiny, "--json")
    assert result.status == 0
    cost = json.loads(result.out)
    assert cost["characters_per_step"] == 4 * 16
    assert cost["fits"] is True
    assert cost["seconds"] > 0
    said = run("preflight", corpus, "--config", tiny, "--set", "training.steps=100000")
    assert f"{cost['parameters']:,}" in said.out
    assert "by heart" in said.err


@pytest.mark.parametrize("verb", ["", "train", "sample", "evaluate", "preflight", "runs", "export"])
def test_help_is_printed(run: Run, verb: str) -> None:
    result = run(*verb.split(), "--help")
    assert (result.status, result.err) == (0, "")
    assert result.out.startswith(f"usage: megatron-model {verb}".rstrip())


def test_the_version_is_printed(run: Run) -> None:
    assert run("--version") == (0, f"megatron-model {__version__}\n", "")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["term", "int"]
)
def test_a_signal_saves_and_stops(
    run: Run, tiny: Path, corpus: Path, runs_dir: Path, number: int, status: int
) -> None:
    command = [sys.executable, "-m", "megatron_model", "train", str(corpus), "--config", str(tiny)]
    command += ["--set", "training.steps=1000000", "--name", "long", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as trainer:
        assert trainer.stdout is not None
        for line in trainer.stdout:
            if '"step_finished"' in line:
                break
        trainer.send_signal(number)
        out, err = trainer.communicate()
    assert trainer.returncode == status
    assert "Traceback" not in err
    finished = decode_event(out.splitlines()[-1].encode())
    assert isinstance(finished, RunFinished)
    assert finished.reason == "stopped"
    folder = RunFolder(runs_dir / "long")
    latest = folder.latest_checkpoint()
    assert latest is not None
    assert latest.step == finished.step
    more = f"training.steps={finished.step + 2}"
    assert run("train", "--resume", "long", "--set", more).status == 0
    assert folder.state().step == finished.step + 2
