"""What the Runs screen says about each run, read from its folder. No widgets."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from megatron_model.events.state import RunState
from megatron_model.run.about import ABOUT_FILE, About, read_about
from megatron_model.run.comparison import curve_of
from megatron_model.run.facts import RunFacts
from megatron_model.run.folder import RUN_FILE, RunFolder, list_runs
from megatron_model.run.query import Look
from megatron_model.util.errors import RequestError
from megatron_model.util.files import bytes_in
from megatron_model.util.text import plural, safe
from megatron_tui.services.process_run import ProcessRun
from megatron_tui.services.run_handle import RunHandle, Standing
from megatron_tui.services.run_log import RunLog
from megatron_tui.ui import formatting
from megatron_tui.ui.spark import resampled

CURVE_POINTS = 24
"""So many values of a run's curve are kept for the list."""
STATES_KEPT = 32
"""Of so many runs the state is kept, to go on from: those that were read last."""

_Version: TypeAlias = tuple[int, int, int] | None
"""Tells a file from what it was: its number, size and last change, of its mode too; or no file."""


@dataclass(frozen=True)
class RunRow:
    """One run in one line."""

    folder: RunFolder
    name: str
    standing: Standing
    step: int = 0
    steps: int = 0
    """Of the whole run; 0 where they are not known, or a time budget ends it."""
    budget: float = 0.0
    """Seconds that the run was given, if it used them up."""
    best_val_loss: float | None = None
    curve: tuple[float, ...] = ()
    """Some values of its validation loss, or of its train loss, in their order."""
    speed: float | None = None
    """Characters a second, as they were reported last."""
    parameters: int | None = None
    seconds: float | None = None
    """How long it was trained."""
    size: int | None = None
    """Bytes in its folder."""
    about: About = About()
    """What people say of it."""
    last_time: float = 0.0
    corpus: str = ""
    model: str = ""
    """The model in a few words."""
    active: bool = False
    resumable: bool = False
    problem: str = ""
    """Why its log or its settings cannot be read, if that is so."""

    @classmethod
    def unread(cls, folder: RunFolder) -> RunRow:
        """Return the row of a run of which only the name is known."""
        return cls(folder, safe(folder.name, one_line=True), "reading")

    @property
    def known(self) -> bool:
        """Whether it was read."""
        return self.standing != "reading"

    def age(self, now: float) -> str:
        """Return how long ago the run was last heard of."""
        return (
            formatting.age(max(0.0, now - self.last_time)) if self.last_time else formatting.MISSING
        )


def look_of(row: RunRow, now: float) -> Look:
    """Return what a query can ask of a run: what the row says, and the rest from its folder."""
    facts = RunFacts(row.folder)
    known = {
        "name": row.name,
        "status": row.standing,
        "val": row.best_val_loss,
        "step": row.step,
        "steps": row.steps or None,
        "corpus": row.corpus,
        "time": row.last_time or None,
        "size": row.size,
        "tag": row.about.tags,
        "note": row.about.note,
        "age": now - row.last_time if row.last_time else None,
    }
    return lambda name: known[name] if name in known else facts.value(name)


@dataclass(frozen=True)
class _Settings:
    """What a row says of a run's settings."""

    corpus: str = ""
    steps: int = 0
    budget: float = 0.0
    model: str = ""
    problem: str = ""


