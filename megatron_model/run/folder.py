"""The folder of one run: what was asked, what happened, and the checkpoints. No torch.

`latest` and `best` are found from what is there, never from a pointer that could lie. One process
trains a run at a time: it holds a lock that the kernel drops when the process ends.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from msgspec import Struct, structs

from megatron_model.config.fields import RunConfig, config_to_toml, recorded_config
from megatron_model.events import log as event_log
from megatron_model.events.log import last_event
from megatron_model.events.schema import Event, RunFailed
from megatron_model.events.state import RunState, Status
from megatron_model.run import lock as run_lock
from megatron_model.util.errors import RequestError, nearest
from megatron_model.util.fallback import do_without
from megatron_model.util.files import read_bounded, seen_harmed, why_harmed, write_atomically
from megatron_model.util.text import cut_to_bytes, safe
from megatron_model.util.toml import read_toml
from megatron_model.util.user_folders import user_folder

RUN_FILE = "run.toml"
EVENTS_FILE = "events.jsonl"
CHECKPOINTS = "checkpoints"
MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.json"
LOCK_FILE = "lock"
FINAL_WEIGHTS_FILE = "megatron_trained_model.pt"

HAND_OVER_SECONDS = 60.0
"""How long a run that was handed over may be without a trainer before it counts as interrupted."""

NAME_BYTES = 120
"""Longest name of a run: what is made from it (a text's file name, say) must still be a name."""

CREATED = "%Y-%m-%dT%H:%M:%SZ"

_READ = (MODEL_FILE, TRAINING_FILE)
"""The files of a checkpoint that say which one to write with, and hold its weights."""

_CHECKPOINT_NAME = re.compile(r"step-(\d{8,})")


class Checkpoint(Struct, frozen=True):
    """A whole checkpoint on disk; `val_loss` is None when no evaluation belongs to its step."""

    step: int
    path: Path
    val_loss: float | None
    run: str = ""
    """Identity of the run that wrote it; empty where it does not say, as once none did."""


class Origin(Struct, frozen=True, forbid_unknown_fields=True):
    """The model whose weights a run began with, and what that means for its vocabulary."""

    model: str
    """Name of the run, or of the file."""
    step: int = 0
    val_loss: float | None = None
    known: int = 0
    """Characters of the vocabulary that the model knew."""
    new: str = ""
    """Characters of the text that it did not know."""
    unused: str = ""
    """Characters that it knew and the text has not: the vocabulary ends with them."""


def default_runs_dir() -> Path:
    """Return ``MEGATRON_RUNS_DIR``, or the ``runs`` folder in the user's data folder.

    Raises:
        RequestError: no folder was named, and this user has no home.
    """
    named = os.environ.get("MEGATRON_RUNS_DIR")
    if named:
        return Path(named)
    folder = user_folder("data")
    if folder is None:
        raise RequestError(
            "This user has no home folder to keep runs in; say where with --runs-dir DIR or "
            "MEGATRON_RUNS_DIR."
        )
    return folder / "runs"


def check_run_name(name: str) -> None:
    """Raise `RequestError` when `name` cannot be the name of a folder that is easy to type."""
    if not name.strip():
        raise RequestError("The run needs a name.")
    if (
        name != safe(name, one_line=True)
        or "/" in name
        or "\\" in name
        # What cannot be seen cannot be typed, and two names would look the same.
        or any(unicodedata.category(character) == "Cf" for character in name)
        or name.startswith((".", "-"))
    ):
        raise RequestError(
            f'"{safe(name, one_line=True)}" cannot be a run name; '
            "use letters, digits, dots, dashes and underscores, and begin with a letter or digit."
        )
    if len(name.encode()) > NAME_BYTES:
        raise RequestError(f"The run name is longer than {NAME_BYTES} bytes; shorten it.")


class RunFolder:
    """One run on disk. Making the object reads nothing; every method looks at what is there now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.events_path = path / EVENTS_FILE
        self._made_here = False

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
        folder._made_here = True
        try:
            folder.write_config(config, fingerprint="")
            (path / CHECKPOINTS).mkdir(mode=0o700)
        except BaseException as error:
            shutil.rmtree(path, ignore_errors=True)
            if not isinstance(error, OSError):
                raise
            raise RequestError(
                f"Cannot write {safe(str(error.filename or path))}: {error.strerror}."
            ) from None
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Return the run in `path`.

        Raises:
            RequestError: there is no run there.
        """
        if not _may_be_run(path):
            raise RequestError(f"{safe(str(path))} is not a run: it has no {RUN_FILE}.")
        return cls(path)

    @property
    def _is_new(self) -> bool:
        """Whether nothing happened in this run yet, and nothing in it is worth keeping.

        The checkpoint that a fork begins with is its parent's: it counts only in a fork that
        another process made, which may have outlived its parent.
        """
        if self._log_size() > 0:
            return False
        return self._made_here or self.latest_checkpoint() is None

    def _log_size(self) -> int:
        try:
            return self.events_path.stat().st_size
        except OSError:
            return 0

    @contextlib.contextmanager
    def removed_unless_begun(self) -> Iterator[None]:
        """Remove a new run's folder at the end of the block, unless the run took a step in it."""
        new = self._is_new
        try:
            yield
        finally:
            if new:
                self._remove_unbegun()

    def discard_new(self) -> None:
        """Remove the folder of a run that was made, and then could not be started."""
        if self._is_new:
            self._remove_unbegun()

    @contextlib.contextmanager
    def removed_unless_written(self) -> Iterator[None]:
        """Remove the folder, which was just made, where the block cannot write into it.

        Raises:
            RequestError: it cannot.
        """
        try:
            yield
        except OSError as error:
            shutil.rmtree(self.path, ignore_errors=True)
            where = safe(str(error.filename or self.path), one_line=True)
            raise RequestError(f"Cannot write {where}: {error.strerror}.") from None

    def _remove_unbegun(self) -> None:
        last = last_event(self.events_path)
        first_step = (self.read_parent() or ("", 0))[1]
        failed_at_once = isinstance(last, RunFailed) and last.step == first_step
        if self._log_size() > 0 and not failed_at_once:
            return
        if os.path.isfile(self.path / RUN_FILE) and not self.is_active():
            shutil.rmtree(self.path, ignore_errors=True)

    def write_config(self, config: RunConfig, *, fingerprint: str) -> None:
        """Write run.toml whole: the configuration, the corpus's fingerprint and the versions."""
        from importlib import metadata  # slow to import, and rarely needed

        import tomlkit

        document = tomlkit.parse(config_to_toml(config))
        run = tomlkit.table()
        run.add("name", self.name)
        before = self._about()
        run.add("created", before.get("created") or time.strftime(CREATED, time.gmtime()))
        # An earlier version of this program drops it from the file, but not from the checkpoints.
        known = [checkpoint.run for checkpoint in reversed(self.checkpoints()) if checkpoint.run]
        run.add("identity", before.get("identity") or next(iter(known), secrets.token_hex(8)))
        for key in ("parent", "parent_step", "origin", "imported"):
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

    def read_identity(self) -> str:
        """Return what marks a checkpoint as this run's own, whatever the run is called now."""
        return str(self._about().get("identity") or "")

    def read_parent(self) -> tuple[str, int] | None:
        """Return the name of the run this one was forked from, and the step; see fork.py."""
        name, step = self._about().get("parent"), self._about().get("parent_step")
        return (name, step) if isinstance(name, str) and isinstance(step, int) else None

    def read_imported(self) -> str:
        """Return where a run came from that another program made; empty of one from here."""
        return str(self._about().get("imported") or "")

    def read_origin(self) -> Origin | None:
        """Return whose weights this run began with; None where they were its own.

        Raises:
            RequestError: run.toml cannot be read, or says it in another form.
        """
        found = self._read_toml().get("run", {}).get("origin")
        try:
            return None if found is None else msgspec.convert(found, Origin)
        except msgspec.ValidationError as error:
            where = safe(str(self.path / RUN_FILE))
            raise RequestError(f"{where}: run.origin: {safe(str(error), one_line=True)}.") from None

    def write_origin(self, origin: Origin) -> None:
        """Write down whose weights this run begins with."""
        known = {key: value for key, value in structs.asdict(origin).items() if value is not None}
        self._add_about("origin", known)

    def write_imported(self, source: str) -> None:
        """Write down that another program made this run, and where it came from."""
        self._add_about("imported", source)

    def _add_about(self, key: str, value: object) -> None:
        import tomlkit

        document = tomlkit.parse(read_bounded(self.path / RUN_FILE).decode("utf-8"))
        about = document["run"]
        assert isinstance(about, dict)
        about[key] = value
        write_atomically(self.path / RUN_FILE, tomlkit.dumps(document).encode())

    def _about(self) -> dict[str, object]:
        try:
            return self._read_toml().get("run", {})
        except RequestError:
            return {}

    def _read_toml(self) -> dict[str, dict[str, object]]:
        return read_toml(self.path / RUN_FILE)

    def read_config(self) -> RunConfig:
        """Return what was asked of the run.

        Raises:
            RequestError: run.toml cannot be read or does not describe a run, or was imported.
        """
        data = self._read_toml()
        if data.pop("run", {}).get("imported") and not data:
            raise RequestError(_only_curves(self.name))
        return recorded_config(data)

    def read_corpus_fingerprint(self) -> str:
        """Return the fingerprint of the corpus the run began with; empty before it was prepared.

        Raises:
            RequestError: run.toml cannot be read.
        """
        return str(self._read_toml().get("run", {}).get("corpus_fingerprint", ""))

    def read_events(self, offset: int = 0, limit: int = -1) -> tuple[list[Event], int]:
        """Return the events in whole lines from byte `offset`, and the offset to go on from.

        About `limit` bytes are read at most, but one line at least; see event_log.py.
        """
        return event_log.read_events(self.events_path, offset, limit)

    def check_readable(self) -> None:
        """Raise `RequestError` when there is a log, or a folder, that cannot be read."""
        try:
            event_log.check_readable(self.events_path)
        except OSError as error:
            where = safe(str(self.events_path), one_line=True)
            raise RequestError(f"Cannot read {where}: {error.strerror}.") from None

    def fold(self) -> tuple[RunState, int]:
        """Fold the whole log, a piece at a time; return the state and the offset to go on from."""
        state, offset = RunState(), 0
        for events, end in event_log.read_pieces(self.events_path):
            state.apply_all(events)
            offset = end
        return state, offset

    def state(self) -> RunState:
        """Fold the whole log."""
        return self.fold()[0]

    def status(self, state: RunState) -> Status:
        """Return the run's status: one that is running without a living trainer is interrupted."""
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
                    found.append(Checkpoint(int(match[1]), path, *_numbers(path)))
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

    def readable_checkpoints(self, which: str = "latest") -> list[Checkpoint]:
        """Return this run's own checkpoints but those known to be damaged, `which` first.

        Args:
            which: ``best`` (the lowest validation loss) or ``latest``.
        """
        newest = [
            c for c in reversed(self.checkpoints()) if not why_not_of(c, self.read_identity())
        ]
        sound = [c for c in newest if not any(seen_harmed(c.path / name) for name in _READ)]
        if which == "latest":
            return sound
        # The earlier of two that are equally good; the later of two that were not evaluated.
        evaluated = [c for c in reversed(sound) if c.val_loss is not None]
        others = [c for c in sound if c.val_loss is None]
        return sorted(evaluated, key=lambda c: c.val_loss or 0.0) + others

    def sound_checkpoint(self, which: str, say: Callable[[str], None]) -> Checkpoint | None:
        """Return the `which` of this run's own checkpoints whose files are what was saved.

        Args:
            which: ``best`` or ``latest``.
            say: gets a sentence for each one that was skipped.
        """
        for checkpoint in self.readable_checkpoints(which):
            files = (checkpoint.path / name for name in _READ)
            harmed = [(file, why) for file in files if file.exists() and (why := why_harmed(file))]
            if not harmed:
                return checkpoint
            file, why = harmed[0]
            say(
                f"{checkpoint.path.name} was skipped: its {file.name} is not what was saved "
                f"({safe(why, one_line=True)})."
            )
        return None

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
                if not run_lock.is_of_kernel(self.path / LOCK_FILE):
                    do_without(
                        "The file system of the run has no locks: do not train this run from two "
                        "machines or containers at once, nothing keeps them apart."
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
        """Whether the run is in progress: it is trained, or was handed over a moment ago."""
        between = state.handed_over and abs(time.time() - state.last_time) < HAND_OVER_SECONDS
        return self.is_active() or between

    def delete(self) -> None:
        """Delete the run and everything in its folder.

        Raises:
            RequestError: it is being trained, is not a run, or cannot be deleted.
        """
        RunFolder.open(self.path)
        if self.is_active():
            raise RequestError(f'The run "{self.name}" is in training; stop it first.')
        if self.path.is_symlink():
            raise RequestError(f'"{self.name}" is a link; delete what it points to by hand.')
        try:
            shutil.rmtree(self.path)
        except OSError as error:
            where = safe(str(error.filename or self.path), one_line=True)
            raise RequestError(f"Cannot delete {where}: {error.strerror}.") from None


def list_runs(runs_dir: Path) -> list[RunFolder]:
    """Return every run in `runs_dir`, newest (by its last event) first.

    A folder that cannot be opened is among them: reading it says why.
    """
    try:
        paths = list(runs_dir.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise RequestError(f"Cannot read {safe(str(runs_dir))}: {error.strerror}.") from None
    folders = [RunFolder(path) for path in paths if _may_be_run(path)]

    def changed(folder: RunFolder) -> float:
        for path in (folder.events_path, folder.path / RUN_FILE):
            with contextlib.suppress(OSError):
                return path.stat().st_mtime
        return 0.0

    return sorted(folders, key=changed, reverse=True)


def _may_be_run(path: Path) -> bool:
    """Whether a folder has a run.toml, or hides whether it has one."""
    try:
        return stat.S_ISREG(os.stat(path / RUN_FILE).st_mode)
    except OSError as error:
        # A folder that we may not look into, or a link that leads round in a circle.
        return error.errno in (errno.EACCES, errno.ELOOP)
    except ValueError:  # a name with a NUL in it
        return False


def free_name(runs_dir: Path, stem: str, ending: str = "") -> str:
    """Return `stem` and `ending`, or these with the first number behind them that no run has.

    A stem that is too long for a name gives way: a corpus's file name may take 255 bytes.
    """
    ending = cut_to_bytes(_plain(ending), NAME_BYTES // 2)
    number = 1
    while True:
        tail = ending + (f"-{number}" if number > 1 else "")
        room = NAME_BYTES - len(os.fsencode(tail))
        name = (cut_to_bytes(_plain(stem).strip("-."), room).strip("-.") or "run") + tail
        # os.path: a path that is too long altogether is refused where the folder is made.
        if not os.path.lexists(runs_dir / name):
            return name
        number += 1


def _plain(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", unicodedata.normalize("NFC", text))


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


def find_model(
    spec: str,
    runs_dir: Path,
    *,
    which: str = "best",
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Return the model file meant by a run's name or folder, a checkpoint folder or a file.

    Args:
        spec: what the person gave.
        runs_dir: where runs are looked for by name.
        which: ``best`` or ``latest`` checkpoint, when `spec` is a run.
        say: gets a sentence for each checkpoint that would have been taken, but was skipped.

    Raises:
        RequestError: there is no such model.
    """
    path = Path(spec)
    # os.path, which calls a name that is too long simply no file. A run's bare name comes first, as
    # for every other verb: a file of that name in the current folder must not hide the run.
    is_name = "/" not in spec and os.path.isfile(runs_dir / spec / RUN_FILE)
    if os.path.isfile(path) and not is_name:
        if path.suffix not in (".safetensors", ".pt"):
            raise RequestError(
                f"{safe(spec)} is not a .safetensors or .pt file, run or checkpoint folder."
            )
        return path
    if os.path.isfile(path / MODEL_FILE) and not is_name:
        return path / MODEL_FILE
    folder = find_run(spec, runs_dir)
    checkpoints, identity = folder.checkpoints(), folder.read_identity()
    if folder.read_imported() and not checkpoints:
        raise RequestError(_only_curves(folder.name))
    if not checkpoints:
        raise RequestError(f'The run "{folder.name}" has no checkpoint yet.')
    for checkpoint in checkpoints:
        if why := why_not_of(checkpoint, identity):
            say(f"{checkpoint.path.name} was skipped: {why}.")
    found = folder.sound_checkpoint(which, say)
    if found is None:
        raise RequestError(f'No checkpoint of the run "{folder.name}" is what was saved.')
    return found.path / MODEL_FILE


def _only_curves(name: str) -> str:
    return f'The run "{name}" was imported: it has curves, but neither weights nor settings.'


def has_changed(model: Path, fingerprint: str) -> bool:
    """Whether the corpus of the run that a model file is in was another one than this.

    False where that is not known: the file is in no run, or in one without a fingerprint.
    """
    run = model.absolute().parent.parent.parent
    if model.absolute().parent.parent.name != CHECKPOINTS or not os.path.isfile(run / RUN_FILE):
        return False
    known = RunFolder(run)._about().get("corpus_fingerprint")
    return bool(known) and known != fingerprint


def why_not_of(checkpoint: Checkpoint, identity: str) -> str:
    """Return why a checkpoint is not one of the run of that identity; empty if it may be."""
    differs = checkpoint.run and identity and checkpoint.run != identity
    return "it is a checkpoint of another run" if differs else ""


def _numbers(checkpoint: Path) -> tuple[float | None, str]:
    """Return the validation loss of a checkpoint, and the identity of its run."""
    try:
        numbers = json.loads(read_bounded(checkpoint / TRAINING_FILE))
        value, run = numbers["val_loss"], numbers.get("run")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, ""
    good = isinstance(value, (int, float)) and abs(value) < 1e300
    return float(value) if good else None, run if isinstance(run, str) else ""
