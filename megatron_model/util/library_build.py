"""Build one library in a process of its own, with all that its compilers start; one at a time.

``python -m megatron_model.util.library_build`` is the process between us and the compilers. It
holds the kernel's lock of the library, so that two programs do not build the same one side by side,
and ends the compilers when they take too long or when the process that asked is gone: its standard
input is then at its end. No torch.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

import msgspec
from msgspec import Struct

from megatron_model.util.library_store import install, is_whole
from megatron_model.util.python_child import start_python
from megatron_model.util.text import safe

OUTPUT = "{output}"
"""Stands in a command for the file that it has to make."""
LIMIT_SECONDS = 1800.0
"""A compiler that takes longer hangs."""
END_SECONDS = 3.0
"""How long the compilers have to end when they are told to."""
POLL_SECONDS = 0.05


class Request(Struct, frozen=True):
    """What to build: the first command that succeeds makes the library at `path`."""

    path: str
    commands: list[list[str]]
    seconds: float


class Build:
    """A library in the making; `end` it, or let it go, and its processes are gone.

    Args:
        path: where the library is to be.
        commands: alternatives, the best one first, with `OUTPUT` for what they make.
        seconds: how long they may take.
        changes: what their environment has other than this process's.

    Raises:
        OSError: no process can be started.
    """

    def __init__(
        self,
        path: Path,
        commands: Sequence[Sequence[str]],
        *,
        seconds: float = LIMIT_SECONDS,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        request = Request(str(path), [list(command) for command in commands], seconds)
        self._process = start_python(
            "megatron_model.util.library_build",
            msgspec.json.encode(request).decode(),
            changes=changes,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )
        assert self._process.stdout is not None
        self._said = b""
        self._over = False
        self._lock = threading.Lock()
        self._output = self._process.stdout.fileno()
        os.set_blocking(self._output, False)

    @property
    def pid(self) -> int:
        """The number of the process, which is that of its group, too."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it is still at work."""
        with self._lock:
            while not self._over:
                try:
                    part = os.read(self._output, 4096)
                except BlockingIOError:
                    return True
                self._said += part
                self._over = not part
        return False

    def wait(self) -> str:
        """Wait until it is through; returns what `end` does."""
        while self.running():
            time.sleep(POLL_SECONDS)
        return self.end()

    def end(self) -> str:
        """End it with all its processes; returns why there is no library, or nothing."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        deadline = time.monotonic() + END_SECONDS + 1.0
        while self.running() and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        with self._lock:
            if self._process.returncode is None:
                # It was not waited for yet: its number belongs to no other process.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                self._process.stdout.close()
                self._over = True
        return safe(self._said.decode(errors="replace"), one_line=True).strip()


def _serve(request: Request) -> None:
    # A function, not SIG_IGN, which the compilers would inherit.
    signal.signal(signal.SIGTERM, _nothing)
    path = Path(request.path)
    guard = _Guard(time.monotonic() + request.seconds)
    try:
        with _builder(path, guard) as alone:
            if not is_whole(path):
                if alone:
                    for leftover in path.parent.glob(f".{path.name}.*"):
                        shutil.rmtree(leftover, ignore_errors=True)
                _build(path, request.commands, guard)
        reason = ""
    except OSError as error:
        reason = error.strerror or str(error)
    # The process that asked may be gone.
    with contextlib.suppress(OSError):
        os.write(1, reason.encode())
    # What the compilers left running, and this process.
    os.killpg(0, signal.SIGKILL)


class _Guard:
    """Says when it is over: the time is up, or the process that asked is gone."""

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._alone = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        self._alone.set()

    def check(self) -> None:
        """Pass a moment.

        Raises:
            OSError: it is over.
        """
        if self._alone.wait(POLL_SECONDS):
            raise OSError("it was broken off")
        if time.monotonic() > self._deadline:
            raise OSError("the compiler took too long")


@contextlib.contextmanager
def _builder(path: Path, guard: _Guard) -> Iterator[bool]:
    """Be the only one to build a library; yields false where the file system knows no locks."""
    lock = os.open(
        path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                guard.check()
                continue
            except OSError:
                yield False
                return
            yield True
            return
    finally:
        os.close(lock)


def _build(path: Path, commands: list[list[str]], guard: _Guard) -> None:
    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    output = folder / "library.so"
    # The compilers' temporary files go with them.
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C"}
    try:
        for command in commands:
            with (folder / "said").open("wb") as said:
                child = subprocess.Popen(
                    [word.replace(OUTPUT, str(output)) for word in command],
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                )
                while child.poll() is None:
                    guard.check()
            if child.returncode == 0 and output.is_file():
                install(output, path)
                return
        raise OSError(_last_line(folder / "said") or f"status {child.returncode}")
    finally:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired, UnboundLocalError):
            os.killpg(0, signal.SIGTERM)
            child.wait(END_SECONDS)
        shutil.rmtree(folder, ignore_errors=True)


def _last_line(path: Path) -> str:
    """Return the last line that was said; of a compiler's many, the one that names an error."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 8192))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    errors = [line for line in lines if "error:" in line.lower() or "No space left" in line]
    return (errors or [line for line in lines if line] or [""])[-1][:300]


def _nothing(_number: int, _frame: FrameType | None) -> None:
    pass


if __name__ == "__main__":
    _serve(msgspec.json.decode(sys.argv[1], type=Request))
