"""Real trainers and workbenches where a file system or a user lacks something."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from megatron_model.config.fields import config_to_toml
from megatron_model.events.schema import Notice, RunFinished
from megatron_model.run.folder import RunFolder
from tests.model.helpers import tiny_config
from tests.survival.processes import (
    Terminal,
    make_run,
    start_trainer,
    wait_for,
    wait_for_reports,
)

pytestmark = pytest.mark.slow
COMPILER = shutil.which("cc") or shutil.which("gcc")
NOBODY = 54321


def may_mount() -> bool:
    command = ["unshare", "-m", "sh", "-c", "mount -t tmpfs none /mnt"]
    return shutil.which("unshare") is not None and not subprocess.call(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> str:
    if COMPILER is None or sys.platform != "linux":
        pytest.skip("no C compiler, or no LD_PRELOAD")
    path = tmp_path_factory.mktemp("shim") / "faults.so"
    source = Path(__file__).with_name("faults.c")
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"], check=True)
    return str(path)


@pytest.fixture
def settings(tmp_path: Path, corpus: Path) -> Path:
    path = tmp_path / "settings.toml"
    changes = {"data.corpus": str(corpus), "training.optimizer": "muon", "training.steps": 8}
    path.write_text(config_to_toml(tiny_config(changes)), encoding="utf-8")
    return path


def megatron(
    *words: object, env: Mapping[str, str] | None = None, before: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    command = [*before, sys.executable, "-m", "megatron_model", *map(str, words)]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **(env or {})}
    )


def notices(folder: RunFolder) -> list[str]:
    return [event.text for event in folder.read_events()[0] if isinstance(event, Notice)]


def test_a_run_on_a_poor_file_system_is_trained(
    shim: str, runs_dir: Path, corpus: Path, settings: Path
) -> None:
    env = {"LD_PRELOAD": shim, "FAULTS": "flock fsyncdir chmod"}
    done = megatron("train", corpus, "--config", settings, "--name", "poor", env=env)
    assert done.returncode == 0, done.stderr
    folder = RunFolder.open(runs_dir / "poor")
    assert isinstance(folder.read_events()[0][-1], RunFinished)
    for words in ("no locks", "folders to disk", "made private"):
        assert sum(words in text for text in notices(folder)) == 1, words
        assert done.stderr.count(words) == 1


def test_without_locks_a_second_trainer_is_refused_and_a_killed_one_is_gone(
    shim: str, runs_dir: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", shim)
    monkeypatch.setenv("FAULTS", "flock")
    folder = make_run(runs_dir, corpus)
    with start_trainer(folder) as trainer:
        wait_for_reports(folder, 2)
        done = megatron("train", "--resume", folder.name)
        assert done.returncode == 2
        assert "is being trained by another process" in done.stderr
        assert megatron("tell", folder.name, "save").returncode == 0
        wait_for(lambda: folder.latest_checkpoint(), "the checkpoint that was asked for")
        trainer.send_signal(signal.SIGKILL)
        trainer.wait()
    assert "No process trains" in megatron("tell", folder.name, "stop").stderr
    with start_trainer(folder):
        wait_for_reports(folder, 2)


def test_a_run_that_is_deleted_ends_its_trainer(runs_dir: Path, corpus: Path) -> None:
    folder = make_run(runs_dir, corpus)
    with start_trainer(folder) as trainer:
        wait_for_reports(folder, 2)
        shutil.rmtree(folder.path)
        assert trainer.wait(60) == 1
    assert not folder.path.exists()


def test_a_user_without_a_home_trains(
    corpus: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can be somebody else")
    before = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    if subprocess.call([*before, sys.executable, "-c", "import megatron_model, torch"]):
        pytest.skip("another user cannot run this Python")
    place = Path(tempfile.mkdtemp(prefix="megatron-"))  # pytest's own folders are root's alone
    try:
        for path in (corpus, settings):
            shutil.copy(path, place / path.name)
        for path in (place, *place.iterdir()):
            os.chown(path, NOBODY, NOBODY)
        for name in ("HOME", "XDG_STATE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"):
            monkeypatch.delenv(name)
        monkeypatch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        words = ("train", place / corpus.name, "--config", place / settings.name)
        monkeypatch.delenv("MEGATRON_RUNS_DIR")
        done = megatron(*words, before=before)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert "--runs-dir DIR or MEGATRON_RUNS_DIR" in done.stderr
        done = megatron(*words, "--name", "a", "--runs-dir", place / "runs", before=before)
        assert done.returncode == 0, done.stderr
        assert (place / "runs" / "a" / "megatron_trained_model.pt").exists()
    finally:
        shutil.rmtree(place)


def test_what_may_not_be_written_is_refused_in_one_sentence(
    corpus: Path, settings: Path, tmp_path: Path
) -> None:
    before: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root may write everywhere")
        before = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    words = ("train", corpus, "--config", settings, "--name", "a")
    done = megatron(*words, "--runs-dir", closed, before=before)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert f"Cannot make {closed}/a: Permission denied." in done.stderr
    assert list(closed.iterdir()) == []
    env = {"XDG_CACHE_HOME": str(closed)}
    done = megatron(*words, "--runs-dir", tmp_path / "runs", before=before, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Cannot write the token cache") == 1


def test_on_a_full_disk_nothing_is_left_and_the_reason_is_true(
    corpus: Path, tmp_path: Path
) -> None:
    if not may_mount():
        pytest.skip("mounts are not permitted here")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = (
        f"mount -t tmpfs -o size=64k none {disk} && head -c 60k /dev/zero > {disk}/fill; "
        f"{sys.executable} -m megatron_model train {corpus} --preset smoke --runs-dir {disk}/runs; "
        f"echo status $?; find {disk} -type f | grep -v fill"
    )
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.stdout == "status 2\n", done.stdout + done.stderr
    (line,) = done.stderr.splitlines()
    assert "No space left on device" in line


@pytest.mark.parametrize("way", ["read-only", "full"])
def test_the_workbench_opens_in_a_home_that_takes_nothing(
    tmp_path: Path, runs_dir: Path, run_copy: RunFolder, way: str
) -> None:
    if not may_mount():
        pytest.skip("mounts are not permitted here")
    # A short path: the notice must show the log's name unbroken at any width of `tmp_path`.
    home = Path(tempfile.mkdtemp(prefix="home"))
    options = "ro" if way == "read-only" else "size=4k"
    fill = "" if way == "read-only" else f"head -c 9k /dev/zero > {home}/fill;"
    program = (
        "import os, subprocess, sys\n"
        f"os.execvp('unshare', ['unshare', '-m', 'sh', '-c', "
        f"'mount -t tmpfs -o {options} none {home}; {fill} exec env -u XDG_STATE_HOME "
        f"-u XDG_CACHE_HOME -u XDG_CONFIG_HOME -u XDG_DATA_HOME HOME={home} "
        f"{sys.executable} -m megatron_tui --runs-dir {runs_dir}'])"
    )
    terminal = Terminal("-c", program)
    try:
        terminal.see("Setup")
        if way == "read-only":  # on a full disk a file can still be made
            terminal.see("workbench.log")
        assert b"Traceback" not in terminal.output
        terminal.press("\x11")
        assert terminal.wait() == 0
    finally:
        terminal.kill()
        home.rmdir()
