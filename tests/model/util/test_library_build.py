"""Building a library: one builder at a time, and no compiler outlives whoever wanted it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_model.util.library_build import OUTPUT, Build
from megatron_model.util.library_store import is_whole

GOOD = ["sh", "-c", 'echo code > "$0"', OUTPUT]
# A compiler that hangs, and the one it started; both pids are told through a pipe.
HANGING = 'sleep 1000 & echo $! $$ > "$1"; wait'
STUBBORN = f'trap "" TERM; {HANGING}'


@pytest.fixture
def library(tmp_path: Path) -> Path:
    tmp_path.chmod(0o700)
    (tmp_path / "libraries").mkdir(mode=0o700)
    return tmp_path / "libraries" / "one.so"


@pytest.fixture
def pipe(tmp_path: Path) -> Path:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    return path


def pids(pipe: Path) -> list[int]:
    """Wait until the hanging compiler said who it is."""
    return [int(word) for word in pipe.read_text().split()]


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 60
    while _lives(pid):
        assert time.monotonic() < deadline, f"process {pid} was left behind"
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def left(library: Path) -> list[str]:
    return sorted(path.name for path in library.parent.iterdir() if path.suffix != ".lock")


def test_the_first_command_that_succeeds_makes_it(library: Path) -> None:
    build = Build(library, [["sh", "-c", "exit 3"], GOOD, ["sh", "-c", "exit 4"]])
    assert build.wait() == ""
    assert library.read_text() == "code\n"
    assert is_whole(library)
    assert left(library) == ["one.so", "one.so.sha256"]
    assert build.wait() == "", "who asks twice hears the same"


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("echo 'x.c:1: error: no such thing' >&2; echo compilation ended >&2; exit 1", "x.c:1: e"),
        ("echo nothing to say >&2; exit 1", "nothing to say"),
        ("exit 7", "status 7"),
        ("exit 0", "status 0"),
    ],
)
def test_a_compiler_that_fails_says_why(library: Path, program: str, reason: str) -> None:
    assert Build(library, [["sh", "-c", program]]).wait().startswith(reason)
    assert left(library) == []


def test_a_compiler_that_is_not_there(library: Path) -> None:
    assert "No such file" in Build(library, [["/no/such/compiler"]]).wait()
    assert left(library) == []


@needs_proc
@pytest.mark.parametrize("program", [HANGING, STUBBORN])
def test_a_compiler_that_hangs_is_ended(library: Path, pipe: Path, program: str) -> None:
    # The limit is reached while nobody reads the pipe, or later: both end it.
    build = Build(library, [["sh", "-c", program, OUTPUT, str(pipe)]], seconds=1.0)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    reason = build.wait()
    assert reason == "the compiler took too long"
    for word in os.read(reader, 100).split():
        wait_until_gone(int(word))
    os.close(reader)
    assert left(library) == []


@needs_proc
def test_who_ends_it_ends_all_of_it(library: Path, pipe: Path) -> None:
    build = Build(library, [["sh", "-c", HANGING, OUTPUT, str(pipe)]])
    found = pids(pipe)
    assert build.running()
    assert build.end() == "it was broken off"
    for pid in [*found, build.pid]:
        wait_until_gone(pid)
    assert left(library) == []


@needs_proc
def test_compilers_end_with_whoever_wanted_them(library: Path, pipe: Path) -> None:
    program = (
        "import sys, signal; from pathlib import Path;"
        "from megatron_model.util.library_build import Build;"
        f"build = Build(Path(sys.argv[1]), [['sh', '-c', {HANGING!r}, '', sys.argv[2]]]);"
        "signal.pause()"
    )
    owner = subprocess.Popen([sys.executable, "-c", program, str(library), str(pipe)])
    found = pids(pipe)
    owner.kill()
    owner.wait()
    for pid in found:
        wait_until_gone(pid)


@needs_proc
def test_compilers_end_when_what_guards_them_was_killed(library: Path, pipe: Path) -> None:
    build = Build(library, [["sh", "-c", HANGING, OUTPUT, str(pipe)]])
    found = pids(pipe)
    os.kill(build.pid, signal.SIGKILL)
    build.wait()
    for pid in found:
        wait_until_gone(pid)


@needs_proc
def test_what_a_good_compiler_left_running_ends(library: Path, pipe: Path) -> None:
    program = 'echo code > "$0"; sleep 1000 & echo $! > "$1"'
    build = Build(library, [["sh", "-c", program, OUTPUT, str(pipe)]])
    found = pids(pipe)
    assert build.wait() == ""
    for pid in found:
        wait_until_gone(pid)
    assert is_whole(library)


def test_two_do_not_build_the_same_library(library: Path, tmp_path: Path) -> None:
    count, gate = tmp_path / "count", tmp_path / "gate"
    os.mkfifo(gate)
    slowly = 'echo built >> "$1"; read _ < "$2"; echo code > "$0"'
    command = ["sh", "-c", slowly, OUTPUT, str(count), str(gate)]
    first = Build(library, [command])
    with gate.open("w") as writer:  # the first one is at work
        second = Build(library, [command])
        assert first.running()
        writer.write("go\n")
    assert first.wait() == ""
    assert second.wait() == ""
    assert count.read_text() == "built\n"


def test_who_waits_for_another_builder_gives_up_in_the_end(library: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    first = Build(library, [["sh", "-c", 'read _ < "$0"', str(gate)]])
    with gate.open("w"):
        assert Build(library, [GOOD], seconds=0.1).wait() == "the compiler took too long"
        assert first.end() == "it was broken off"
    assert Build(library, [GOOD]).wait() == ""


def test_what_a_killed_builder_left_is_cleared_away(library: Path) -> None:
    leftover = library.parent / ".one.so.abcdef"
    leftover.mkdir()
    (leftover / "half").touch()
    assert Build(library, [GOOD]).wait() == ""
    assert not leftover.exists()
