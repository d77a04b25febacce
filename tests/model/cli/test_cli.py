"""The command line: exit statuses, what goes to which stream, and one line for every mistake."""

from __future__ import annotations

import io
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

from megatron_model import __version__
from megatron_model.cli import parser as cli
from megatron_model.config.fields import config_to_toml, differences, with_settings
from megatron_model.config.presets import MOST_EPOCHS
from megatron_model.events.schema import (
    CheckpointSaved,
    Evaluated,
    RunFinished,
    WeightsTakenOver,
    decode_event,
    encode_event,
)
from megatron_model.run.checkpoint import load_model, load_weights
from megatron_model.run.folder import MODEL_FILE, RunFolder, find_model
from tests.model.helpers import tiny_config, train


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
    ("model.layers=١٢", ["model.layers", "whole number"]),
    ("model.layers=1_0_", ["model.layers", "whole number", "1_0_"]),
    ("model.layers=1__0", ["model.layers", "whole number"]),
    ("training.learning_rate=０.1", ["training.learning_rate", "a number"]),
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
        (["train", "{corpus}", "--preset", ""], ["preset", "smoke"]),
        (["preflight", "{corpus}", "--preset", ""], ["preset", "smoke"]),
        (["train", "{corpus}", "--max-seconds", "٣"], ["--max-seconds"]),
        (["train", "{corpus}", "--max-restarts", "1_"], ["--max-restarts"]),
        (["preflight", "{corpus}", "--interconnect", "0"], ["--interconnect", "above 0"]),
        (["preflight", "{corpus}", "--device-memory", "9" * 400], ["--device-memory"]),
        (["preflight", "{corpus}", "--device-memory", "0GiB"], ["--device-memory", "above 0"]),
        (
            ["preflight", "{corpus}", "--device-memory", "1GiB", "--device-rate", ""],
            ["--device-rate", "above 0"],
        ),
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


LONG = "long " * 2000


@pytest.mark.parametrize(
    "arguments",
    [
        ["x" * 10_000],
        ["train", "{corpus}", "--preset", LONG],
        ["train", "{corpus}", "--set", LONG],
        ["train", "{corpus}", "--set", f"model.{LONG}=1"],
        ["train", "{corpus}", "--set", f"model.layers={LONG}"],
        ["train", "{corpus}", "--set", f"data.encoding={LONG}"],
        ["train", "{corpus}", "--set", f"training.device={LONG}"],
        ["train", "{corpus}", "--name", f"a/{LONG}"],
        ["train", "{corpus}", "--max-seconds", LONG],
        ["train", "{corpus}", "--config", LONG],
        ["train", LONG],
        ["train", "--resume", LONG],
        ["sample", LONG],
        ["sample", "x" * 10_000],
        ["preflight", "{corpus}", "--interconnect", LONG],
        ["export", "nothing", LONG],
        ["tell", LONG, "stop"],
        ["tell", "nothing", LONG],
    ],
    ids=lambda arguments: " ".join(arguments)[:40],
)
def test_a_long_argument_is_not_repeated_at_length(
    run: Run, corpus: Path, arguments: list[str]
) -> None:
    result = run(*[argument.replace("{corpus}", str(corpus)) for argument in arguments])
    assert_refused(result)
    assert len(result.err) < 1200


