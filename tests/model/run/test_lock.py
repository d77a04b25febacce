"""Who trains a run: the kernel's word alone, and what is known of a trainer that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_model.run import lock as run_lock
from megatron_model.run.folder import LOCK_FILE, RunFolder
from megatron_model.util.errors import RequestError

_HOLD = """
import sys
from pathlib import Path
from megatron_model.run.lock import hold
with hold(Path(sys.argv[1])) as held:
    print(held, flush=True)
    sys.stdin.read()
"""


def other_process(path: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "True\n"
    return process


def test_the_lock_names_its_holder_and_forgets_it_in_order(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert not run_lock.is_held(path)
    with run_lock.hold(path) as held:
        assert held
        assert run_lock.is_held(path)
        holder = run_lock.holder(path)
        assert holder is not None
        assert (holder.pid, holder.elsewhere) == (os.getpid(), False)
        with run_lock.hold(path, 0.05) as again:
            assert not again
        assert run_lock.holder(path) == holder
    assert not run_lock.is_held(path)
    assert run_lock.holder(path) is None
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_killed_holder_is_gone_at_once_whatever_its_file_says(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with other_process(path) as process:
        assert run_lock.is_held(path)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not run_lock.is_held(path)
    holder = run_lock.holder(path)
    assert holder is not None
    # Its number may belong to another process by now, this one even: that makes nobody a trainer.
    path.write_text(json.dumps({"host": holder.host, "boot": "x", "pid": os.getpid(), "since": 1}))
    assert not run_lock.is_held(path)


def test_two_who_ask_do_not_take_each_other_for_the_trainer(tmp_path: Path) -> None:
    import fcntl

    path = tmp_path / "lock"
    with run_lock.hold(path):
        pass
    with path.open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # as somebody who asks at this moment
        assert not run_lock.is_held(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 9000, b'{"host":1}'])
def test_a_lock_file_that_says_nonsense_says_nothing(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "lock"
    path.write_bytes(content)
    assert run_lock.holder(path) is None
    with run_lock.hold(path) as held:
        assert held


def test_a_trainer_on_another_machine_is_believed_while_its_last_word_is_fresh(
    run_copy: RunFolder,
) -> None:
    lock = run_copy.path / LOCK_FILE
    lock.write_text(json.dumps({"host": "else\x1bwhere", "boot": "b", "pid": 7, "since": 1.0}))
    os.utime(run_copy.events_path)
    with pytest.raises(RequestError, match=r"ago on else.where \(process 7\)"), run_copy.lock():
        pass
    os.utime(run_copy.events_path, (1, 1))
    with run_copy.lock():
        assert run_copy.is_active()


def test_a_lock_that_is_a_link_is_refused(run_copy: RunFolder, tmp_path: Path) -> None:
    lock = run_copy.path / LOCK_FILE
    lock.unlink(missing_ok=True)
    lock.symlink_to(tmp_path / "target")
    with pytest.raises(RequestError, match="Cannot write"), run_copy.lock():
        pass
    assert not (tmp_path / "target").exists()