class KnownRuns:
    """The runs that were read before: a file that did not change is not read again.

    Of a log that only grew, what is new is read.
    """

    def __init__(self) -> None:
        self._states: OrderedDict[Path, tuple[_Version, RunState, int]] = OrderedDict()
        self._settings: dict[Path, tuple[_Version, _Settings]] = {}
        self._rows: dict[Path, tuple[_Version, _Version, _Version, bool, RunRow]] = {}
        self._listed: _Version = None
        self._lock = threading.Lock()

    def state(self, folder: RunFolder) -> RunState:
        """Return the present state of a run."""
        found = _version(folder.events_path)
        with self._lock:
            version, state, offset = self._states.pop(folder.path, (None, RunState(), 0))
            if found is None:
                return RunState()
            if version is None or version[0] != found[0] or found[1] < offset:
                state, offset = folder.fold()  # another file than before
            elif version != found:
                events, offset = folder.read_events(offset)
                state.apply_all(events)
            self._states[folder.path] = (found, state, offset)
            while len(self._states) > STATES_KEPT:
                self._states.popitem(last=False)
            return state

    def seen(self, folder: RunFolder) -> RunRow:
        """Return the row of a run as it was read last, without a look at it."""
        return self._rows[folder.path][-1] if folder.path in self._rows else RunRow.unread(folder)

    def row(self, folder: RunFolder) -> RunRow:
        """Return the present row of a run."""
        log, settings = _version(folder.events_path), _version(folder.path / RUN_FILE)
        about, active = _version(folder.path / ABOUT_FILE), folder.is_active()
        known = self._rows.get(folder.path)
        if known is not None and known[:4] == (log, settings, about, active):
            return known[-1]
        row, lasting = self._read(folder, settings)
        if lasting:
            self._rows[folder.path] = (log, settings, about, active, row)
        return row

    def list_all(self, runs_dir: Path) -> list[RunFolder]:
        """Return every run, newest first; what was known of any others is forgotten.

        Raises:
            RequestError: the folder cannot be read.
        """
        self._listed = _version(runs_dir)  # before it is read: what comes in between is seen later
        folders = list_runs(runs_dir)
        self.forget(folders)
        return folders

    def are_all_of(self, runs_dir: Path) -> bool:
        """Whether no run was added, removed or renamed since they were listed."""
        return self._listed == _version(runs_dir)

    def forget(self, folders: list[RunFolder]) -> None:
        """Drop what is known of any runs but these."""
        paths = {folder.path for folder in folders}
        for known in (self._rows, self._settings):
            for path in known.keys() - paths:
                known.pop(path, None)

    def _read(self, folder: RunFolder, version: _Version) -> tuple[RunRow, bool]:
        """Return a row, and whether it stays as it is until a file changes."""
        settings = self.settings(folder, version)
        try:
            folder.check_readable()
        except RequestError as error:
            return _unreadable(folder, error), True
        state = self.state(folder)
        run = ProcessRun(RunLog(folder, state), active=folder.is_alive(state))
        # One that was handed over counts as alive for a while: then time alone changes it.
        return _row(run, settings), not state.handed_over

    def settings(self, folder: RunFolder, version: _Version) -> _Settings:
        """Return what a row says of a run's settings, in that version of its file."""
        known = self._settings.get(folder.path)
        if known is None or known[0] != version:
            known = self._settings[folder.path] = (version, _settings(folder))
        return known[1]


def read_row(
    folder: RunFolder, own: RunHandle | None = None, known: KnownRuns | None = None
) -> RunRow:
    """Read one run; `own`, where it was started by this process, is taken as it is."""
    known = known or KnownRuns()
    if own is not None:
        return _row(own, known.settings(folder, _version(folder.path / RUN_FILE)))
    return known.row(folder)


def _version(path: Path) -> _Version:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_ctime_ns


def _settings(folder: RunFolder) -> _Settings:
    try:
        config = folder.read_config()
    except RequestError as error:
        if source := folder.read_imported():
            where = safe(source, one_line=True)
            return _Settings(corpus=f"imported from {where}", model="not known: curves alone")
        problem = safe(str(error), one_line=True)
        return _Settings(model=problem, problem=problem)
    model, budget = config.model, config.training.max_seconds
    words = (
        f"{model.architecture}, {plural(model.layers, 'layer')} of {model.embed_dim}, "
        f"{plural(model.heads, 'head')}, block {model.block_size}"
    )
    steps = 0 if budget else config.training.steps
    return _Settings(safe(config.data.corpus, one_line=True), steps, budget, words)


def _row(run: RunHandle, settings: _Settings) -> RunRow:
    state = run.state
    return RunRow(
        folder=run.folder,
        name=run.name,
        standing=run.standing,
        step=state.step,
        steps=settings.steps,
        budget=settings.budget if state.finish_reason == "budget" else 0.0,
        best_val_loss=state.best_val_loss,
        curve=resampled(curve_of(state).values, CURVE_POINTS),
        speed=state.speed.values[-1] if state.speed.values else None,
        parameters=state.started.parameters if state.started else None,
        seconds=state.elapsed_seconds or None,
        size=bytes_in(run.folder.path),
        about=read_about(run.folder),
        last_time=state.last_time,
        corpus=settings.corpus,
        model=settings.model,
        active=run.active,
        resumable=run.resumable,
        problem=settings.problem,
    )


def _unreadable(folder: RunFolder, error: RequestError) -> RunRow:
    problem = safe(str(error), one_line=True)
    name = safe(folder.name, one_line=True)
    return RunRow(folder, name, "unreadable", model=problem, problem=problem)