def test_evaluate_says_that_the_corpus_has_changed(
    run: Run, run_copy: RunFolder, corpus: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own.txt"
    own.write_bytes(corpus.read_bytes())
    moved = with_settings(run_copy.read_config(), {"data.corpus": str(own)})
    run_copy.write_config(moved, fingerprint=run_copy.read_corpus_fingerprint())
    for path in run_copy.checkpoints():
        shutil.rmtree(path.path)
    train(run_copy)
    same = run("evaluate", run_copy.name, "--json")
    assert (same.status, same.err) == (0, "")
    assert json.loads(same.out)["corpus_changed"] is False
    own.write_text(own.read_text() + own.read_text()[:300])
    other = run("evaluate", run_copy.name, "--json")
    assert other.status == 0
    assert json.loads(other.out)["corpus_changed"] is True
    assert f"{own} has changed" in other.err
    # Another text was asked for: nothing to say about it.
    asked = run("evaluate", run_copy.name, own, "--json")
    assert json.loads(asked.out)["corpus_changed"] is False
    assert asked.err == ""


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
    assert "finished: all 4 steps are done" in result.err
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
    config = RunFolder(runs_dir / "mixed").read_config()
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
    assert RunFolder(runs_dir / "tale-tiny").read_config().data.corpus == str(corpus)


def test_a_corpus_that_moved_can_be_named_anew(
    run: Run, run_copy: RunFolder, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(corpus, tmp_path / "moved.txt")
    monkeypatch.chdir(tmp_path)
    changes = ["--set", "data.corpus=moved.txt", "--set", "training.steps=19"]
    assert run("train", "--resume", run_copy.name, *changes).status == 0
    assert run_copy.read_config().data.corpus == str(tmp_path / "moved.txt")
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
    with run_copy.events_path.open("ab") as file:
        file.write(encode_event(RunFinished(step=9, reason="stopped", elapsed_seconds=1.0)))
    assert json.loads(run("runs", "--json").out)["status"] == "stopped"
    assert " stopped " in run("runs").out


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
    assert "memorize" in said.err


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
        try:
            for line in trainer.stdout:
                if '"step_finished"' in line:
                    break
            trainer.send_signal(number)
            out, err = trainer.communicate()
        finally:
            trainer.kill()
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


# Terminals, texts and files that are not as one would wish


@pytest.fixture(scope="module")
def accented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run, hardly trained, on a text beyond ASCII."""
    folder = tmp_path_factory.mktemp("accented")
    (folder / "été.txt").write_text("déjà vu à l'été\n" * 40, encoding="utf-8")
    config = tiny_config({"data.corpus": str(folder / "été.txt"), "training.steps": 1})
    made = RunFolder.create(folder / "runs", "été", config)
    train(made)
    return made.path


ASCII = (
    {"PYTHONIOENCODING": "ascii"},
    {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
)


@pytest.mark.parametrize("environment", ASCII, ids=["PYTHONIOENCODING", "LC_ALL"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["sample", "{run}", "--prompt", "déjà", "--max-new-tokens", "20"],
        ["sample", "{run}", "--prompt", "日"],
        ["runs", "--runs-dir", "{runs}"],
        ["train", "--resume", "été2", "--runs-dir", "{runs}"],
    ],
    ids=["sample", "unknown", "runs", "refused"],
)
@pytest.mark.slow
def test_nothing_is_a_traceback_in_ascii(
    accented: Path, environment: dict[str, str], arguments: list[str]
) -> None:
    filled = [a.format(run=accented, runs=accented.parent) for a in arguments]
    done = subprocess.run(
        [sys.executable, "-m", "megatron_model", *filled],
        env={**os.environ, **environment},
        capture_output=True,
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    assert (done.stdout + done.stderr).isascii()
    assert done.returncode == (2 if "日" in filled or "été2" in filled else 0)


def test_a_stream_that_knows_only_ascii_gets_escapes(
    accented: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    words = ["megatron-model", "sample", str(accented), "--prompt", "déjà", "--max-new-tokens", "1"]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 0
    assert out.getvalue().startswith(b"d\\xe9j\\xe0")


@pytest.mark.parametrize("given", ["stdin", "argument"])
def test_a_prompt_has_the_line_ends_of_a_corpus(
    run: Run, finished_run: RunFolder, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    prompt = "The sea\r\nand a king\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(prompt.encode())))
    asked = "-" if given == "stdin" else prompt
    done = run("sample", finished_run.path, "--prompt", asked, "--max-new-tokens", "0")
    ending = "" if given == "stdin" else "\n"
    assert (done.status, done.out) == (0, "The sea\nand a king" + ending + "\n"), done.err


def test_settings_are_taken_from_a_run(
    run: Run, finished_run: RunFolder, corpus: Path, runs_dir: Path
) -> None:
    settings = finished_run.path / "run.toml"
    done = run("train", corpus, "--config", settings, "--set", "training.steps=1", "--name", "a")
    assert done.status == 0, done.err
    new, old = RunFolder.open(runs_dir / "a"), finished_run.read_config()
    assert differences(new.read_config(), old) == {"training.steps": (old.training.steps, 1)}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_a_run_is_fitted_to_characters_not_to_bytes(
    run: Run, tmp_path: Path, runs_dir: Path, encoding: str
) -> None:
    text = tmp_path / f"{encoding}.txt"
    text.write_bytes(("吾輩は猫である。\n" * 3000).encode(encoding))
    said = json.loads(run("preflight", text, "--preset", "cpu", "--json").out)
    assert said["training_characters"] + said["validation_characters"] == 27_000
    assert said["epochs"] == pytest.approx(MOST_EPOCHS, rel=0.15)
    assert said["warnings"] == []
    options = ["--preset", "cpu", "--set", "training.max_seconds=0.001", "--name", "a"]
    assert run("train", text, *options).status == 0
    assert RunFolder.open(runs_dir / "a").read_config().training.steps == 198


def test_what_was_made_of_a_folder_is_said(run: Run, tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("1.txt", "2.txt", "10.txt"):
        (folder / name).write_text("the sea\u200b " * 100)
    (folder / "picture").write_bytes(b"\0")
    for verb in ("preflight", "train"):
        done = run(verb, folder, "--config", tiny, "--set", "training.steps=1")
        assert done.status == 0
        assert "Joined 3 files in the order 1.txt to 10.txt, with 2 line ends put" in done.err
        assert "Left out: 1 no text (picture)." in done.err
        assert "Invisible characters: 300 U+200B ZERO WIDTH SPACE." in done.err


def test_damaged_bytes_are_passed_over_on_request(
    run: Run, tiny: Path, corpus: Path, tmp_path: Path
) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes(b"\xff" + corpus.read_bytes() + b"\xff")
    assert_refused(run("train", text, "--config", tiny), "2 such places", "data.errors=replace")
    options = ["--config", tiny, "--set", "data.errors=drop", "--set", "training.steps=1"]
    done = run("train", text, *options, "--name", "a")
    assert done.status == 0
    assert "Replaced or dropped 2 damaged places" in done.err
    evaluated = run("evaluate", "a", "--json")
    assert evaluated.status == 0, evaluated.err


def test_evaluate_finds_a_moved_text_as_it_says(run: Run, tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_bytes("Là-bas, l'été, les garçons déçus.\n".encode("cp1252") * 60)
    options = ["--config", tiny, "--set", "data.encoding=cp1252", "--set", "training.steps=1"]
    assert run("train", text, *options, "--name", "a").status == 0
    before = run("evaluate", "a", "--json")
    text.rename(tmp_path / "moved.txt")
    assert_refused(run("evaluate", "a"), "a.txt", "evaluate MODEL CORPUS")
    assert run("evaluate", "a", tmp_path / "moved.txt", "--json").out == before.out
    (tmp_path / "b.txt").write_bytes(b"\x81" * 99)
    result = run("evaluate", "a", tmp_path / "b.txt")
    assert_refused(result, "b.txt is not valid utf-8", "make it UTF-8 first")


# Going on from a model


def test_a_run_goes_on_from_another_ones_weights(
    run: Run, run_copy: RunFolder, runs_dir: Path, tmp_path: Path
) -> None:
    text = tmp_path / "more.txt"
    text.write_text("Sea and sky, sea and sky; ¿when?\n" * 40, encoding="utf-8")
    few = ("--set", "training.steps=3", "--set", "training.threads=1")
    result = run("train", text, "--from", run_copy.name, *few, "--json")
    assert result.status == 0
    happened = [decode_event(line) for line in result.out.encode().splitlines()]
    (taken,) = [event for event in happened if isinstance(event, WeightsTakenOver)]
    assert taken.model == run_copy.name
    assert "¿" in taken.new_characters
    assert (run_copy.path.parent / f"more-from-{run_copy.name}").is_dir()

    before = contents(run_copy.path.parent)
    plan = run("preflight", text, "--from", run_copy.name, "--json")
    made = load_model(find_model(f"more-from-{run_copy.name}", runs_dir), "cpu").model
    assert json.loads(plan.out)["parameters"] == sum(value.numel() for value in made.parameters())
    assert_refused(
        run("train", text, "--from", run_copy.name, "--set", "model.layers=5"),
        "model.layers is 2 in the model",
    )
    assert_refused(run("train", text, "--from", "nothing"), 'no run "nothing"')
    assert_refused(run("train", text, "--from-corpus", text), "--from-corpus belongs to --from")
    assert_refused(
        run("train", text, "--from", run_copy.name, "--from-corpus", text), "carries its vocabulary"
    )
    assert_refused(run("train", "--resume", run_copy.name, "--from", run_copy.name), "--resume")
    assert contents(run_copy.path.parent) == before


def test_what_the_original_program_left_behind(
    run: Run, corpus: Path, runs_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config({"data.corpus": str(corpus), "model.architecture": "classic"})
    train(RunFolder.create(runs_dir, "old", config))
    assert run("export", "old", tmp_path / "megatron_trained_model.pt").status == 0
    monkeypatch.chdir(tmp_path)
    written = run("sample", "megatron_trained_model.pt", "--corpus", corpus, "--max-new-tokens", 5)
    assert (written.status, len(written.out.rstrip("\n"))) == (0, 5)
    measured = run("evaluate", "megatron_trained_model.pt", corpus, "--json")
    assert 0 < json.loads(measured.out)["val_loss"] < 4
    for words in (["sample"], ["evaluate"]):
        assert_refused(run(*words, "megatron_trained_model.pt"), "has no vocabulary")

    shutil.copy(corpus, "data.txt")
    assert_refused(run("train"), "Did you mean megatron-model train data.txt?")
    assert_refused(run("data.txt"), "to train on it: megatron-model train data.txt")
    assert_refused(run("train.py"), 'Did you mean "train"?')
