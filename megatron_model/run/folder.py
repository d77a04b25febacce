"""The folder of one run: what was asked, what happened, and the checkpoints. No torch.

`latest` and `best` are found from what is there, never from a pointer that could lie. One process
trains a run at a time: it holds a kernel lock that dies with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from msgspec import Struct

from megatron_model import run_lock
from megatron_model.config import RunConfig, config_from_builtins, config_to_toml
from megatron_model.errors import RequestError, nearest
from megatron_model.events import Event, decode_event
from megatron_model.files import write_atomically
from megatron_model.run_state import RunState, Status
from megatron_model.text import safe
from megatron_model.toml_file import read_toml

RUN_FILE = "run.toml"
EVENTS_FILE = "events.jsonl"
CHECKPOINTS = "checkpoints"
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.json"
LOCK_FILE = "lock"
FINAL_WEIGHTS_FILE = "megatron_trained_model.pt"

HAND_OVER_SECONDS = 60.0
"""How long a run that was handed over may be without a trainer before it counts as interrupted."""

CREATED = "%Y-%m-%dT%H:%M:%SZ"

_PIECE = 1 << 20

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
        from importlib import metadata  # slow to import, and rarely needed

        import tomlkit

        document = tomlkit.parse(config_to_toml(config))
        run = tomlkit.table()
        run.add("name", self.name)
        before = self._about()
        run.add("created", before.get("created") or time.strftime(CREATED, time.gmtime()))
        for key in ("parent", "parent_step"):
            if key in before:
                run.add(key, before[key])
        run.add("corpus_fingerprint", fingerprint)
        versions = tomlkit.inline_table()
        for package in ("megatron-tui", "torch"):
            with contextlib.suppress(metadata.PackageNotFoundError):
                versions.add(package, metadata.version(package))
        run.add("versions", versions)
        document.add("run", run)
        write_atomically(self.path / RUN_FILE, tomlkit.dumps(document).encode())

    @property
    def parent(self) -> tuple[str, int] | None:
        """Name of the run this one was forked from, and the step at which; see fork.py."""
        name, step = self._about().get("parent"), self._about().get("parent_step")
        return (name, step) if isinstance(name, str) and isinstance(step, int) else None

    def _about(self) -> dict[str, object]:
        try:
            return self._read_toml().get("run", {})
        except RequestError:
            return {}

    def _read_toml(self) -> dict[str, dict[str, object]]:
        return read_toml(self.path / RUN_FILE)

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

    def read_events(self, offset: int = 0, limit: int = -1) -> tuple[list[Event], int]:
        """Return the events in whole lines from byte `offset`, and the offset to go on from.

        About `limit` bytes are read at most; one line is read whole however long it is.
        """
        try:
            # Not blocking: a pipe in place of the log must not hold up whoever looks at the run.
            descriptor = os.open(self.events_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with open(descriptor, "rb") as file:
                file.seek(offset)
                data = file.read(limit)
                if limit > 0 and b"\n" not in data:
                    data += file.readline()
        except OSError:
            return [], offset
        end = data.rfind(b"\n") + 1
        found = [decode_event(line) for line in data[:end].splitlines()]
        return [event for event in found if event is not None], offset + end

    def fold(self) -> tuple[RunState, int]:
        """Fold the whole log, a piece at a time; return the state and the offset to go on from."""
        state, offset = RunState(), 0
        while True:
            events, end = self.read_events(offset, limit=_PIECE)
            for event in events:
                state.apply(event)
            if end == offset:
                return state, offset
            offset = end

    def state(self) -> RunState:
        """Fold the whole log."""
        return self.fold()[0]

    def status(self, state: RunState) -> Status:
        """Return the run's status: one that goes on without a living trainer is interrupted."""
        if state.running and not self.is_alive(state):
            return "interrupted"
        return state.status

    def checkpoints(self) -> list[Checkpoint]:
        """Return the whole checkpoints, oldest first."""
        found = []
        if self.leads_out:
            return []
        with contextlib.suppress(OSError):
            for path in (self.path / CHECKPOINTS).iterdir():
                match = _CHECKPOINT_NAME.fullmatch(path.name)
                if match and not path.is_symlink() and (path / MODEL_FILE).is_file():
                    found.append(Checkpoint(int(match[1]), path, _val_loss(path)))
        return sorted(found, key=lambda checkpoint: checkpoint.step)

    @property
    def leads_out(self) -> bool:
        """Whether the checkpoints are somewhere else, where nothing of ours is to be deleted."""
        return (self.path / CHECKPOINTS).is_symlink()

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
            RequestError: another process trains it, or the folder cannot be written.
        """
        run_lock.check_elsewhere(self.path / LOCK_FILE, self.events_path, self.name)
        try:
            with run_lock.hold(self.path / LOCK_FILE) as held:
                if not held:
                    raise RequestError(
                        f'The run "{self.name}" is being trained by another process.'
                    )
                yield
        except OSError as error:
            if error.filename != str(self.path / LOCK_FILE):
                raise
            raise RequestError(
                f"Cannot write {safe(str(error.filename))}: {error.strerror}."
            ) from None

    def is_active(self) -> bool:
        """Whether a living process trains this run."""
        return run_lock.is_held(self.path / LOCK_FILE)

    def is_alive(self, state: RunState) -> bool:
        """Whether the run goes on: it is trained, or was handed over a moment ago."""
        between = state.handed_over and abs(time.time() - state.last_time) < HAND_OVER_SECONDS
        return self.is_active() or between

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
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    good = isinstance(value, (int, float)) and abs(value) < 1e300
    return float(value) if good else None
