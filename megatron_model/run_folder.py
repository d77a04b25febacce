"""The folder of one run: what was asked, what happened, and the checkpoints. No torch.

`latest` and `best` are found from what is there, never from a pointer that could lie. One process
trains a run at a time: it holds a kernel lock that dies with it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from msgspec import Struct

from megatron_model.config import RunConfig, config_from_builtins, config_to_toml
from megatron_model.errors import RequestError, nearest
from megatron_model.events import Event, decode_event, encode_event
from megatron_model.files import write_atomically
from megatron_model.run_state import RunState, Status
from megatron_model.text import safe

RUN_FILE = "run.toml"
EVENTS_FILE = "events.jsonl"
CHECKPOINTS = "checkpoints"
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.json"
LOCK_FILE = "lock"
FINAL_WEIGHTS_FILE = "megatron_trained_model.pt"

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


class Checkpoint(Struct, frozen=True):
    """A whole checkpoint on disk; `val_loss` is None when no evaluation belongs to its step."""

    step: int
    path: Path
    val_loss: float | None


def default_runs_dir() -> Path:
    """Return ``MEGATRON_RUNS_DIR``, or the ``runs`` folder in the user's data folder."""
    import platformdirs

    named = os.environ.get("MEGATRON_RUNS_DIR")
    return Path(named) if named else platformdirs.user_data_path("megatron") / "runs"


def check_run_name(name: str) -> None:
    """Raise `RequestError` when `name` cannot be the name of a folder that is easy to type."""
    if not name.strip():
        raise RequestError("The run needs a name.")
    if (
        name != safe(name, one_line=True)
        or "/" in name
        or "\\" in name
        or name.startswith((".", "-"))
    ):
        raise RequestError(
            f'"{safe(name, one_line=True)}" cannot be a run name; '
            "use letters, digits, dots, dashes and underscores, and begin with a letter or digit."
        )
    if len(name.encode()) > 120:
        raise RequestError("The run name is longer than 120 bytes; shorten it.")


