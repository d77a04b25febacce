"""A rank that dies, hangs or fails ends the run, and the log says which one and why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.events.schema import RunFailed, RunFinished, RunStarted
from megatron_model.run import lock as run_lock
from megatron_model.run.command_folder import CommandFolder
from megatron_model.run.folder import LOCK_FILE, RunFolder
from tests.model.distributed.ranks import start_ranks, train
from tests.survival.processes import make_run, wait_for, wait_for_reports

pytestmark = pytest.mark.slow


def failure_of(folder: RunFolder) -> str:
    last = folder.read_events()[0][-1]
    assert isinstance(last, RunFailed)
    return last.error


@pytest.mark.parametrize(
    ("lost", "number", "words"),
    [
        (1, signal.SIGKILL, "ended without a word"),
        (0, signal.SIGKILL, "ended without a word"),
        (1, signal.SIGSTOP, "has not been heard of for"),
        (0, signal.SIGSTOP, "has not been heard of for"),
    ],
    ids=["killed", "leader-killed", "hung", "leader-hung"],
)
def test_a_lost_rank_ends_the_run_with_its_name(
    runs_dir: Path, corpus: Path, lost: int, number: int, words: str
) -> None:
    folder = make_run(runs_dir, corpus, training__rank_timeout=2.0, training__checkpoint_every=20)
    with start_ranks(2, train, ["--resume", str(folder.path)]) as ranks:
        wait_for_reports(folder, 2)
        pid = ranks.processes[lost].pid
        ranks.signal(lost, number)
        codes = ranks.wait()
    # Whoever finds that a rank hangs ends it.
    assert codes[lost] == -signal.SIGKILL
    assert codes[1 - lost] == 1
    assert failure_of(folder).startswith(f"Rank {lost} (process {pid} on ")
    assert words in failure_of(folder)
    assert folder.latest_checkpoint() is not None
    assert not folder.is_active()


def test_a_rank_lost_in_a_pause_ends_the_run(runs_dir: Path, corpus: Path) -> None:
    folder = make_run(runs_dir, corpus)
    with start_ranks(2, train, ["--resume", str(folder.path)]) as ranks:
        wait_for_reports(folder)
        CommandFolder(folder.path).send("pause")
        wait_for(lambda: folder.state().status == "paused", "a pause")
        ranks.signal(1, signal.SIGKILL)
        # As torchrun does once it sees a rank fail.
        ranks.signal(0, signal.SIGTERM)
        assert ranks.wait() == [1, -signal.SIGKILL]
    assert "Rank 1" in failure_of(folder)


def fail_in_step(arguments: list[str], rank: str) -> None:
    """Train, with a defect in one rank."""
    from megatron_model.distributed.learner import TeamLearner

    if os.environ["RANK"] == rank:
        batch = TeamLearner.batch

        def broken(self: TeamLearner, number: int, scale: float) -> object:
            if number == 3:
                raise ZeroDivisionError("a defect of this rank")
            return batch(self, number, scale)

        TeamLearner.batch = broken  # type: ignore[assignment, method-assign]
    train(arguments)


def test_the_error_of_a_rank_is_told(runs_dir: Path, corpus: Path) -> None:
    folder = make_run(runs_dir, corpus)
    with start_ranks(2, fail_in_step, ["--resume", str(folder.path)], "1") as ranks:
        assert ranks.wait() == [1, 1]
    assert "Rank 1" in failure_of(folder)
    assert "ZeroDivisionError: a defect of this rank" in failure_of(folder)


def test_the_launcher_starts_again_from_the_last_checkpoint(runs_dir: Path, corpus: Path) -> None:
    folder = make_run(runs_dir, corpus, training__steps=400, training__checkpoint_every=20)
    command = [sys.executable, "-m", "megatron_model", "train", "--resume", str(folder.path)]
    with subprocess.Popen(
        [*command, "--devices", "2", "--max-restarts", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as launcher:
        try:
            wait_for(lambda: folder.latest_checkpoint() is not None, "a checkpoint")
            started = next(e for e in folder.read_events()[0] if isinstance(e, RunStarted))
            assert started.devices == 2
            holder = run_lock.holder(folder.path / LOCK_FILE)
            assert holder is not None
            os.kill(holder.pid, signal.SIGKILL)
            _, said = launcher.communicate(timeout=120)
        finally:
            launcher.terminate()
    assert launcher.returncode == 0, said
    events = folder.read_events()[0]
    failures = [e for e in events if isinstance(e, RunFailed)]
    assert len(failures) == 1
    assert failures[0].error.startswith("Rank 0 ")
    assert isinstance(events[-1], RunFinished)
    assert events[-1].step == 400
    starts = [e.step for e in events if isinstance(e, RunStarted)]
    assert starts[0] == 0
    assert 0 < starts[1] < 400
    # What libraries say of it is not for people, but not lost either.
    assert "Traceback" not in said
    assert "resumed at step" in said
    log = (folder.path / "trainer.log").read_text()
    assert f"Rank 0 (process {holder.pid}) ended with signal 9" in log
    assert "all start again (1 of 1)" in log


def test_a_signal_to_the_launcher_saves_and_stops_all(runs_dir: Path, corpus: Path) -> None:
    folder = make_run(runs_dir, corpus)
    command = [sys.executable, "-m", "megatron_model", "train", "--resume", str(folder.path)]
    with subprocess.Popen(
        [*command, "--devices", "2", "--json"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as launcher:
        try:
            wait_for_reports(folder)
            launcher.send_signal(signal.SIGTERM)
            said, _ = launcher.communicate(timeout=60)
        finally:
            launcher.terminate()
    assert launcher.returncode == 128 + signal.SIGTERM
    assert said.endswith(folder.events_path.read_bytes())
    finished = folder.read_events()[0][-1]
    assert isinstance(finished, RunFinished)
    latest = folder.latest_checkpoint()
    assert latest is not None
    assert latest.step == finished.step


def test_a_request_refused_by_the_ranks_is_refused_by_the_launcher(
    runs_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    folder = make_run(runs_dir, corpus, training__batch_size=1)
    command = [sys.executable, "-m", "megatron_model", "train", "--resume", str(folder.path)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    done = subprocess.run(
        [*command, "--devices", "2"], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "each needs a sequence of its own" in done.stderr
    assert list(temporary.iterdir()) == []