class RunFolder:
    """One run on disk. Making the object reads nothing; every method looks at what is there now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.events_path = path / EVENTS_FILE

    @classmethod
    def create(cls, runs_dir: Path, name: str, config: RunConfig) -> RunFolder:
        """Make the folder of a new run and write what was asked.

        Raises:
            RequestError: the name is unusable or taken, or the folder cannot be written.
        """
        check_run_name(name)
        path = runs_dir / name
        try:
            runs_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise RequestError(f"Cannot make {safe(str(runs_dir))}: {error.strerror}.") from None
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:
            raise RequestError(
                f'A run named "{name}" exists in {runs_dir}; choose another name or resume it.'
            ) from None
        except OSError as error:
            raise RequestError(f"Cannot make {path}: {error.strerror}.") from None
        folder = cls(path)
        folder.write_config(config, fingerprint="")
        (path / CHECKPOINTS).mkdir(mode=0o700)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the run in `path`.

        Raises:
            RequestError: there is no run there.
        """
        if not os.path.isfile(path / RUN_FILE):
            raise RequestError(f"{safe(str(path))} is not a run: it has no {RUN_FILE}.")
        return cls(path)

    def write_config(self, config: RunConfig, *, fingerprint: str) -> None:
        """Write run.toml whole: the configuration, the corpus's fingerprint and the versions."""
        import tomlkit

        document = tomlkit.parse(config_to_toml(config))
        run = tomlkit.table()
        run.add("name", self.name)
        run.add("created", self._created() or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        run.add("corpus_fingerprint", fingerprint)
        versions = tomlkit.inline_table()
        for package in ("megatron-tui", "torch"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions.add(package, metadata.version(package))
        run.add("versions", versions)
        document.add("run", run)
        write_atomically(self.path / RUN_FILE, tomlkit.dumps(document).encode())

    def _created(self) -> str | None:
        try:
            return str(self._read_toml().get("run", {}).get("created") or "") or None
        except RequestError:
            return None

    def _read_toml(self) -> dict[str, dict[str, object]]:
        import tomlkit
        from tomlkit.exceptions import TOMLKitError

        path = self.path / RUN_FILE
        try:
            return dict(tomlkit.parse(path.read_text(encoding="utf-8")).unwrap())
        except OSError as error:
            raise RequestError(f"Cannot read {safe(str(path))}: {error.strerror}.") from None
        except (TOMLKitError, UnicodeDecodeError) as error:
            raise RequestError(
                f"{safe(str(path))} is not valid TOML: {safe(str(error))}."
            ) from None

    @property
    def config(self) -> RunConfig:
        """What was asked of the run."""
        data = self._read_toml()
        data.pop("run", None)
        return config_from_builtins(data)

    @property
    def corpus_fingerprint(self) -> str:
        """Fingerprint of the corpus the run began with, empty before it was prepared."""
        return str(self._read_toml().get("run", {}).get("corpus_fingerprint", ""))

    def read_events(self, offset: int = 0) -> tuple[list[Event], int]:
        """Return the events in whole lines from byte `offset`, and the offset to go on from."""
        try:
            with self.events_path.open("rb") as file:
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return [], offset
        end = data.rfind(b"\n") + 1
        found = [decode_event(line) for line in data[:end].splitlines()]
        return [event for event in found if event is not None], offset + end

    def state(self) -> RunState:
        """Fold the whole log."""
        state = RunState()
        for event in self.read_events()[0]:
            state.apply(event)
        return state

    def status(self, state: RunState) -> Status:
        """Return the run's status: one that goes on without a living trainer is interrupted."""
        if state.running and not self.is_active():
            return "interrupted"
        return state.status

    def checkpoints(self) -> list[Checkpoint]:
        """Return the whole checkpoints, oldest first."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in (self.path / CHECKPOINTS).iterdir():
                match = _CHECKPOINT_NAME.fullmatch(path.name)
                if match and (path / MODEL_FILE).is_file():
                    found.append(Checkpoint(int(match[1]), path, _val_loss(path)))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    def latest_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint of the highest step."""
        return max(self.checkpoints(), key=lambda c: c.step, default=None)

    def best_checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint of the lowest validation loss, or the latest if none has one."""
        evaluated = [c for c in self.checkpoints() if c.val_loss is not None]
        best = min(evaluated, key=lambda c: c.val_loss or 0.0, default=None)
        return best or self.latest_checkpoint()

    def checkpoint_path(self, step: int) -> Path:
        """Return where the checkpoint of `step` belongs."""
        return self.path / CHECKPOINTS / f"step-{step:08d}"

    def prune_checkpoints(self, keep: int) -> None:
        """Delete all but the newest `keep` checkpoints and the best one."""
        checkpoints = self.checkpoints()
        best = self.best_checkpoint()
        for checkpoint in checkpoints[:-keep]:
            if best is None or checkpoint.path != best.path:
                shutil.rmtree(checkpoint.path, ignore_errors=True)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for training.

        Raises:
            RequestError: another process trains it.
        """
        descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            deadline = time.monotonic() + 1.0
            # Somebody who only asks `is_active` holds the lock for an instant.
            while not _try_lock(descriptor):
                if time.monotonic() > deadline:
                    raise RequestError(
                        f'The run "{self.name}" is being trained by another process.'
                    )
                time.sleep(0.02)
            yield
        finally:
            os.close(descriptor)

    def is_active(self) -> bool:
        """Whether a living process trains this run."""
        try:
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try_lock(descriptor)
        finally:
            os.close(descriptor)

    def delete(self) -> None:
        """Delete the run and everything in its folder.

        Raises:
            RequestError: it is being trained, or is no run.
        """
        RunFolder.open(self.path)
        if self.is_active():
            raise RequestError(f'The run "{self.name}" is in training; stop it first.')
        if self.path.is_symlink():
            raise RequestError(f'"{self.name}" is a link; delete what it points to by hand.')
        shutil.rmtree(self.path)


class EventLog:
    """Appends events to a run's log; a line torn by a crash is cut off first."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.events_path
        self._descriptor = os.open(
            folder.events_path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        size = os.fstat(self._descriptor).st_size
        whole = _whole_lines(self._descriptor, size)
        if whole < size:
            os.ftruncate(self._descriptor, whole)

    def append(self, event: Event, *, sync: bool = False) -> None:
        """Write one line in one call; `sync` waits until it is on disk."""
        line = encode_event(event)
        written = os.write(self._descriptor, line)
        if written < len(line):
            # The disk is full; a part of a line would spoil the next one too.
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))
        if sync:
            os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the log; nothing is buffered."""
        os.close(self._descriptor)


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """Return every run in `runs_dir`, newest (by its last event) first."""
    try:
        paths = list(runs_dir.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RequestError(f"Cannot read {safe(str(runs_dir))}: {error.strerror}.") from None
    folders = [RunFolder(path) for path in paths if os.path.isfile(path / RUN_FILE)]

    def changed(folder: RunFolder) -> float:
        for path in (folder.events_path, folder.path / RUN_FILE):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime
        return 0.0

    return sorted(folders, key=changed, reverse=True)


def free_name(runs_dir: Path, stem: str) -> str:
    """Return `stem`, or `stem` with the first number behind it that no run has."""
    stem = re.sub(r"[^\w.-]+", "-", stem).strip("-.") or "run"
    name, number = stem, 2
    while (runs_dir / name).exists():
        name, number = f"{stem}-{number}", number + 1
    return name


def find_run(spec: str, runs_dir: Path) -> RunFolder:
    """Return the run with this name in `runs_dir`, or in this folder.

    Raises:
        RequestError: there is none; the nearest name is given.
    """
    for path in (runs_dir / spec, Path(spec)):
        if spec and os.path.isfile(path / RUN_FILE):
            return RunFolder(path)
    names = [folder.name for folder in list_runs(runs_dir)]
    raise RequestError(
        f'There is no run "{safe(spec, one_line=True)}" in {safe(str(runs_dir))}.'
        + nearest(spec, names)
    )


def find_model(spec: str, runs_dir: Path, *, which: str = "best") -> Path:
    """Return the model file meant by a run's name or folder, a checkpoint folder or a file.

    Args:
        spec: what the person gave.
        runs_dir: where runs are looked for by name.
        which: ``best`` or ``latest`` checkpoint, when `spec` is a run.

    Raises:
        RequestError: there is no such model.
    """
    path = Path(spec)
    # os.path, which calls a name that is too long simply no file.
    if os.path.isfile(path):
        if path.suffix != ".safetensors":
            raise RequestError(
                f"{safe(spec)} is not a .safetensors file, run or checkpoint folder."
            )
        return path
    if os.path.isfile(path / MODEL_FILE):
        return path / MODEL_FILE
    folder = find_run(spec, runs_dir)
    checkpoint = folder.best_checkpoint() if which == "best" else folder.latest_checkpoint()
    if checkpoint is None:
        raise RequestError(f'The run "{folder.name}" has no checkpoint yet.')
    return checkpoint.path / MODEL_FILE


def _val_loss(checkpoint: Path) -> float | None:
    try:
        value = json.loads((checkpoint / TRAINING_FILE).read_text(encoding="utf-8"))["val_loss"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return float(value) if isinstance(value, (int, float)) else None


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _whole_lines(descriptor: int, size: int) -> int:
    """Return the length of the file up to and including its last line feed."""
    end = size
    while end > 0:
        start = max(0, end - 65536)
        found = os.pread(descriptor, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
